"""The `torch` backend's way with bfloat16 on a CPU with AMX: two passes over vocabulary blocks.

With AMX the products are so fast that passes over memory decide. So a block of logits
[R, B] is made, used and forgotten while it is in cache, the weight's gradient is written once, and
nothing is accumulated in more than a block.

1. Statistics need logits in float32: rounded to bfloat16 they cost 1–3 % of gradient error. Running
   sums are rescaled when the maximum moves.
2. For the gradients the normaliser is known. It enters the product as further columns of the
   hidden states, so that what is rounded to bfloat16 is log P and not the logit: an error of
   |log P| · 2⁻⁹ in P, next to nothing where P is large.

Buffers are made once: fresh pages cost more than the product that fills them.

Shapes: M target rows, R of them at a time, D width, V vocabulary, B entries of a block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deft.objectives.base import Objective, TokenStats
from deft.objectives.head import HeadInputs, HeadResult, Wanted, apply_objective
from deft.objectives.products import fast_float32_products, has_fast_bfloat16

_ROWS = 2048
_ENTRIES = 2048
# Width of the columns that carry normaliser and bias; bfloat16 units work in steps of 32.
_EXTRA = 32
_STATISTICS = frozenset({"concentration", "entropy", "top_logp"})


def fits(inputs: HeadInputs, objective: Objective, wanted: Wanted) -> bool:
    """Whether everything that is asked for can be had block by block, and exactly.

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
    """Value, gate and gradients with one block of logits at a time."""
    stats, log_normalizer = _statistics(inputs, wanted.statistics)
    output = apply_objective(objective, stats)
    if not wanted.gradients:
        return HeadResult(stats, output, None, None, None)
    return HeadResult(
        stats, output, *_gradients(inputs, wanted, stats, log_normalizer, output.gate)
    )


def _statistics(inputs: HeadInputs, wanted: frozenset[str]) -> tuple[TokenStats, Tensor]:
    """The rows' statistics [M] and log Σ e^z [M]."""
    M, V = len(inputs.labels), len(inputs.weight)
    hidden = inputs.hidden.float()
    bias = torch.zeros(V) if inputs.bias is None else inputs.bias.float()
    largest = torch.full((M, 1), -torch.inf)
    # Σ e^z, Σ e^2z and Σ z e^z relative to the largest logit so far, and Σ z to see the infinite.
    sums, squares, products, total = (torch.zeros(M, 1) for _ in range(4))
    logits = torch.empty(min(M, _ROWS) * _ENTRIES)
    scratch = torch.empty_like(logits)
    converted = torch.empty(min(V, _ENTRIES), inputs.weight.shape[1])
    with fast_float32_products(inputs.hidden.dtype, inputs.hidden.device):
        for block in _slices(V, _ENTRIES):
            weight = converted[: _size(block)].copy_(inputs.weight[block])
            for rows in _slices(M, _ROWS):
                z = logits[: _size(rows) * len(weight)].view(_size(rows), len(weight))
                torch.mm(hidden[rows], weight.T, out=z)
                if inputs.bias is not None:
                    z += bias[block]
                top = torch.maximum(largest[rows], z.amax(-1, keepdim=True))
                moved = largest[rows] - top
                largest[rows] = top
                total[rows] += z.sum(-1, keepdim=True)
                z -= top
                scale = moved.exp()
                e = torch.exp(z, out=scratch[: z.numel()].view_as(z))
                if "entropy" in wanted:
                    shift = torch.where(moved.isfinite(), moved, 0) * sums[rows]
                    products[rows] = scale * (products[rows] + shift)
                    products[rows] += z.mul_(e).sum(-1, keepdim=True)
                sums[rows] = scale * sums[rows] + e.sum(-1, keepdim=True)
                if "concentration" in wanted:
                    squares[rows] *= scale.square()
                    squares[rows] += torch.linalg.vector_norm(e, dim=-1, keepdim=True).square_()

    log_sums = sums.log()
    target_logit = (hidden * inputs.weight[inputs.labels]).sum(-1, keepdim=True)
    target_logit += bias[inputs.labels, None]
    logp = (target_logit - largest - log_sums).clamp_(max=0)
    logp.masked_fill_(~total.isfinite(), torch.nan)
    stats = TokenStats(
        logp=logp.squeeze(1),
        p=logp.exp().squeeze(1),
        mask=torch.ones(M, dtype=torch.bool),
        concentration=(squares / sums.square()).squeeze(1) if "concentration" in wanted else None,
        entropy=(log_sums - products / sums).squeeze(1) if "entropy" in wanted else None,
        top_logp=-log_sums.squeeze(1) if "top_logp" in wanted else None,
        step_mean_p=inputs.step_mean_p,
    )
    return stats, (largest + log_sums).squeeze(1)


def _gradients(
    inputs: HeadInputs, wanted: Wanted, stats: TokenStats, log_normalizer: Tensor, gate: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of hidden states [M, D], weight [V, D] and bias [V]."""
    V, D = inputs.weight.shape
    active = gate.nonzero().squeeze(-1)
    labels, gate = inputs.labels[active], gate[active, None]
    at_target = torch.expm1(stats.logp[active]).to(torch.bfloat16)
    hidden = inputs.hidden.new_zeros(len(active), D + _EXTRA)
    hidden[:, :D] = inputs.hidden[active]
    hidden[:, D : D + 3] = _as_three(-log_normalizer[active])
    hidden[:, D + 3 : D + 6] = 1
    gated = (hidden[:, :D] * gate).to(torch.bfloat16)

    grad_hidden = torch.zeros(D, len(active)) if wanted.hidden else None
    grad_weight = torch.empty_like(inputs.weight) if wanted.weight else None
    grad_bias = torch.zeros(V) if wanted.bias else None
    blocks, chunks = _slices(V, _ENTRIES), _slices(len(active), _ROWS)
    B, R = min(V, _ENTRIES), min(len(active), _ROWS)
    extended = inputs.weight.new_zeros(B, D + _EXTRA)
    extended[:, D : D + 3] = 1
    errors = inputs.weight.new_empty(B * R)
    transposed = inputs.weight.new_empty(D, B)
    product = inputs.weight.new_empty(D * R)
    parts = inputs.weight.new_empty(len(chunks), B, D)
    total = torch.empty(B, D)
    for block in blocks:
        weight = extended[: _size(block)]
        weight[:, :D] = inputs.weight[block]
        if inputs.bias is not None:
            weight[:, D + 3 : D + 6] = _as_three(inputs.bias[block].float())
        weight_t = transposed[:, : len(weight)].copy_(weight[:, :D].T)
        for part, rows in zip(parts[:, : len(weight)], chunks, strict=True):
            # [B, R] and [D, R], because a product with a transposed left side takes twice the time.
            error = errors[: len(weight) * _size(rows)].view(len(weight), _size(rows))
            torch.mm(weight, hidden[rows].T, out=error).exp_()
            here = ((labels[rows] >= block.start) & (labels[rows] < block.stop)).nonzero()[:, 0]
            error[labels[rows][here] - block.start, here] = at_target[rows][here]
            if grad_hidden is not None:
                out = product[: D * _size(rows)].view(D, _size(rows))
                grad_hidden[:, rows] += torch.mm(weight_t, error, out=out)
            if grad_weight is not None:
                torch.mm(error, gated[rows], out=grad_weight[block] if len(chunks) == 1 else part)
            if grad_bias is not None:
                grad_bias[block] += (error @ gate[rows].to(error.dtype)).squeeze(1)
        if grad_weight is not None and len(chunks) != 1:
            torch.sum(parts[:, : len(weight)], 0, dtype=torch.float32, out=total[: len(weight)])
            grad_weight[block] = total[: len(weight)]
    if grad_hidden is not None:
        scattered = torch.zeros(len(inputs.labels), D)
        grad_hidden = scattered.index_copy_(0, active, grad_hidden.T * gate)
    return grad_hidden, grad_weight, grad_bias


def _as_three(values: Tensor) -> Tensor:
    """float32 [K] as bfloat16 [K, 3] that add up to it."""
    first = values.to(torch.bfloat16)
    second = (values - first).to(torch.bfloat16)
    return torch.stack([first, second, (values - first - second.float()).to(torch.bfloat16)], -1)


def _slices(length: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def _size(rows: slice) -> int:
    return int(rows.stop - rows.start)
