"""The `torch` backend on a GPU: two passes over blocks of the vocabulary, by library products.

It computes what the kernels of `triton_head` do not: second distributions, float64, and everything
on a card that the kernels do not run on. A block of logits [M, B] is computed in float32, used and
dropped, so memory does not grow with M · V, and the weight's gradient is written once, because a
block's share of it is complete. Nothing here makes the host wait for the device.

1. Statistics: every block's sums are relative to the block's own largest logit, so that nothing
   overflows, and are combined once at the end.
2. Gradients: logits are recomputed, and P follows from the row's normalizer.

Shapes: M target rows, D width, V vocabulary, B entries of a block, K blocks. All but the products'
operands is float32 (float64 for float64 inputs).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from deft.objectives.base import Objective, ObjectiveOutput, Target, TokenStats
from deft.objectives.head.interface import (
    HeadInputs,
    HeadResult,
    Wanted,
    accumulation_dtype,
    apply_objective,
    weight_gradient_dtype,
)
from deft.objectives.head.matmul import widening_product
from deft.objectives.head.softmax_stats import CombinedSums, combine_parts, soft_cap_

BLOCK_BYTES = 2**28
"""Bytes of all [M, B] buffers together. Not taken from what is free: the size of a block decides
in which order sums are rounded, and results shall not depend on what else is on the card."""
LEAST_COLUMNS = 1024
"""Entries of a block however many rows there are: fewer make inefficient products."""
_WHOLE_COLUMNS = 256
"""Entries of a block are a multiple of this, for aligned products."""


class _Normalizers(NamedTuple):
    """log Σ e^z of every row, for each distribution; [M]."""

    model: Tensor
    target: Tensor | None
    """Of the second distribution, where it is not uniform; see `_divergence`."""


@torch.no_grad()
def gpu_blocks_head(inputs: HeadInputs, objective: Objective, wanted: Wanted) -> HeadResult:
    """Compute value, gate and gradients with one block of logits at a time."""
    blocks = _blocks(inputs, wanted)
    stats, normalizers = _statistics(inputs, objective.target, wanted.statistics, blocks)
    output = apply_objective(objective, stats, inputs.context)
    if not wanted.gradients:
        return HeadResult(stats, output, None, None, None)
    gradients = _Gradients(inputs, objective.target, wanted, stats, output, normalizers)
    for block in blocks:
        gradients.add(block)
    return gradients.result()


@torch.no_grad()
def top_entropy(inputs: HeadInputs) -> Tensor:
    """Compute the entropy [M] of the `top_k` largest logits renormalized among themselves."""
    largest: Tensor | None = None
    for block in _column_blocks(inputs, buffers=2):
        logits = _logits(inputs.hidden, inputs.weight, inputs.bias, inputs.softcap, block)
        largest = _larger(largest, logits, inputs.top_k)
    assert largest is not None
    return _entropy(largest)


def _larger(largest: Tensor | None, logits: Tensor, top_k: int) -> Tensor:
    """Merge the largest logits so far with a block's; [M, up to top_k]."""
    top = logits.topk(min(top_k, logits.shape[-1]), dim=-1, sorted=False).values
    if largest is None:
        return top
    both = torch.cat([largest, top], -1)
    return both.topk(min(top_k, both.shape[-1]), dim=-1, sorted=False).values


def _entropy(logits: Tensor) -> Tensor:
    log_probs = logits.log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum(-1)


def _blocks(inputs: HeadInputs, wanted: Wanted) -> list[slice]:
    """Choose the blocks, so that logits and what is made of them fit `BLOCK_BYTES` together."""
    has_slope = inputs.softcap is not None and wanted.gradients
    return _column_blocks(inputs, buffers=2 + (inputs.reference is not None) + has_slope)


def _column_blocks(inputs: HeadInputs, buffers: int) -> list[slice]:
    rows, V = max(len(inputs.labels), 1), len(inputs.weight)
    column_bytes = accumulation_dtype(inputs.hidden.dtype).itemsize * rows * buffers
    step = max(BLOCK_BYTES // column_bytes // _WHOLE_COLUMNS * _WHOLE_COLUMNS, LEAST_COLUMNS)
    return [slice(start, min(start + step, V)) for start in range(0, V, step)]


def _logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None, block: slice
) -> Tensor:
    """Compute logits [M, B]."""
    logits = widening_product(hidden, weight[block].T)
    if bias is not None:
        logits += bias[block]
    if softcap is not None:
        soft_cap_(logits, softcap, None)
    return logits


def _reference_logits(inputs: HeadInputs, block: slice) -> Tensor:
    """Compute the frozen model's logits [M, B]."""
    assert inputs.reference is not None
    return _logits(*inputs.reference, inputs.softcap, block)


def _place(labels: Tensor, block: slice) -> tuple[Tensor, Tensor]:
    """Tell which rows have their target in the block [M], and its place there [M, 1], or any."""
    size = block.stop - block.start
    local = labels - block.start
    return (local >= 0) & (local < size), local.clamp(0, size - 1)[:, None]


# ------------------------------------------------------------------------------- statistics


def _statistics(
    inputs: HeadInputs, target: Target | None, statistics: frozenset[str], blocks: list[slice]
) -> tuple[TokenStats, _Normalizers]:
    """Compute the rows' statistics and normalizers."""
    largest_logits: Tensor | None = None
    sums = []
    for block in blocks:
        logits = _logits(inputs.hidden, inputs.weight, inputs.bias, inputs.softcap, block)
        if "entropy_top" in statistics:
            largest_logits = _larger(largest_logits, logits, inputs.top_k)
        sums.append(_block_sums(inputs, target, statistics, block, logits))
        # Freed before the next block is computed beside it.
        del logits
    parts = {name: torch.stack([block_sums[name] for block_sums in sums]) for name in sums[0]}

    combined = combine_parts(
        parts["largest"],
        parts["total"],
        parts["target"],
        squares=parts.get("squares"),
        moments=parts.get("moment"),
    )
    divergence = target_normalizer = None
    if target is not None:
        divergence, target_normalizer = _divergence(target, parts, combined, len(inputs.weight))
    stats = TokenStats(
        logp=combined.logp,
        p=combined.logp.exp(),
        mask=torch.ones_like(combined.logp, dtype=torch.bool),
        concentration=combined.concentration,
        entropy=combined.entropy,
        entropy_top=None if largest_logits is None else _entropy(largest_logits),
        top_logp=-combined.log_total if "top_logp" in statistics else None,
        divergence=divergence,
        step_mean_p=inputs.step_mean_p,
    )
    return stats, _Normalizers(combined.largest + combined.log_total, target_normalizer)


def _block_sums(
    inputs: HeadInputs,
    target: Target | None,
    statistics: frozenset[str],
    block: slice,
    logits: Tensor,
) -> dict[str, Tensor]:
    """Sum over a block, relative to its largest logit m; [M] each. Overwrites the logits z.

    ``total`` Σ e^(z−m), ``squares`` Σ e^2(z−m), ``moment`` Σ (z−m) e^(z−m), ``centered`` Σ (z−m),
    ``target`` the target's logit or 0; those of a second distribution as `_divergence` needs them.
    A row with a logit of ±inf or NaN has a NaN for its total.
    """
    is_here, place = _place(inputs.labels, block)
    sums = {"target": torch.where(is_here, logits.gather(1, place).squeeze(1), 0)}
    sums["largest"] = logits.amax(-1)
    z = logits.sub_(sums["largest"][:, None])
    sums["centered"] = z.sum(-1)
    if target is not None and target.kind == "uniform":
        sums["size"] = torch.full_like(sums["largest"], logits.shape[-1])
    if target is not None and target.kind == "tempered":
        powers = torch.mul(z, 1 / target.temperature).exp_()
        sums["target_total"] = powers.sum(-1)
        sums["target_moment"] = powers.mul_(z).sum(-1)
        del powers
    reference: Tensor | None = None
    if inputs.reference is not None:
        reference = _reference_logits(inputs, block)
        sums["target_largest"] = reference.amax(-1)
        reference.sub_(sums["target_largest"][:, None])
        sums["target_total"] = reference.exp().sum(-1)
    exponentials = z.exp()
    # One logit of −inf would pass as a probability of 0; it shows in the sum of all logits.
    is_finite = sums["centered"].isfinite()
    sums["total"] = exponentials.sum(-1).masked_fill_(~is_finite, torch.nan)
    if "concentration" in statistics:
        sums["squares"] = torch.linalg.vector_norm(exponentials, dim=-1).square()
    if reference is not None and target is not None and target.kind == "reference_reverse":
        # Σ e^(z−m) · ((z−m) − (r−n)), with r the reference's logits and n their largest.
        sums["cross"] = torch.sub(z, reference, out=reference).mul_(exponentials).sum(-1)
    if "entropy" in statistics:
        sums["moment"] = exponentials.mul_(z).sum(-1)
    if reference is not None and target is not None and target.kind == "reference":
        # Σ e^(r−n) · ((r−n) − (z−m)): differences first, since near P = R they are small.
        torch.exp(reference, out=exponentials)
        sums["cross"] = reference.sub_(z).mul_(exponentials).sum(-1)
    return sums


def _divergence(
    target: Target, parts: dict[str, Tensor], combined: CombinedSums, vocabulary: int
) -> tuple[Tensor, Tensor | None]:
    """Combine the blocks' sums [K, M] to D(T, P) [M] and log Σ e^z of the second distribution.

    For the tempered one z is the model's logit over the temperature.
    """
    shift, log_total = combined.shift, combined.log_total
    if target.kind == "uniform":
        mean = (parts["centered"] + parts["size"] * shift).sum(0) / vocabulary
        return log_total - mean, None
    if target.kind == "tempered":
        target_decay = (shift / target.temperature).exp()
        target_total = (target_decay * parts["target_total"]).sum(0)
        moment = parts["target_moment"] + shift * parts["target_total"]
        divergence = log_total - (target_decay * moment).sum(0) / target_total
        return divergence, combined.largest / target.temperature + target_total.log()
    target_largest = parts["target_largest"].amax(0)
    target_shift = parts["target_largest"] - target_largest
    target_decay = target_shift.exp()
    target_total = (target_decay * parts["target_total"]).sum(0)
    log_ratio = target_total.log() - log_total
    normalizer = target_largest + target_total.log()
    # What relative logits of the two models differ by changes with what they are relative to.
    rise = target_shift - shift
    if target.kind == "reference":
        cross = (target_decay * (parts["cross"] + rise * parts["target_total"])).sum(0)
        return cross / target_total - log_ratio, normalizer
    cross = (combined.decay * (parts["cross"] - rise * parts["total"])).sum(0)
    return cross / combined.total + log_ratio, normalizer


# -------------------------------------------------------------------------------- gradients


class _Gradients:
    """Gradients of Σ value in hidden states, weight and bias, one block after the other."""

    def __init__(
        self,
        inputs: HeadInputs,
        target: Target | None,
        wanted: Wanted,
        stats: TokenStats,
        output: ObjectiveOutput,
        normalizers: _Normalizers,
    ) -> None:
        self.inputs, self.target, self.normalizers = inputs, target, normalizers
        self.stats, self.output = stats, output
        hidden, weight = inputs.hidden, inputs.weight
        dtype = accumulation_dtype(hidden.dtype)
        # An objective that mixes in a second error has its gates in the errors already. For all
        # others the gate [M] scales the narrow side of the products.
        self.gate = None if output.mix is not None else output.gate[:, None]
        self.gated = hidden if self.gate is None else (self.gate * hidden).to(hidden.dtype)
        self.hidden = torch.zeros_like(hidden, dtype=dtype) if wanted.hidden else None
        self.weight: Tensor | None = None
        if wanted.weight:
            self.weight = torch.empty_like(weight, dtype=weight_gradient_dtype(weight.dtype))
        self.bias: Tensor | None = None
        if wanted.bias:
            self.bias = torch.empty(len(weight), dtype=dtype, device=weight.device)

    def add(self, block: slice) -> None:
        """Add a block's share to the hidden states' gradient, and write that of its entries."""
        error = self._errors(block)
        if self.bias is not None:
            gated = error if self.gate is None else self.gate * error
            self.bias[block] = gated.sum(0)
            del gated
        # A GPU's tensor cores take both operands in 16 bits.
        operand = error.to(self.inputs.weight.dtype)
        del error
        if self.hidden is not None:
            self.hidden += widening_product(operand, self.inputs.weight[block])
        if self.weight is not None:
            self.weight[block] = widening_product(operand.T, self.gated)

    def result(self) -> HeadResult:
        """Hand over the gradients."""
        if self.hidden is not None and self.gate is not None:
            self.hidden *= self.gate
        return HeadResult(self.stats, self.output, self.hidden, self.weight, self.bias)

    def _errors(self, block: slice) -> Tensor:
        """P − e_y [M, B]; or gate · (P − e_y) + mix · (P − T), where there is a T."""
        inputs, output, stats = self.inputs, self.output, self.stats
        logits = _logits(inputs.hidden, inputs.weight, inputs.bias, inputs.softcap, block)
        slope: Tensor | None = None
        if inputs.softcap is not None:
            # The soft cap's derivative, from its result: z = cap · tanh(·), dz = 1 − tanh².
            slope = torch.mul(logits, 1 / inputs.softcap).square_().neg_().add_(1)
        is_here, place = _place(inputs.labels, block)
        # p − 1 as expm1(logp) keeps the digits of an almost certain token.
        at_target = torch.expm1(stats.logp)
        if output.mix is None:
            error = self._probabilities_(logits)
        else:
            gate, mix = output.gate, output.mix
            error, other = self._two_distributions_(logits, block)
            # gate · (P − e_y) + mix · (P − T) = (gate + mix) · P − mix · T − gate · e_y.
            error.mul_((gate + mix)[:, None])
            if other is None:
                uniform = 1 / len(inputs.weight)
                at_target = gate * at_target + mix * (stats.p - uniform)
                error.sub_((mix * uniform)[:, None])
            else:
                at_target = gate * at_target + mix * (stats.p - other.gather(1, place).squeeze(1))
                error.sub_(other.mul_(mix[:, None]))
        kept = torch.where(is_here, at_target, error.gather(1, place).squeeze(1))
        error.scatter_(1, place, kept[:, None])
        return error if slope is None else error.mul_(slope)

    def _probabilities_(self, logits: Tensor) -> Tensor:
        return logits.sub_(self.normalizers.model[:, None]).exp_()

    def _two_distributions_(self, logits: Tensor, block: slice) -> tuple[Tensor, Tensor | None]:
        """Turn logits [M, B] into P, and return it with T; None for the uniform one."""
        normalizer = self.normalizers.target
        if self.target is None or normalizer is None:
            return self._probabilities_(logits), None
        if self.target.kind == "tempered":
            other = torch.mul(logits, 1 / self.target.temperature)
            other.sub_(normalizer[:, None]).exp_()
            return self._probabilities_(logits), other
        other = _reference_logits(self.inputs, block).sub_(normalizer[:, None])
        if self.target.kind == "reference":
            return self._probabilities_(logits), other.exp_()
        # KL[P ‖ R] has the logit gradient P · (log(P/R) − KL), which is P − T for this T.
        log_probs = logits.sub_(self.normalizers.model[:, None])
        other.sub_(log_probs).add_((1 + self.stats.require("divergence"))[:, None])
        probs = log_probs.exp_()
        return probs, other.mul_(probs)
