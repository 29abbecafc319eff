"""The kernels of the `triton` backend, and the tiles they are launched with.

Every product reads its operands as they are stored and sums in float32. No two programs write to
one place, so results do not depend on the order in which they run.

Shapes: M rows, D width, V vocabulary, S splits of the vocabulary; A rows that are active in the
backward and B columns of one block of the vocabulary, both filled up to whole tiles. Tensors are
contiguous unless a stride is given.
"""

# Triton's own language: functions without types, compile-time arguments in capitals.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# ruff: noqa: N803

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

# Row tiles whose programs run side by side, so that their common tile of the weight is in L2.
GROUP = 16
LOG2_E = tl.constexpr(1.4426950408889634)
"""log₂ e. Kernels take powers of 2: the exponential of a GPU is one, and Triton's `exp` guards it
against results below 2⁻¹²⁶ by three instructions more, where `exp2` lets them be 0."""


class Tiles(NamedTuple):
    """Tile sizes of one program, fitted to Hopper's registers and shared memory."""

    rows: int
    """Rows of a tile of logits, and the granularity in which rows are live or not."""
    columns: int
    """Columns of a tile of logits."""
    width: int
    """Columns of a tile of a gradient; it has `rows` rows."""
    depth: int
    """Step of every product along the dimension that is summed."""
    num_warps: int

    def logits(self) -> dict[str, int]:
        """Launch options of the kernels that compute logits."""
        sizes = {"ROWS": self.rows, "COLUMNS": self.columns, "DEPTH": self.depth, "GROUP": GROUP}
        return sizes | {"num_warps": self.num_warps, "num_stages": 3}

    def gradient(self) -> dict[str, int]:
        """Launch options of the kernels that multiply the errors into a gradient."""
        sizes = {"ROWS": self.rows, "WIDTH": self.width, "DEPTH": self.depth, "GROUP": GROUP}
        # Loads whose addresses are loaded themselves take two stages: with fewer than five none
        # would be under way during a product.
        return sizes | {"num_warps": self.num_warps, "num_stages": 5}


def tiles_for(dtype: torch.dtype, softcap: float | None) -> Tiles:
    """Choose tensor-core tiles for 16-bit operands, smaller ones for float32's multiply-adds."""
    if dtype.itemsize == 2:
        # With the soft cap's derivative at hand as well, a wider tile would not fit in registers.
        columns = 256 if softcap is None else 128
        return Tiles(rows=128, columns=columns, width=256, depth=64, num_warps=8)
    # float32 runs without tensor cores: a thread keeps its share of the accumulator and of both
    # operands in registers, which a 128 × 256 tile would spill.
    return Tiles(rows=64, columns=64, width=64, depth=32, num_warps=4)


@triton.jit
def _place(program, num_row_tiles, num_columns, GROUP: tl.constexpr):
    """Map a program to its row tile and column: down a group of row tiles, then to the right."""
    # Programs start in the order of their numbers. GROUP row tiles side by side multiply the same
    # tile of the weight, which then comes from L2, while their hidden states stay there as well.
    first = program // (GROUP * num_columns) * GROUP
    height = min(num_row_tiles - first, GROUP)
    within = program % (GROUP * num_columns)
    return first + within % height, within // height


@triton.jit
def _add_products(sums, left_ptr, right_ptr, left_rows, right_rows, width, DEPTH: tl.constexpr):
    """Add left @ right.T to sums [LEFT, RIGHT], for rows of both that must exist.

    Rows count from where the pointers point; 32 bits are enough for a tile and spare registers.
    """
    depth = tl.arange(0, DEPTH)
    left_ptrs = left_ptr + left_rows[:, None] * width + depth[None, :]
    right_ptrs = right_ptr + right_rows[None, :] * width + depth[:, None]
    for start in range(0, width, DEPTH):
        # D need not be a multiple of DEPTH: what lies beyond adds 0 · 0 to the sum.
        inside = depth < width - start
        left = tl.load(left_ptrs, mask=inside[None, :], other=0.0)
        right = tl.load(right_ptrs, mask=inside[:, None], other=0.0)
        # "ieee": TF32 would round float32 operands to 11 bits.
        sums = tl.dot(left, right, sums, input_precision="ieee")
        left_ptrs += DEPTH
        right_ptrs += DEPTH
    return sums


@triton.jit
def _soft_cap(logits, softcap):
    """Return softcap · tanh(logits / softcap)."""
    # tanh(x) = 1 − 2 / (1 + exp(2x)) holds for ±inf as well.
    return softcap - 2.0 * softcap / (1.0 + tl.exp2(logits * (2.0 * LOG2_E / softcap)))


@triton.jit(do_not_specialize=["num_rows", "num_splits"])
def statistics_kernel(
    hidden_ptr,
    weight_ptr,
    bias_ptr,
    labels_ptr,
    partial_ptr,
    softcap,
    num_rows,
    vocabulary,
    width,
    num_splits,
    CONCENTRATION: tl.constexpr,
    ENTROPY: tl.constexpr,
    TILES_PER_SPLIT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Sum over one split of the vocabulary for one tile of rows, relative to the split's maximum.

    partial [3 + CONCENTRATION + ENTROPY, S, M], float32: the maximum m; Σ e^(z−m); the target's
    logit, or 0 where it is in another split; Σ e^2(z−m); Σ (z−m) e^(z−m). A row with a logit of
    ±inf or NaN has a NaN among its sums Σ e^(z−m).
    """
    num_row_tiles = tl.cdiv(num_rows, ROWS)
    row_tile, split = _place(tl.program_id(0), num_row_tiles, num_splits, GROUP)
    # M · D and V · D may exceed 2³¹, so where a tile starts is 64 bits wide.
    first_row = row_tile.to(tl.int64) * ROWS
    rows = tl.arange(0, ROWS)
    exists = rows < num_rows - first_row
    labels = tl.load(labels_ptr + first_row + rows, mask=exists, other=-1)
    # Beyond the last row and column the tile repeats the last one. That spares the product a mask;
    # repeated rows are not stored, and repeated columns are left out of the sums below.
    tile_rows = tl.minimum(rows, (num_rows - first_row - 1).to(tl.int32))

    largest = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    target = tl.zeros((ROWS,), tl.float32)
    squares = tl.zeros((ROWS,), tl.float32)
    moment = tl.zeros((ROWS,), tl.float32)
    first_tile = split * TILES_PER_SPLIT
    last_tile = tl.minimum(first_tile + TILES_PER_SPLIT, tl.cdiv(vocabulary, COLUMNS))
    for tile in range(first_tile, last_tile):
        first_column = tile * COLUMNS
        columns = tl.arange(0, COLUMNS)
        tile_columns = tl.minimum(columns, vocabulary - first_column - 1)
        # Starting from the bias, rather than adding it at the end, spares a thread 64 registers.
        logits = tl.zeros((ROWS, COLUMNS), tl.float32)
        if bias_ptr is not None:
            logits += tl.load(bias_ptr + first_column + tile_columns).to(tl.float32)[None, :]
        logits = _add_products(
            logits,
            hidden_ptr + first_row * width,
            weight_ptr + first_column.to(tl.int64) * width,
            tile_rows,
            tile_columns,
            width,
            DEPTH,
        )
        if softcap is not None:
            logits = _soft_cap(logits, softcap)
        # The reduction over the tile runs only where some row has its target in it: once per row
        # over the whole vocabulary.
        local = labels - first_column
        if tl.max(((local >= 0) & (local < COLUMNS)).to(tl.int32), axis=0) > 0:
            is_target = columns[None, :] == local[:, None]
            target += tl.sum(tl.where(is_target, logits, 0.0), axis=1)
        # Online rescaling. With m the maximum so far and m' the new one, what was summed relative
        # to m becomes relative to m' by the factor d = e^(m−m') ≤ 1: Σ e^(z−m') = d · Σ e^(z−m),
        # and for the squares d². Nothing overflows; what underflows is below the sum's last bit.
        # Repeated columns cannot change the maximum, since their originals are in the same tile.
        before = largest
        largest = tl.maximum(largest, tl.max(logits, axis=1))
        shifted = logits - largest[:, None]
        inside = (columns < vocabulary - first_column)[None, :]
        terms = tl.where(inside, tl.exp2(shifted * LOG2_E), 0.0)
        shift = before - largest
        decay = tl.exp2(shift * LOG2_E)
        # exp(−inf) = 0 would hide a logit of −inf, but −inf · 0 is NaN and so is a sum with it. NaN
        # and +inf show by themselves.
        if ENTROPY:
            # Σ (z−m') e^(z−m') = d · (Σ (z−m) e^(z−m) + (m−m') · Σ e^(z−m)). Before the first tile
            # m is −inf and the sums are 0: 0 · −inf would be NaN.
            carried = decay * (moment + tl.where(total == 0.0, 0.0, shift * total))
            in_tile = tl.sum(shifted * terms, axis=1)
            moment = carried + in_tile
            has_infinity = in_tile != in_tile
        else:
            has_infinity = tl.abs(tl.sum(logits, axis=1)) == float("inf")
        if CONCENTRATION:
            squares = decay * decay * squares + tl.sum(terms * terms, axis=1)
        total = decay * total + tl.sum(terms, axis=1)
        total = tl.where(has_infinity, float("nan"), total)

    # Each program writes places of its own, so no atomic additions reorder the sums: results are
    # the same every time, and the few splits are combined by PyTorch.
    plane = num_splits.to(tl.int64) * num_rows
    out_ptrs = partial_ptr + split.to(tl.int64) * num_rows + first_row + rows
    tl.store(out_ptrs, largest, mask=exists)
    tl.store(out_ptrs + plane, total, mask=exists)
    tl.store(out_ptrs + 2 * plane, target, mask=exists)
    if CONCENTRATION:
        tl.store(out_ptrs + 3 * plane, squares, mask=exists)
    if ENTROPY:
        tl.store(out_ptrs + (4 if CONCENTRATION else 3) * plane, moment, mask=exists)


@triton.jit(do_not_specialize=["num_row_tiles", "num_columns", "first"])
def error_kernel(
    hidden_ptr,
    weight_ptr,
    bias_ptr,
    labels_ptr,
    log2_normalizer_ptr,
    target_error_ptr,
    gate_ptr,
    thresholds_ptr,
    error_ptr,
    live_ptr,
    skipped_rows_ptr,
    column_sums_ptr,
    softcap,
    num_row_tiles,
    num_columns,
    width,
    error_stride,
    block_columns,
    first,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Write a tile of a block's gated errors gate · (P − e_y), and where they reach the threshold.

    The block is columns `first` to `first + num_columns` of the vocabulary. For the active rows:
    hidden [A, D], labels [A] int64, and float32 [A] log2_normalizer = log₂ Σ e^z,
    target_error = p − 1 and gate, which is 0 in rows that only fill up.

    error [B, error_stride] has the operands' dtype. live [row tiles, B] int8 says which of the two
    thresholds a column reaches in a tile's rows: 2 both, 1 the second, 0 none.
    Sums, float32: column_sums [row tiles, B] over a tile's rows; skipped_rows [column tiles, A]
    over those of a tile's columns that reach no threshold.
    """
    row_tile, column_tile = _place(
        tl.program_id(0), num_row_tiles, tl.cdiv(num_columns, COLUMNS), GROUP
    )
    first_row, first_column = row_tile.to(tl.int64) * ROWS, column_tile * COLUMNS
    rows, columns = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    # Beyond the last column the tile repeats it: nobody reads what is written there.
    tile_columns = tl.minimum(columns, num_columns - first_column - 1)
    # The tile is [columns, rows], as it is stored. A thread of a tensor core's tile holds many
    # entries along the second axis and few along the first, so the sums and maxima over the rows,
    # two for every column, stay within a thread, and only one over the columns crosses threads.
    logits = tl.zeros((COLUMNS, ROWS), tl.float32)
    if bias_ptr is not None:
        logits += tl.load(bias_ptr + first + first_column + tile_columns).to(tl.float32)[:, None]
    logits = _add_products(
        logits,
        weight_ptr + (first + first_column).to(tl.int64) * width,
        hidden_ptr + first_row * width,
        tile_columns,
        rows,
        width,
        DEPTH,
    )
    if softcap is not None:
        logits = _soft_cap(logits, softcap)

    # gate · (P − e_y). The normalizer in base 2 makes the argument of the power one operation.
    normalizer = tl.load(log2_normalizer_ptr + first_row + rows)
    gate = tl.load(gate_ptr + first_row + rows)
    error = tl.exp2(logits * LOG2_E - normalizer[None, :]) * gate[None, :]
    # The target's entry p − 1 comes from outside as expm1(log p), because 1 − p from the
    # probability computed here loses its digits where the model is almost certain. Most tiles have
    # no target in them.
    local = (tl.load(labels_ptr + first_row + rows) - first - first_column).to(tl.int32)
    if tl.max(((local >= 0) & (local < COLUMNS)).to(tl.int32), axis=0) > 0:
        at_target = tl.load(target_error_ptr + first_row + rows) * gate
        error = tl.where(columns[:, None] == local[None, :], at_target[None, :], error)
    if softcap is not None:
        # The soft cap's derivative, from its result: z = softcap · tanh(·), dz = 1 − tanh².
        tanh = logits * (1.0 / softcap)
        error *= 1.0 - tanh * tanh

    # All decisions and sums are taken from float32, before the error is rounded to be stored.
    place = row_tile * block_columns + first_column + columns
    tl.store(column_sums_ptr + place, tl.sum(error, axis=1))
    # The first threshold is the weight's and the larger one, so the two booleans add up to a level.
    largest = tl.max(tl.abs(error), axis=1)
    is_first = largest >= tl.load(thresholds_ptr)
    is_second = largest >= tl.load(thresholds_ptr + 1)
    tl.store(live_ptr + place, is_first.to(tl.int8) + is_second.to(tl.int8))
    is_skipped = ((columns < num_columns - first_column) & (is_second == 0)).to(tl.float32)
    skipped_rows_ptr += column_tile.to(tl.int64) * num_row_tiles * ROWS + first_row
    tl.store(skipped_rows_ptr + rows, tl.sum(error * is_skipped[:, None], axis=0))
    # The two products gather live columns, which are contiguous in memory along the rows.
    error_ptr += first_column.to(tl.int64) * error_stride + first_row
    error_ptrs = error_ptr + columns[:, None] * error_stride + rows[None, :]
    tl.store(error_ptrs, error.to(error_ptr.dtype.element_ty))


@triton.jit(do_not_specialize=["num_rows", "first"])
def hidden_gradient_kernel(
    error_ptr,
    weight_ptr,
    columns_ptr,
    counts_ptr,
    destination_ptr,
    gradient_ptr,
    num_rows,
    width,
    error_stride,
    columns_stride,
    first,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Add a block's share to the hidden states' gradient: error @ weight, over live columns only.

    columns [row tiles, columns_stride] int32 lists the columns that are live in a row tile, counts
    [row tiles] int32 says how many there are; from there on the list is filled up with any columns
    to a multiple of DEPTH. gradient [M, D] float32; the block's row a is row destination[a] of it.
    """
    row_tile, width_tile = _place(
        tl.program_id(0), tl.cdiv(num_rows, ROWS), tl.cdiv(width, WIDTH), GROUP
    )
    rows = row_tile * ROWS + tl.arange(0, ROWS)
    across = width_tile * WIDTH + tl.arange(0, WIDTH)
    inside = (across < width)[None, :]
    exists = (rows < num_rows)[:, None] & inside
    destination = tl.load(destination_ptr + rows, mask=rows < num_rows, other=0)
    # The accumulator begins with what earlier blocks have left in memory. Blocks are launched one
    # after the other and a program is alone at its place, so this read and write is no race.
    gradient_ptrs = gradient_ptr + destination[:, None] * width + across[None, :]
    gradient = tl.load(gradient_ptrs, mask=exists, other=0.0)

    depth = tl.arange(0, DEPTH)
    error_ptrs = error_ptr + rows[:, None]
    weight_ptrs = weight_ptr + first.to(tl.int64) * width + across[None, :]
    columns_ptrs = columns_ptr + row_tile.to(tl.int64) * columns_stride + depth
    count = tl.load(counts_ptr + row_tile)
    # The sum runs over the gathered columns only: a step takes the next DEPTH names from the list
    # and loads their rows of the error and of the weight, wherever they lie.
    for start in range(0, count, DEPTH):
        columns = tl.load(columns_ptrs + start).to(tl.int64)
        live = (depth < count - start)[None, :]
        error = tl.load(error_ptrs + columns[None, :] * error_stride, mask=live, other=0.0)
        weight = tl.load(weight_ptrs + columns[:, None] * width, mask=inside, other=0.0)
        gradient = tl.dot(error, weight, gradient, input_precision="ieee")
    tl.store(gradient_ptrs, gradient, mask=exists)


@triton.jit(do_not_specialize=["num_columns", "first"])
def weight_gradient_kernel(
    error_ptr,
    hidden_ptr,
    order_ptr,
    row_tiles_ptr,
    counts_ptr,
    scale_ptr,
    gradient_ptr,
    num_columns,
    width,
    error_stride,
    row_tiles_stride,
    first,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Write the weight's gradient for a block: scale · error.T @ hidden, live row tiles only.

    order [B] int32 puts columns together that are live in equally many row tiles. For each tile of
    ROWS columns in that order, row_tiles [column tiles, row_tiles_stride] int32 lists the row tiles
    in which any of them is live, and counts [column tiles] int32 says how many there are. gradient
    [V, D]: every sum is complete when it is rounded to be stored.
    """
    column_tile, width_tile = _place(
        tl.program_id(0), tl.cdiv(num_columns, ROWS), tl.cdiv(width, WIDTH), GROUP
    )
    columns = tl.load(order_ptr + column_tile * ROWS + tl.arange(0, ROWS))
    across = width_tile * WIDTH + tl.arange(0, WIDTH)
    inside = (across < width)[None, :]
    depth = tl.arange(0, DEPTH)
    error_ptrs = error_ptr + columns.to(tl.int64)[:, None] * error_stride + depth[None, :]
    hidden_ptrs = hidden_ptr + depth[:, None] * width + across[None, :]
    row_tiles_ptr += column_tile.to(tl.int64) * row_tiles_stride

    # A row tile is summed in STEPS steps of DEPTH rows. One loop over all steps, rather than two
    # nested ones, lets the compiler prefetch across row tiles.
    STEPS: tl.constexpr = ROWS // DEPTH
    gradient = tl.zeros((ROWS, WIDTH), tl.float32)
    for step in range(tl.load(counts_ptr + column_tile) * STEPS):
        start = tl.load(row_tiles_ptr + step // STEPS) * ROWS + step % STEPS * DEPTH
        error = tl.load(error_ptrs + start)
        hidden = tl.load(hidden_ptrs + start.to(tl.int64) * width, mask=inside, other=0.0)
        gradient = tl.dot(error, hidden, gradient, input_precision="ieee")

    # `order` names columns beyond the vocabulary too, with which the last tile is filled up.
    exists = (columns < num_columns)[:, None] & inside
    gradient_ptrs = gradient_ptr + (first + columns).to(tl.int64)[:, None] * width + across[None, :]
    gradient *= tl.load(scale_ptr)
    tl.store(gradient_ptrs, gradient.to(gradient_ptr.dtype.element_ty), mask=exists)
