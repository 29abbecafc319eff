"""The `torch` backend for bfloat16 on a CPU with AMX: two passes over vocabulary blocks.

With AMX the products are so fast that passes over memory dominate. So a block of logits [R, B] is
computed, used and overwritten while it is in cache, the weight's gradient is written once, and
nothing is accumulated in more than a block.

A logit rounded to bfloat16 is off by up to its size · 2⁻⁹, which costs 1–3 % of gradient error. So
what is rounded is log P: the row's normaliser enters the product, which is summed in float32, as
further columns of the hidden states. The relative error of P is then |log P| · 2⁻⁹, which is small
where P is large; where P is small it hardly adds to a gradient.

1. Statistics: relative to the normaliser of the entries seen so far, which begin with the target,
   whose logit is computed in float32. Where a block outweighs all before it, its logits are large
   relative to that normaliser and rounding would show: it is recomputed in float32.
2. Gradients: relative to the normaliser itself.

Buffers are made once: fresh pages cost more than the product that fills them.

Shapes: M target rows, R of them at a time, D width, V vocabulary, B entries of a block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deft.objectives.base import Objective, TokenStats
from deft.objectives.head.interface import HeadInputs, HeadResult, Wanted, apply_objective
from deft.objectives.head.matmul import fast_float32_products, has_fast_bfloat16

_ROWS = 2048
_ENTRIES = 4096
# Width of the columns that carry normaliser and bias; bfloat16 units work in steps of 32.
_EXTRA = 32
_STATISTICS = frozenset({"concentration", "entropy", "top_logp"})
# A block's Σ e^z, in units of the sum before it, from which on rounding its logits would show.
_OUTWEIGHS = 2.0
# A logit, relative to the normaliser, that adds 0 to every sum: e^z is 0 and so is z · e^z, which
# for −inf would be NaN.
_NOTHING = -1e4


def fits(inputs: HeadInputs, objective: Objective, wanted: Wanted) -> bool:
    """Tell whether the request can be computed block by block, and faster than by chunks.

    Without AMX the four products of two passes took 1.17 of plain NLL's time, the three of
    `chunked` 0.71; and the product that carries the normaliser is not summed in float32, so that
    with large logits gradients were off by 5 %.
    """
    return (
        has_fast_bfloat16(inputs.hidden.device)
        and inputs.hidden.dtype == torch.bfloat16
        and inputs.softcap is None
        and objective.target is None
        and wanted.statistics <= _STATISTICS
    )


@torch.no_grad()
def blocked_head(inputs: HeadInputs, objective: Objective, wanted: Wanted) -> HeadResult:
    """Compute value, gate and gradients with one block of logits at a time."""
    M, V = len(inputs.labels), len(inputs.weight)
    logits = inputs.weight.new_empty(min(M, _ROWS) * min(V, _ENTRIES))
    stats, normalizer = _statistics(inputs, wanted.statistics, logits)
    output = apply_objective(objective, stats)
    if not wanted.gradients:
        return HeadResult(stats, output, None, None, None)
    return HeadResult(
        stats, output, *_gradients(inputs, wanted, stats, normalizer, output.gate, logits)
    )


def _statistics(
    inputs: HeadInputs, wanted: frozenset[str], logits: Tensor
) -> tuple[TokenStats, Tensor]:
    """Compute the rows' statistics [M] and log Σ e^z [M]."""
    M, V, D = len(inputs.labels), *inputs.weight.shape
    target = (inputs.hidden.float() * inputs.weight[inputs.labels]).sum(-1)
    if inputs.bias is not None:
        target += inputs.bias[inputs.labels]
    seen = _Seen(M)
    hidden = _extended_hidden(inputs.hidden)
    extended = _extended_weight(inputs, min(V, _ENTRIES))
    scratch = torch.empty_like(logits) if "entropy" in wanted else logits
    # The first blocks are short: while little has been seen, a block is likely to outweigh it.
    for block in _doubling_slices(V, _ENTRIES):
        weight = _fill(extended, inputs, block)
        if not bool(weight.sum().isfinite()):
            # No sum would show a logit of −inf.
            seen.log_sum.fill_(torch.nan)
        for rows in _slices(M, _ROWS):
            normalizer = target[rows] + seen.log_sum[rows]
            hidden[rows, D : D + 3] = _as_three(-normalizer)
            z = _view(logits, _size(rows), len(weight))
            torch.mm(hidden[rows], weight.T, out=z)
            # The target has been counted already, in float32.
            z[_targets(inputs.labels[rows], block)] = _NOTHING
            sums = _sums(z, _view(scratch, *z.shape), wanted)
            shift = torch.zeros_like(normalizer)
            heavy = (sums[0] > _OUTWEIGHS).nonzero().squeeze(-1)
            if len(heavy):
                shift[heavy], sums[:, heavy] = _float32_sums(
                    inputs, rows.start + heavy, normalizer[heavy], block, wanted
                )
            seen.add(rows, shift, sums)

    logp = -seen.log_sum
    stats = TokenStats(
        logp=logp,
        p=logp.exp(),
        mask=torch.ones(M, dtype=torch.bool),
        concentration=seen.squares if "concentration" in wanted else None,
        entropy=-seen.products if "entropy" in wanted else None,
        top_logp=seen.top if "top_logp" in wanted else None,
        step_mean_p=inputs.step_mean_p,
    )
    return stats, target + seen.log_sum


class _Seen:
    """Running sums over the entries so far, P being their shares of Σ e^z; all float32 [M].

    The target is the first entry, so log P = 0 and every sum is finite from the start.
    """

    def __init__(self, rows: int) -> None:
        self.log_sum = torch.zeros(rows)
        """log Σ e^z less the target's logit."""
        self.squares = torch.ones(rows)
        """Σ P²."""
        self.products = torch.zeros(rows)
        """Σ P log P."""
        self.top = torch.zeros(rows)
        """The largest log P."""

    def add(self, rows: slice, shift: Tensor, block: Tensor) -> None:
        """Add a block's `_sums` [4, R], its z being relative to log Σ e^z + shift [R]."""
        sums, squares, products, top = block
        # With n the normaliser before, the block's sum s is relative to n + shift, and the new
        # normaliser is n + shift + growth, growth = log(e^(−shift) + s). Shares of the old and the
        # new entries shrink by `before` and `share`; log P falls by what the normaliser rises.
        growth = torch.log1p(sums + torch.expm1(-shift))
        share, before = torch.exp(-growth), torch.exp(-growth - shift)
        self.log_sum[rows] += shift + growth
        self.squares[rows] = before.square() * self.squares[rows] + share.square() * squares
        self.products[rows] = before * (self.products[rows] - shift - growth)
        self.products[rows] += share * (products - sums * growth)
        self.top[rows] = torch.maximum(self.top[rows] - shift, top) - growth


def _sums(z: Tensor, scratch: Tensor, wanted: frozenset[str]) -> Tensor:
    """Compute Σ e^z, Σ e^2z, Σ z e^z and max z of the rows of z [R, B], as float32 [4, R].

    Sums that are not wanted are 0. PyTorch adds in float32 and rounds a block's sum once to the
    dtype of z. Overwrites z, and scratch, which may be z without entropy.
    """
    sums = torch.zeros(4, len(z))
    if "top_logp" in wanted:
        sums[3] = z.amax(-1)
    e = torch.exp(z, out=scratch)
    sums[0] = e.sum(-1)
    if "concentration" in wanted:
        # A norm squares and sums in float32, where e · e would be rounded and stored.
        sums[1] = torch.linalg.vector_norm(e, dim=-1).float().square()
    if "entropy" in wanted:
        sums[2] = z.mul_(e).sum(-1)
    return sums


def _float32_sums(
    inputs: HeadInputs, rows: Tensor, normalizer: Tensor, block: slice, wanted: frozenset[str]
) -> tuple[Tensor, Tensor]:
    """Compute `_sums` of some rows' float32 logits less the normaliser, and the sums' shift.

    The shift [R] is the largest logit, or 0 if that is negative.
    """
    hidden, weight = inputs.hidden[rows].float(), inputs.weight[block].float()
    with fast_float32_products(inputs.hidden.dtype, inputs.hidden.device):
        z = hidden @ weight.T
    if inputs.bias is not None:
        z += inputs.bias[block]
    z -= normalizer[:, None]
    z[_targets(inputs.labels[rows], block)] = _NOTHING
    shift = z.amax(-1).clamp_(min=0)
    z -= shift[:, None]
    return shift, _sums(z, torch.empty_like(z), wanted)


def _gradients(
    inputs: HeadInputs,
    wanted: Wanted,
    stats: TokenStats,
    normalizer: Tensor,
    gate: Tensor,
    logits: Tensor,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Compute gradients of hidden states [M, D], weight [V, D] and bias [V]."""
    V, D = inputs.weight.shape
    active = gate.nonzero().squeeze(-1)
    labels, gate = inputs.labels[active], gate[active, None]
    at_target = torch.expm1(stats.logp[active]).to(torch.bfloat16)
    hidden = _extended_hidden(inputs.hidden[active])
    hidden[:, D : D + 3] = _as_three(-normalizer[active])
    gated = (hidden[:, :D] * gate).to(torch.bfloat16)

    # The hidden states' gradient is summed over all blocks and so stays in float32, transposed like
    # the products; the weight's is final within a block and goes straight to the weight's dtype.
    grad_hidden = torch.zeros(D, len(active)) if wanted.hidden else None
    grad_weight = torch.empty_like(inputs.weight) if wanted.weight else None
    grad_bias = torch.zeros(V) if wanted.bias else None
    blocks, chunks = _slices(V, _ENTRIES), _slices(len(active), _ROWS)
    B, R = min(V, _ENTRIES), min(len(active), _ROWS)
    extended = _extended_weight(inputs, B)
    transposed = inputs.weight.new_empty(D, B)
    product = inputs.weight.new_empty(D * R)
    parts = inputs.weight.new_empty(len(chunks), B, D)
    total = torch.empty(B, D)
    for block in blocks:
        weight = _fill(extended, inputs, block)
        weight_t = transposed[:, : len(weight)].copy_(weight[:, :D].T)
        for part, rows in zip(parts[:, : len(weight)], chunks, strict=True):
            # [B, R] and [D, R], because a product with a transposed left side takes twice the time.
            error = _view(logits, len(weight), _size(rows))
            torch.mm(weight, hidden[rows].T, out=error).exp_()
            here, entry = _targets(labels[rows], block)
            error[entry, here] = at_target[rows][here]
            if grad_hidden is not None:
                out = _view(product, D, _size(rows))
                grad_hidden[:, rows] += torch.mm(weight_t, error, out=out)
            if grad_weight is not None:
                torch.mm(error, gated[rows], out=grad_weight[block] if len(chunks) == 1 else part)
            if grad_bias is not None:
                grad_bias[block] += (error @ gate[rows].to(error.dtype)).squeeze(1)
        # Several chunks' shares are added in float32 and rounded once.
        if grad_weight is not None and len(chunks) != 1:
            torch.sum(parts[:, : len(weight)], 0, dtype=torch.float32, out=total[: len(weight)])
            grad_weight[block] = total[: len(weight)]
    if grad_hidden is not None:
        scattered = torch.zeros(len(inputs.labels), D)
        grad_hidden = scattered.index_copy_(0, active, grad_hidden.T * gate)
    return grad_hidden, grad_weight, grad_bias


def _extended_hidden(hidden: Tensor) -> Tensor:
    """Extend hidden [R, D] by columns for the negative normaliser (three, to be set) and bias."""
    D = hidden.shape[1]
    extended = hidden.new_zeros(len(hidden), D + _EXTRA)
    extended[:, :D] = hidden
    extended[:, D + 3 : D + 6] = 1
    return extended


def _extended_weight(inputs: HeadInputs, entries: int) -> Tensor:
    """Make a buffer for `_fill`."""
    D = inputs.weight.shape[1]
    extended = inputs.weight.new_zeros(entries, D + _EXTRA)
    extended[:, D : D + 3] = 1
    return extended


def _fill(extended: Tensor, inputs: HeadInputs, block: slice) -> Tensor:
    """Copy a block of the weight beside the columns that match those of `_extended_hidden`."""
    D = inputs.weight.shape[1]
    weight = extended[: _size(block)]
    weight[:, :D] = inputs.weight[block]
    if inputs.bias is not None:
        weight[:, D + 3 : D + 6] = _as_three(inputs.bias[block].float())
    return weight


def _targets(labels: Tensor, block: slice) -> tuple[Tensor, Tensor]:
    """Find the rows whose target lies in the block, and its place there."""
    rows = ((labels >= block.start) & (labels < block.stop)).nonzero().squeeze(-1)
    return rows, labels[rows] - block.start


def _as_three(values: Tensor) -> Tensor:
    """Split float32 [K] into bfloat16 [K, 3] that add up to it."""
    # 3 · 8 bits are float32's 24: each part is the rounding error of those before it.
    first = values.to(torch.bfloat16)
    second = (values - first).to(torch.bfloat16)
    return torch.stack([first, second, (values - first - second.float()).to(torch.bfloat16)], -1)


def _view(buffer: Tensor, rows: int, columns: int) -> Tensor:
    return buffer[: rows * columns].view(rows, columns)


def _slices(length: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def _doubling_slices(length: int, most: int) -> list[slice]:
    """Split a length into slices as long as all before them, from most / 8 up to `most`."""
    slices: list[slice] = []
    start = 0
    while start < length:
        stop = min(length, start + min(most, max(start, most // 8)))
        slices.append(slice(start, stop))
        start = stop
    return slices


def _size(rows: slice) -> int:
    return int(rows.stop - rows.start)
