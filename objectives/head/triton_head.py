"""The `triton` backend: the head in tiles on a GPU, with a backward that skips what is gated off.

Statistics pass. Each program walks over a few tiles of the vocabulary, keeps the logits of one tile
in registers and carries running sums; a handful of operations on [splits, M] combine them. The
logits never reach memory. The objective then sees whole [M] vectors, so that statistics over the
batch cost nothing extra.

Backward. Rows whose gated error is below the thresholds everywhere are left out. For one block of
the vocabulary after the other, a kernel recomputes the logits and writes gate · (P − e_y); two more
multiply it into the gradients, the hidden states' over those columns that are live in a tile of
rows, the weight's over those row tiles in which a tile of columns is live. With a the share of
active rows, h that of live columns and w that of live row tiles, all this is
(1 + a + h + w) · 2MVD floating-point operations.

Why a block in memory, and not one kernel that recomputes and adds: a tile's two gradients are
[rows, D] and [columns, D], too large for registers. They would go to memory tile by tile, from
programs that race for it: in float32 some 8 bytes for every 256 to 512 operations, and in bfloat16
the sums would be off by percents. Two kernels, one along the rows and one along the vocabulary,
would recompute the logits for every slice of D that fits in registers: D/256 times instead of once.
A block is written once and read by programs that share it in L2, sums stay in registers, the
weight's gradient is written once and results are the same every time. And once errors are in
memory, what is skipped need not be a whole tile of logits: columns that are live together can be
brought together after the fact. Library products are faster per operation but can skip nothing.

Thresholds. As in cut-cross-entropy (arXiv 2411.09009), errors below 1/32 of the resolution of the
operands' dtype are not worth a product. Here they are the gated errors, and the threshold is
relative to the mean gate, so that an objective with small gates is treated as NLL is. What is live
brings smaller errors along. Most columns are skipped for most rows, and the weights they meet have
a mean: for the hidden states' gradient, skipped errors are replaced, block by block, by the product
of their sum in each row with that mean weight. Without this the gradient is off by percents, since
the skipped tails all pull the same way. Its threshold is 1/128 of the resolution.

With SmolLM2-135M on 2048 tokens of prose and code, at bfloat16's resolution but computed in float32
on a CPU; relative errors are what skipping adds to the hidden states' and the weight's gradient:

    objective         a     h     w     errors          live tiles of 128 × 256 logits
    original          0.99  0.20  0.40  0.24 %, 0.28 %  1.00; 0.90 ordered by mean logit
    DEFT              0.99  0.20  0.40  0.27 %, 0.31 %  1.00; 0.90
    p                 0.97  0.10  0.25  0.37 %, 0.31 %  0.96; 0.74
    GeneralFamily-4   0.59  0.04  0.09  0.59 %, 0.49 %  0.56; 0.40
    OnlyTopP-0.9      0.22  0.01  0.01  1.30 %, 1.11 %  0.16; 0.10

Tiles that are dead as a whole are not found before their logits are recomputed: the last column
says that, beyond the rows that are left out, this would spare next to nothing of one product.

The kernels have been compiled for compute capability 9.0 and interpreted; no figure here is a
measurement on a GPU.

Shapes: M target rows, A of them active, D width, V vocabulary, B columns of a block.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from deft.objectives.base import Objective, TokenStats
from deft.objectives.head.gpu_blocks import top_entropy
from deft.objectives.head.interface import (
    HeadInputs,
    HeadResult,
    Wanted,
    apply_objective,
    weight_gradient_dtype,
)
from deft.objectives.head.softmax_stats import combine_parts
from deft.objectives.head.triton_kernels import (
    error_kernel,
    hidden_gradient_kernel,
    statistics_kernel,
    tiles_for,
    weight_gradient_kernel,
)

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# Bytes for the operands of the widest products; A100, H100 and their successors have them.
_SHARED_MEMORY = 160 * 1024
# Tiles of the vocabulary per program of the statistics pass: with more, processors would idle at
# the end; with fewer, there would be more sums to combine.
_TILES_PER_SPLIT = 8
# Rows and columns are filled up to this, a multiple of every tile.
_TILE = 256
# Least error worth a product, in units of the operands' resolution and of the mean gate.
_WEIGHT_THRESHOLD = 1 / 32
_HIDDEN_THRESHOLD = 1 / 128
# A block of errors takes this much memory, or more where it would be so narrow that adding its
# share to the hidden states' gradient counted beside its products.
_BLOCK_BYTES = 2**28
_MIN_BLOCK_COLUMNS = 4096


def unsupported(inputs: HeadInputs, objective: Objective) -> str | None:
    """Say why this backend cannot compute the request here, or None if it can."""
    return unsupported_request(objective, inputs.hidden.dtype) or _unsupported_device(
        inputs.hidden.device
    )


def unsupported_request(objective: Objective, dtype: torch.dtype) -> str | None:
    """Say why the kernels cannot compute an objective in a dtype, or None if they can."""
    if objective.target is not None:
        return f"{objective.spec} mixes in a second distribution"
    if dtype not in _DTYPES:
        return f"{dtype} is not among {', '.join(map(str, _DTYPES))}"
    return None


def _unsupported_device(device: torch.device) -> str | None:
    if triton.knobs.runtime.interpret:
        return None
    if device.type != "cuda" or torch.version.hip is not None:
        return f"its kernels need an NVIDIA GPU, not {device}"
    properties = torch.cuda.get_device_properties(device)
    available = getattr(properties, "shared_memory_per_block_optin", 0)
    if available < _SHARED_MEMORY:
        return f"its kernels need {_SHARED_MEMORY} bytes of shared memory; {device} has {available}"
    return None


@torch.no_grad()
def triton_head(inputs: HeadInputs, objective: Objective, wanted: Wanted) -> HeadResult:
    """Compute value, gate and gradients without the [M, V] logits, in float32.

    Raises:
        ValueError: `unsupported` gives a reason.
    """
    if reason := unsupported(inputs, objective):
        raise ValueError(f"backend 'triton' cannot be used: {reason}; use backend 'torch'")
    inputs = inputs._replace(hidden=inputs.hidden.contiguous(), weight=inputs.weight.contiguous())
    with torch.cuda.device_of(inputs.hidden):
        stats, log_normalizer = _statistics(inputs, wanted.statistics)
        output = apply_objective(objective, stats, inputs.context)
        gradients = _gradients(inputs, wanted, stats.logp, log_normalizer, output.gate)
    return HeadResult(stats, output, *gradients)


def _statistics(inputs: HeadInputs, wanted: frozenset[str]) -> tuple[TokenStats, Tensor]:
    """Compute the rows' statistics, and log Σ e^z."""
    M, (V, D) = len(inputs.labels), inputs.weight.shape
    tiles = tiles_for(inputs.hidden.dtype, inputs.softcap)
    splits = triton.cdiv(V, tiles.columns * _TILES_PER_SPLIT)
    has_concentration, has_entropy = "concentration" in wanted, "entropy" in wanted
    partial = inputs.hidden.new_empty(
        (3 + has_concentration + has_entropy, splits, M), dtype=torch.float32
    )
    if M:
        statistics_kernel[(triton.cdiv(M, tiles.rows) * splits,)](
            inputs.hidden,
            inputs.weight,
            inputs.bias,
            inputs.labels,
            partial,
            inputs.softcap,
            M,
            V,
            D,
            splits,
            CONCENTRATION=has_concentration,
            ENTROPY=has_entropy,
            TILES_PER_SPLIT=_TILES_PER_SPLIT,
            **tiles.logits(),
        )

    # The splits' sums are relative to their own maxima; this is the kernel's rescaling once more.
    maxima, totals, targets, *others = partial
    sums = combine_parts(
        maxima,
        totals,
        targets,
        squares=others[0] if has_concentration else None,
        moments=others[-1] if has_entropy else None,
    )
    stats = TokenStats(
        logp=sums.logp,
        p=sums.logp.exp(),
        mask=torch.ones_like(sums.logp, dtype=torch.bool),
        concentration=sums.concentration,
        entropy=sums.entropy,
        # The largest logits of all tiles would take a product more in the kernel as well: there is
        # no place in registers to sort a tile. Library calls do it, block by block.
        entropy_top=top_entropy(inputs) if "entropy_top" in wanted else None,
        top_logp=-sums.log_total if "top_logp" in wanted else None,
        step_mean_p=inputs.step_mean_p,
    )
    return stats, sums.largest + sums.log_total


class _Active(NamedTuple):
    """The rows that the backward works on; [A] or [A, D], filled up to whole tiles."""

    size: int
    """Rows before filling up."""
    rows: Tensor
    """int64: their places among all rows."""
    hidden: Tensor
    labels: Tensor
    log2_normalizer: Tensor
    """log₂ Σ e^z."""
    target_error: Tensor
    """p − 1."""
    gate: Tensor
    """Relative to `scale`; 0 where filled up."""
    scale: Tensor
    """Scalar: the largest gate. Errors are stored relative to it: float16 has no small numbers."""
    thresholds: Tensor
    """[2], for the weight's and for the hidden states' gradient; relative to `scale`."""


def _gradients(
    inputs: HeadInputs, wanted: Wanted, logp: Tensor, log_normalizer: Tensor, gate: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Compute gradients of the summed value in hidden [M, D], weight [V, D] and bias [V]."""
    V, D = inputs.weight.shape

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=gate.device)

    grad_hidden = empty(*inputs.hidden.shape).zero_() if wanted.hidden else None
    grad_weight = None
    if wanted.weight:
        grad_weight = empty(V, D, dtype=weight_gradient_dtype(inputs.weight.dtype))
    grad_bias = empty(V) if wanted.bias else None
    active = _active_rows(inputs, logp, log_normalizer, gate) if wanted.gradients else None
    if active is None or active.size == 0:
        for gradient in (grad_weight, grad_bias):
            if gradient is not None:
                gradient.zero_()
        return grad_hidden, grad_weight, grad_bias

    A, itemsize = len(active.rows), inputs.hidden.itemsize
    step = max(_BLOCK_BYTES // (A * itemsize), _MIN_BLOCK_COLUMNS)
    step = min(_whole_tiles(step), _whole_tiles(V))
    # One buffer serves all blocks: kernels on one stream run in order.
    buffer = inputs.hidden.new_empty((step, A))
    skipped: list[tuple[Tensor, Tensor]] = []
    for first in range(0, V, step):
        block = range(first, min(first + step, V))
        errors = _errors(inputs, active, block, buffer)
        if grad_hidden is not None:
            _add_to_hidden_gradient(grad_hidden, inputs, active, block, errors)
            skipped.append(_skipped(inputs, block, errors))
        if grad_weight is not None:
            _write_weight_gradient(grad_weight, inputs, active, block, errors)
        if grad_bias is not None:
            sums = errors.column_sums.sum(0)[: len(block)]
            grad_bias[block.start : block.stop] = active.scale * sums
    if grad_hidden is not None:
        # A product of rank "number of blocks" adds all replacements of skipped errors at once.
        sums, mean_weights = (torch.stack(parts) for parts in zip(*skipped, strict=True))
        rows = active.rows[: active.size]
        grad_hidden.index_add_(0, rows, sums.T[: active.size] @ mean_weights)
        grad_hidden *= active.scale
    return grad_hidden, grad_weight, grad_bias


def _active_rows(inputs: HeadInputs, logp: Tensor, log_normalizer: Tensor, gate: Tensor) -> _Active:
    """Select rows with an entry of gate · (P − e_y) that reaches a threshold."""
    magnitude = gate.abs()
    # The mean over rows that count at all: dropped tokens would lower the threshold of the others.
    mean = magnitude.sum() / magnitude.count_nonzero().clamp(min=1)
    resolution = torch.finfo(inputs.hidden.dtype).eps
    thresholds = mean * mean.new_tensor((_WEIGHT_THRESHOLD, _HIDDEN_THRESHOLD)) * resolution
    # No entry of P − e_y is larger than the target's, 1 − p.
    target_error = torch.expm1(logp)
    largest = magnitude * target_error.abs()
    rows = ((largest >= thresholds[1]) & (largest > 0)).nonzero().squeeze(-1)
    size = len(rows)
    # Filled up with row 0 at a gate of 0: its errors are 0, and its place is never written.
    rows = F.pad(rows, (0, -size % _TILE))
    scale = magnitude[rows[:size]].amax() if size else mean
    gate = gate[rows] / scale
    gate[size:] = 0
    return _Active(
        size=size,
        rows=rows,
        hidden=inputs.hidden[rows],
        labels=inputs.labels[rows],
        log2_normalizer=log_normalizer[rows] / math.log(2),
        target_error=target_error[rows],
        gate=gate,
        scale=scale,
        thresholds=thresholds / scale,
    )


class _Errors(NamedTuple):
    """Output of `error_kernel` for a block; R row tiles."""

    errors: Tensor
    """[B, A]."""
    live: Tensor
    """int8 [R, B]: 2 where a column counts for both gradients, 1 for the hidden states' only."""
    column_sums: Tensor
    """[R, B]."""
    skipped_rows: Tensor
    """[A]: sums over the columns that are left out of the hidden states' gradient."""


def _errors(inputs: HeadInputs, active: _Active, block: range, buffer: Tensor) -> _Errors:
    """Compute the gated errors of one block of the vocabulary into the buffer."""
    tiles = tiles_for(inputs.hidden.dtype, inputs.softcap)
    A, row_tiles = len(active.rows), len(active.rows) // tiles.rows
    column_tiles = triton.cdiv(len(block), tiles.columns)
    live = torch.empty(
        (row_tiles, _whole_tiles(len(block))), dtype=torch.int8, device=buffer.device
    )
    column_sums = active.gate.new_empty(live.shape)
    skipped_rows = active.gate.new_empty((column_tiles, A))
    error_kernel[(row_tiles * column_tiles,)](
        active.hidden,
        inputs.weight,
        inputs.bias,
        active.labels,
        active.log2_normalizer,
        active.target_error,
        active.gate,
        active.thresholds,
        buffer,
        live,
        skipped_rows,
        column_sums,
        inputs.softcap,
        row_tiles,
        len(block),
        inputs.weight.shape[1],
        A,
        live.stride(0),
        block.start,
        **tiles.logits(),
    )
    # Beyond the last tile of logits nothing was written.
    live[:, len(block) :] = 0
    return _Errors(buffer, live, column_sums, skipped_rows.sum(0))


def _add_to_hidden_gradient(
    gradient: Tensor, inputs: HeadInputs, active: _Active, block: range, errors: _Errors
) -> None:
    """Add the block's live columns, relative to the active rows' scale."""
    tiles = tiles_for(inputs.hidden.dtype, inputs.softcap)
    D = inputs.weight.shape[1]
    columns, counts = _places_of_true(errors.live >= 1)
    hidden_gradient_kernel[(len(counts) * triton.cdiv(D, tiles.width),)](
        errors.errors,
        inputs.weight,
        columns,
        counts,
        active.rows,
        gradient,
        active.size,
        D,
        len(active.rows),
        columns.stride(0),
        block.start,
        **tiles.gradient(),
    )


def _skipped(inputs: HeadInputs, block: range, errors: _Errors) -> tuple[Tensor, Tensor]:
    """Return the sum of each row's skipped errors [A], and the mean weight they meet [D]."""
    # A column's weight in the mean is its total error over the row tiles that skip it.
    sums = errors.column_sums.abs().masked_fill_(errors.live >= 1, 0).sum(0)[: len(block)]
    share = sums / sums.sum().clamp(min=torch.finfo(sums.dtype).tiny)
    mean_weight = share.to(inputs.weight.dtype) @ inputs.weight[block.start : block.stop]
    return errors.skipped_rows, mean_weight.to(sums.dtype)


def _write_weight_gradient(
    gradient: Tensor, inputs: HeadInputs, active: _Active, block: range, errors: _Errors
) -> None:
    """Write the block's rows of the gradient."""
    tiles = tiles_for(inputs.hidden.dtype, inputs.softcap)
    D, live = inputs.weight.shape[1], errors.live == 2
    # A tile of columns costs a product wherever one of them is live. Sorted by how often they are,
    # columns that are live together share tiles; a stable sort keeps results the same every time.
    order = live.sum(0).argsort(descending=True, stable=True)
    live_tiles = live[:, order].view(len(live), -1, tiles.rows).any(-1).T
    row_tiles, counts = _places_of_true(live_tiles)
    weight_gradient_kernel[(len(counts) * triton.cdiv(D, tiles.width),)](
        errors.errors,
        active.hidden,
        order.to(torch.int32),
        row_tiles,
        counts,
        active.scale,
        gradient,
        len(block),
        D,
        len(active.rows),
        row_tiles.stride(0),
        block.start,
        **tiles.gradient(),
    )


def _places_of_true(mask: Tensor) -> tuple[Tensor, Tensor]:
    """List where each row of a mask [R, K] is true, followed by zeros, and how often; int32."""
    # `nonzero` would make the host wait for its size; a running count gives every true its place.
    rows, width = mask.shape
    running = mask.cumsum(1)
    # What is false is written to one column too many.
    destination = torch.where(mask, running - 1, width)
    places = torch.zeros((rows, width + 1), dtype=torch.int32, device=mask.device)
    numbers = torch.arange(width, dtype=torch.int32, device=mask.device)
    places.scatter_(1, destination, numbers.expand(rows, width))
    places[:, width] = 0
    return places, running[:, -1].to(torch.int32)


def _whole_tiles(size: int) -> int:
    return -(-size // _TILE) * _TILE
