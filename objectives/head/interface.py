"""Inputs and results that all backends of the objective head share.

Shapes: M rows that have a target, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deft.objectives.base import TOP_K, Objective, ObjectiveOutput, TokenStats


class ReferenceHead(NamedTuple):
    """The frozen reference model's last layer, on the same tokens.

    Its hidden states can be computed once and kept; under LoRA they are those of the model with its
    adapters off, and the weight is shared.
    """

    hidden: Tensor
    """[N, D_ref], row by row the tokens of the trained model's hidden states."""
    weight: Tensor
    """[V, D_ref]."""
    bias: Tensor | None = None
    """[V]."""


class HeadInputs(NamedTuple):
    """One micro-batch at the head, without ignored rows; all tensors detached."""

    hidden: Tensor
    """[M, D]."""
    weight: Tensor
    """[V, D], in the dtype of hidden."""
    bias: Tensor | None
    """[V]."""
    labels: Tensor
    """int64 [M], each in [0, V)."""
    softcap: float | None
    """Logits are softcap · tanh(z / softcap)."""
    reference: ReferenceHead | None
    """Rows aligned with hidden; given exactly if the objective needs it."""
    step_mean_p: Tensor | None
    """Scalar mean p of the optimizer step, where known."""
    context: Mapping[str, Tensor | None] = {}
    """What the objective reads of `CONTEXT`, each [M], and `weight` where the data have any. None
    stands for the model's own logp, of a weight for 1."""
    top_k: int = TOP_K
    """Number of largest logits that `entropy_top` is taken over."""


class Wanted(NamedTuple):
    """Statistics and gradients that a backend shall compute beside the objective's value."""

    statistics: frozenset[str]
    """Optional statistics: the objective's needs and those that the caller logs."""
    hidden: bool
    weight: bool
    bias: bool

    @property
    def gradients(self) -> bool:
        return self.hidden or self.weight or self.bias


class HeadResult(NamedTuple):
    """Result of a backend; gradients are those of Σ value over kept rows.

    logp is NaN in a row whose logits are not all finite.
    """

    stats: TokenStats
    """[M], in the accumulation dtype."""
    output: ObjectiveOutput
    """[M]; value, gate and mix are 0 where a row is not kept."""
    grad_hidden: Tensor | None
    """[M, D]."""
    grad_weight: Tensor | None
    """[V, D], in the accumulation dtype, or in the weight's where nothing is added to it later."""
    grad_bias: Tensor | None
    """[V], in the accumulation dtype."""


Backend = Callable[[HeadInputs, Objective, Wanted], HeadResult]


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return float64 for float64 inputs, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def weight_gradient_dtype(weight: torch.dtype) -> torch.dtype:
    """Choose how the weight's gradient is stored where nothing is added to it once it is written.

    A copy in float32 would be twice as large as the weight. float16 ends at 65,504, which sums over
    thousands of rows exceed before they are divided by the number of tokens.
    """
    return torch.bfloat16 if weight == torch.bfloat16 else accumulation_dtype(weight)


def apply_objective(
    objective: Objective,
    stats: TokenStats,
    context: Mapping[str, Tensor | None] | None = None,
    rows: slice | Tensor = slice(None),
) -> ObjectiveOutput:
    """Evaluate the objective, multiply it by the data's weights, zero the rows that are not kept.

    Args:
        objective: what to evaluate.
        stats: [R].
        context: see `HeadInputs`, each [M].
        rows: which of the M rows `stats` is of.
    """
    columns: dict[str, Any] = {}
    for name in objective.context:
        column = None if context is None else context.get(name)
        default = torch.ones_like(stats.logp) if name == "weight" else stats.logp
        columns[name] = default if column is None else column[rows]
    output = objective(replace(stats, **columns) if columns else stats)
    weight = None if context is None else context.get("weight")
    if weight is not None:
        output = _weighted(output, weight[rows])
    if output.keep is None:
        return output
    dropped = ~output.keep
    return output._replace(
        value=output.value.masked_fill(dropped, 0),
        gate=output.gate.masked_fill(dropped, 0),
        focus=None if output.focus is None else output.focus.masked_fill(dropped, 0),
        mix=None if output.mix is None else output.mix.masked_fill(dropped, 0),
    )


def _weighted(output: ObjectiveOutput, weight: Tensor) -> ObjectiveOutput:
    return output._replace(
        value=output.value * weight,
        gate=output.gate * weight,
        mix=None if output.mix is None else output.mix * weight,
    )


def join_stats(parts: list[TokenStats]) -> TokenStats:
    """Concatenate the statistics of consecutive rows."""
    if len(parts) == 1:
        return parts[0]
    joined: dict[str, Any] = {
        field.name: None
        if getattr(parts[0], field.name) is None
        else torch.cat([getattr(part, field.name) for part in parts])
        for field in fields(TokenStats)
        if field.name != "step_mean_p"
    }
    return replace(parts[0], **joined)


def join_outputs(parts: list[ObjectiveOutput]) -> ObjectiveOutput:
    """Concatenate the outputs of consecutive rows."""
    if len(parts) == 1:
        return parts[0]
    columns = zip(*parts, strict=True)
    return ObjectiveOutput._make(None if c[0] is None else torch.cat(c) for c in columns)
