"""The `torch` backend for bfloat16 on a CPU that multiplies it natively: two passes over blocks.

The chunks of `chunked` accumulate the weight's gradient in float32, twice the size of the weight.
Here a block of logits [R, B] is computed, used and overwritten while it is in cache, the weight's
gradient is written once, in the weight's dtype, and nothing is accumulated in more than a block.

A logit rounded to bfloat16 is off by up to its size · 2⁻⁹, which costs 1–3 % of gradient error. So
what is rounded is log P: the row's normalizer enters the product, which is summed in float32, as
further columns of the hidden states. The relative error of P is then |log P| · 2⁻⁹, which is small
where P is large; where P is small it hardly adds to a gradient.

1. Statistics: relative to the normalizer so far, see `blocked_statistics`.
2. Gradients: relative to the normalizer itself.

Shapes: M target rows, R of them at a time, D width, V vocabulary, B entries of a block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deft.objectives.base import TOP_K, Objective, ObjectiveOutput, TokenStats
from deft.objectives.head.blocked_statistics import (
    BlockedStatistics,
    size,
    slices,
    targets,
    view,
)
from deft.objectives.head.interface import HeadInputs, HeadResult, Wanted, apply_objective
from deft.objectives.head.matmul import has_fast_bfloat16, has_native_bfloat16

_ROWS = 2048
# Entries of a block; half as many where a second distribution needs buffers of its own.
_ENTRIES = 4096
# Below this temperature, rounded log-probabilities are off by too much once divided by it.
_LOWEST_TEMPERATURE = 0.5


def fits(inputs: HeadInputs, objective: Objective) -> bool:
    """Tell whether the request can be computed block by block, and faster than by chunks.

    Without native bfloat16 the four products of two passes took 1.17 of plain NLL's time, the three
    of `chunked` 0.71; and the product that carries the normalizer is not summed in float32, so that
    with large logits gradients were off by 5 %. A vocabulary of less than a block leaves nothing to
    save: there it takes AMX to be worth a second pass.
    """
    device = inputs.hidden.device
    saves_memory = len(inputs.weight) >= _ENTRIES
    tensors = [inputs.hidden, *(inputs.reference[:2] if inputs.reference is not None else ())]
    target = objective.target
    return (
        has_native_bfloat16(device)
        and (saves_memory or has_fast_bfloat16(device))
        and all(tensor.dtype == torch.bfloat16 for tensor in tensors)
        and inputs.softcap is None
        and inputs.top_k <= TOP_K
        and (target is None or target.temperature >= _LOWEST_TEMPERATURE)
    )


@torch.no_grad()
def blocked_head(inputs: HeadInputs, objective: Objective, wanted: Wanted) -> HeadResult:
    """Compute value, gate and gradients with one block of logits at a time."""
    entries = _ENTRIES if objective.target is None else _ENTRIES // 2
    first_pass = BlockedStatistics(inputs, objective.target, wanted, _ROWS, entries)
    stats = first_pass.run()
    output = apply_objective(objective, stats, inputs.context)
    if not wanted.gradients:
        return HeadResult(stats, output, None, None, None)
    return HeadResult(stats, output, *_gradients(first_pass, stats, output))


def _gradients(
    first_pass: BlockedStatistics, stats: TokenStats, output: ObjectiveOutput
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Compute gradients of hidden states [M, D], weight [V, D] and bias [V]."""
    inputs, wanted = first_pass.inputs, first_pass.wanted
    V, D = inputs.weight.shape
    errors = _Errors(first_pass, stats, output)
    model, active = first_pass.model, errors.active
    hidden = model.hidden[active]
    # An objective that mixes in a second error has its gates in the errors already.
    gate = torch.ones(len(active), 1) if output.mix is not None else output.gate[active, None]
    gated = (hidden[:, :D] * gate).to(torch.bfloat16)

    # The hidden states' gradient is summed over all blocks and so stays in float32, transposed like
    # the products; the weight's is final within a block and goes straight to the weight's dtype.
    grad_hidden = torch.zeros(D, len(active)) if wanted.hidden else None
    grad_weight = torch.empty_like(inputs.weight) if wanted.weight else None
    grad_bias = torch.zeros(V) if wanted.bias else None
    chunks = slices(len(active), first_pass.rows)
    B, R = first_pass.entries, min(len(active), first_pass.rows)
    transposed = inputs.weight.new_empty(D, B)
    product = inputs.weight.new_empty(D * R)
    parts = inputs.weight.new_empty(len(chunks), B, D)
    total = torch.empty(B, D)
    for block in slices(V, B):
        weight = model.fill(block)
        errors.fill(block)
        weight_t = transposed[:, : len(weight)].copy_(weight[:, :D].T)
        for part, rows in zip(parts[:, : len(weight)], chunks, strict=True):
            # [B, R] and [D, R], because a product with a transposed left side takes twice the time.
            error = errors.compute(rows, block, weight, hidden)
            if grad_hidden is not None:
                out = view(product, D, size(rows))
                grad_hidden[:, rows] += torch.mm(weight_t, error, out=out)
            if grad_weight is not None:
                torch.mm(error, gated[rows], out=grad_weight[block] if len(chunks) == 1 else part)
            if grad_bias is not None:
                grad_bias[block] += (error @ gate[rows].to(error.dtype)).squeeze(1)
        if grad_weight is not None and len(chunks) != 1:
            # Several chunks' shares are added in float32 and rounded once.
            torch.sum(parts[:, : len(weight)], 0, dtype=torch.float32, out=total[: len(weight)])
            grad_weight[block] = total[: len(weight)]
    if grad_hidden is not None:
        scattered = torch.zeros(len(inputs.labels), D)
        grad_hidden = scattered.index_copy_(0, active, grad_hidden.T * gate)
    return grad_hidden, grad_weight, grad_bias


class _Errors:
    """Blocks of P − e_y, or of gate · (P − e_y) + mix · (P − T) where there is a T."""

    def __init__(
        self, first_pass: BlockedStatistics, stats: TokenStats, output: ObjectiveOutput
    ) -> None:
        self.first_pass, self.target = first_pass, first_pass.target
        weights = output.gate if output.mix is None else output.gate.abs() + output.mix.abs()
        self.active = weights.nonzero().squeeze(-1)
        """int64 [A]: the rows that have an error."""
        self.labels = first_pass.inputs.labels[self.active]
        first_pass.model.set_normalizer(slice(None), first_pass.normalizer)
        at_target = torch.expm1(stats.logp)
        if output.mix is not None:
            gate, mix = output.gate, output.mix
            row_term, other = self._target_distribution(stats)
            at_target = gate * at_target + mix * (stats.p - other)
            # Rounded to 8 bits like the errors that they multiply.
            self.scale = (gate + mix)[self.active].to(torch.bfloat16)
            self.mix = mix[self.active].to(torch.bfloat16)
            self.row_term = row_term[self.active].to(torch.bfloat16)
        self.at_target = at_target[self.active].to(torch.bfloat16)
        self.reference_hidden: Tensor | None = None
        if first_pass.reference is not None and first_pass.seen_target is not None:
            layer, seen = first_pass.reference, first_pass.seen_target.reference
            layer.set_normalizer(slice(None), layer.target + seen.log_sum)
            self.reference_hidden = layer.hidden[self.active]

    def _target_distribution(self, stats: TokenStats) -> tuple[Tensor, Tensor]:
        """Return what `_second_` needs of each row [M], and T at the target [M]."""
        seen = self.first_pass.seen_target
        if seen is None or self.target is None:
            uniform = torch.full_like(stats.p, 1 / len(self.first_pass.inputs.weight))
            return uniform, uniform
        if self.target.kind == "tempered":
            log_sums = seen.sums.log()
            return log_sums, torch.exp(stats.logp / self.target.temperature - log_sums)
        log_reference = -seen.reference.log_sum
        if self.target.kind == "reference":
            return log_reference, log_reference.exp()
        rise = 1 + stats.require("divergence")
        return rise, stats.p * (rise - stats.logp + log_reference)

    def fill(self, block: slice) -> None:
        """Prepare the reference's weight for `compute`."""
        if self.first_pass.reference is not None:
            self.reference_weight = self.first_pass.reference.fill(block)

    def compute(self, rows: slice, block: slice, weight: Tensor, hidden: Tensor) -> Tensor:
        """Compute the errors [B, R] of some of the active rows."""
        shape = len(weight), size(rows)
        error = view(self.first_pass.logits, *shape)
        torch.mm(weight, hidden[rows].T, out=error)
        if self.target is None:
            error.exp_()
        elif self.first_pass.seen_target is None:
            # (gate + mix) · P − mix · T, with T = 1/V.
            error.exp_().mul_(self.scale[rows]).sub_(self.mix[rows] * self.row_term[rows])
        else:
            other = self._second_(error, view(self.first_pass.other, *shape), rows)
            error.mul_(self.scale[rows]).sub_(other.mul_(self.mix[rows]))
        here, entry = targets(self.labels[rows], block)
        error[entry, here] = self.at_target[rows][here]
        return error

    def _second_(self, error: Tensor, other: Tensor, rows: slice) -> Tensor:
        """Turn log P [B, R] into P, and return T [B, R], written to `other`."""
        assert self.target is not None
        if self.target.kind == "tempered":
            torch.mul(error, 1 / self.target.temperature, out=other)
            other.sub_(self.row_term[rows]).exp_()
            error.exp_()
            return other
        assert self.reference_hidden is not None
        torch.mm(self.reference_weight, self.reference_hidden[rows].T, out=other)
        if self.target.kind == "reference":
            error.exp_()
            return other.exp_()
        # T = P · (1 + KL[P ‖ R] − log P + log R).
        other.sub_(error).add_(self.row_term[rows])
        return other.mul_(error.exp_())
