"""The matrix products of the `torch` backend: low-precision operands, float32 results.

Why float32 results: a bfloat16 number has 8 significant bits. A logit of 20 would be stored with
an error of up to 0.06, hence P with one of 6 %; over a block of logits that costs 1–3 % of gradient
error. Rounding the weight's gradient after every chunk of rows costs 0.5 %, because each rounding
is relative to the sum so far and not to what is added. Operands may be rounded: their errors are
independent and average out over the summed dimension.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from deft.objectives.head.interface import accumulation_dtype

# Rows of the weight that are converted to float32 at a time: enough for an efficient product, and
# with D = 4096 32 MiB instead of a float32 copy of the whole weight.
_CONVERTED_ROWS = 2048


def has_fast_bfloat16(device: torch.device) -> bool:
    """Tell whether this is a CPU that multiplies bfloat16 several times as fast as float32.

    That is AMX. AVX-512's bfloat16 lost to float32: 0.80 against 0.71 of plain NLL's time.
    """
    return device.type == "cpu" and bool(torch.cpu.get_capabilities().get("amx_bf16", False))


def has_native_bfloat16(device: torch.device) -> bool:
    """Tell whether this is a CPU whose bfloat16 products of bfloat16 operands sum in float32.

    On AMD's AVX-512 they are 2.2 times as fast as float32's, whose operands are converted first.
    """
    if device.type != "cpu":
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("amx_bf16", "avx512_bf16"))


@contextmanager
def fast_float32_products(operands: torch.dtype, device: torch.device) -> Iterator[None]:
    """Let oneDNN multiply float32 copies of bfloat16 operands in bfloat16, where that is faster.

    The copies are exact and sums stay in float32, so of the products in the head only the errors
    P − e_y and the gated hidden states are rounded. The setting is the process's: it is put back.
    """
    if operands != torch.bfloat16 or not has_fast_bfloat16(device):
        yield
        return
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before


def widening_product(left: Tensor, right: Tensor) -> Tensor:
    """Compute left @ right in the accumulation dtype, from operands as they are stored.

    Only a GPU has such a product; a CPU converts the operands.
    """
    dtype = accumulation_dtype(left.dtype)
    if left.dtype == dtype:
        return left @ right
    if left.numel() == 0:
        return left.new_zeros((left.shape[0], right.shape[1]), dtype=dtype)
    if left.device.type == "cpu":
        return left.to(dtype) @ right.to(dtype)
    return torch.mm(left, right, out_dtype=dtype)


def logits_into(out: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Compute out [R, V] = hidden [R, D] @ weight.T [D, V] + bias [V]."""
    hidden = hidden.to(out.dtype)
    for block in _blocks(weight, out):
        torch.mm(hidden, weight[block].to(out.dtype).T, out=out[:, block])
    if bias is not None:
        out += bias


def gradients_into(
    grad_hidden: Tensor | None,
    grad_weight: Tensor | None,
    error: Tensor,
    hidden: Tensor,
    weight: Tensor,
    gate: Tensor | None,
    *,
    accumulate: bool,
) -> None:
    """Write a chunk's gradients.

    grad_hidden [R, D] = gate · (error @ weight), grad_weight [V, D] (+)= error.T @ (gate · hidden).
    Scaling the narrow side by the gate [R] spares a pass over error [R, V].
    """
    # gate · (error @ W) = (gate · error) @ W and errorᵀ @ (gate · h) = (gate · error)ᵀ @ h, so the
    # gate may scale the D columns of a result or operand instead of the V columns of the error.
    gated = hidden.to(error.dtype)
    if gate is not None:
        gated = gate[:, None] * gated
    for index, block in enumerate(_blocks(weight, error)):
        # Errors stay in float32: without AMX a CPU multiplies it faster, and with AMX oneDNN rounds
        # by itself, see `fast_float32_products`.
        part = error[:, block]
        if grad_hidden is not None:
            operand = weight[block].to(error.dtype)
            _multiply_into(grad_hidden, part, operand, accumulate=index > 0)
        if grad_weight is not None:
            _multiply_into(grad_weight[block], part.T, gated, accumulate=accumulate)
    if grad_hidden is not None and gate is not None:
        grad_hidden.mul_(gate[:, None])


def _blocks(weight: Tensor, result: Tensor) -> list[slice]:
    """Split the weight's rows into those multiplied at once: all, unless that takes a copy."""
    step = len(weight) if weight.dtype == result.dtype else _CONVERTED_ROWS
    return [slice(start, start + step) for start in range(0, len(weight), step)]


def _multiply_into(out: Tensor, left: Tensor, right: Tensor, *, accumulate: bool) -> None:
    """Compute out (+)= left @ right."""
    if accumulate:
        out.addmm_(left, right)
    else:
        torch.mm(left, right, out=out)
