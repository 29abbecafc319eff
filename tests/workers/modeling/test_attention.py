"""Packed attention by PyTorch's variable-length kernel, and when it is chosen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen
from transformers import LlamaConfig

from deft.workers.modeling import attention
from deft.workers.modeling.attention import (
    FLASH_ATTN,
    PACKED_ATTENTION,
    choose_attention,
    flash_problem,
    packed_attention,
    packed_keywords,
)

H, G, E = 4, 2, 16
LENGTHS = (5, 1, 9, 3)
T = sum(LENGTHS)


def inputs() -> tuple[list[Tensor], dict[str, Any]]:
    """Return query, key and value as a model makes them, and what tells them where examples are."""
    generator = torch.Generator().manual_seed(0)
    tensors = [
        # A model's projections are [1, T, heads, E]; transformers hands them on transposed.
        torch.randn(1, T, heads, E, generator=generator).transpose(1, 2).requires_grad_()
        for heads in (H, G, G)
    ]
    ends = torch.tensor([0, *LENGTHS]).cumsum(0).to(torch.int32)
    return tensors, packed_keywords(ends, torch.arange(T)[None])


def varlen_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Tensor:
    """Compute what PyTorch documents of its kernel, by a mask over all pairs of positions."""
    assert query.shape == (T, H, E)
    assert key.shape == value.shape == (T, G, E)
    assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
    assert cu_seq_q.dtype == torch.int32
    assert cu_seq_k is cu_seq_q
    assert max_q == max_k == max(cu_seq_q.diff().tolist())
    assert enable_gqa
    example = torch.repeat_interleave(torch.arange(len(cu_seq_q) - 1), cu_seq_q.diff())
    position = torch.arange(T)
    distance = position[:, None] - position
    left, right = window_size
    seen = (example[:, None] == example) & (-distance <= right)
    if left >= 0:
        seen &= distance <= left
    scores = torch.einsum("qhe,khe->hqk", query, key.repeat_interleave(H // G, 1))
    weights = (scores * (scale or E**-0.5)).masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khe->qhe", weights, value.repeat_interleave(H // G, 1))


@pytest.mark.parametrize("sliding_window", [None, 3])
def test_the_kernel_is_asked_for_what_runs_example_by_example(
    monkeypatch: pytest.MonkeyPatch, sliding_window: int | None
) -> None:
    monkeypatch.setattr(varlen, "varlen_attn", varlen_reference)
    results = []
    for has_kernel in (True, False):
        monkeypatch.setattr(attention, "_has_kernel", lambda *_, answer=has_kernel: answer)
        tensors, keywords = inputs()
        output, _ = packed_attention(
            torch.nn.Identity(),
            *tensors,
            None,
            scaling=0.3,
            sliding_window=sliding_window,
            **keywords,
        )
        assert output.shape == (1, T, H, E)
        (output * torch.arange(E)).sum().backward()
        results.append([output, *(tensor.grad for tensor in tensors)])
    for by_kernel, by_example in zip(*results, strict=True):
        torch.testing.assert_close(by_kernel, by_example)


def test_the_installed_kernel_takes_the_call_and_returns_these_shapes() -> None:
    tensors, keywords = inputs()
    query, key, value = (tensor.detach().to("meta").requires_grad_() for tensor in tensors)
    ends = keywords["cu_seq_lens_q"].to("meta")
    output = attention.packed_flash(query, key, value, ends, 9, 0.3, 3)
    assert output.shape == (1, T, H, E)
    output.sum().backward()
    assert [tensor.grad.shape for tensor in (query, key, value)] == [t.shape for t in tensors]


@pytest.mark.parametrize(
    ("dtype", "width", "capability", "problem"),
    [
        (torch.bfloat16, 128, (9, 0), None),
        (torch.float16, 256, (8, 0), None),
        (torch.bfloat16, 128, None, "no NVIDIA GPU"),
        (torch.float16, 64, (7, 5), "compute capability 7.5 is below 8.0"),
        (torch.float32, 64, (9, 0), "no kernel for float32"),
        (torch.bfloat16, 257, (9, 0), "a head of 257 elements"),
        (torch.bfloat16, 512, (9, 0), "a head of 512 elements"),
        (torch.bfloat16, 256, (8, 9), "needs more shared memory"),
    ],
)
def test_a_kernel_is_chosen_by_what_it_can_compute(
    dtype: torch.dtype, width: int, capability: tuple[int, int] | None, problem: str | None
) -> None:
    answer = flash_problem(dtype, width, capability)
    assert answer is None if problem is None else problem in str(answer)


def test_flash_attn_is_used_where_it_is_installed_and_has_a_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = LlamaConfig(hidden_size=64, num_attention_heads=4, num_hidden_layers=1)
    monkeypatch.setattr(attention, "find_spec", lambda name: name)
    monkeypatch.setattr(attention, "compute_capability", lambda: (9, 0))
    refusal: dict[str, str | None] = {FLASH_ATTN: None}
    monkeypatch.setattr(attention, "_problem_of", lambda _, name: refusal.get(name))

    def chosen(dtype: torch.dtype) -> str:
        return choose_attention(config, packing=True, dtype=dtype)

    assert chosen(torch.bfloat16) == FLASH_ATTN
    assert chosen(torch.float32) == PACKED_ATTENTION
    refusal[FLASH_ATTN] = "the model does not support it"
    assert chosen(torch.bfloat16) == PACKED_ATTENTION
