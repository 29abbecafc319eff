"""The matrix products of the `torch` backend: low-precision operands, float32 results.

Rounding a block of logits to bfloat16 costs 1–3 % of gradient error, rounding the weight's gradient
after every chunk 0.5 %, so no product here returns fewer than 32 bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# Rows of the weight that are converted to float32 at a time.
_CONVERTED_ROWS = 2048


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether this is a CPU that multiplies bfloat16 several times as fast as float32.

    That is AMX. AVX-512's bfloat16 lost to float32: 0.80 against 0.71 of plain NLL's time.
    """
    return device.type == "cpu" and bool(torch.cpu.get_capabilities().get("amx_bf16", False))


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


def logits_into(out: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """out [R, V] = hidden [R, D] @ weight.T [D, V] + bias [V]."""
    hidden = _operand(hidden, out)
    for block in _blocks(weight, out):
        _multiply_into(out[:, block], hidden, _operand(weight[block], out).T, accumulate=False)
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
    gated = hidden.to(error.dtype)
    if gate is not None:
        gated = gate[:, None] * gated
    if error.device.type != "cpu":
        error, gated = error.to(weight.dtype), gated.to(weight.dtype)
    for index, block in enumerate(_blocks(weight, error)):
        if grad_hidden is not None:
            operand = _operand(weight[block], grad_hidden)
            _multiply_into(grad_hidden, error[:, block], operand, accumulate=index > 0)
        if grad_weight is not None:
            _multiply_into(grad_weight[block], error[:, block].T, gated, accumulate=accumulate)
    if grad_hidden is not None and gate is not None:
        grad_hidden.mul_(gate[:, None])


def _blocks(weight: Tensor, result: Tensor) -> list[slice]:
    """Rows of the weight that are multiplied at once: all of them unless they must be converted."""
    V = len(weight)
    step = _CONVERTED_ROWS if _operand(weight[:0], result).dtype != weight.dtype else V
    return [slice(start, start + step) for start in range(0, V, step)]


def _operand(tensor: Tensor, result: Tensor) -> Tensor:
    """What to multiply for a float32 result: only CUDA has a product that widens by itself."""
    return tensor.to(result.dtype) if tensor.device.type == "cpu" else tensor


def _multiply_into(out: Tensor, left: Tensor, right: Tensor, *, accumulate: bool) -> None:
    """out (+)= left @ right."""
    if left.dtype == out.dtype:
        if accumulate:
            out.addmm_(left, right)
        else:
            torch.mm(left, right, out=out)
        return
    product = torch.mm(left, right, out_dtype=out.dtype)
    if accumulate:
        out += product
    else:
        out.copy_(product)
