"""The heads of a GPU that need none to be tested: which objective has which, and what memory."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from deft.objectives import CATALOG, ReferenceHead, get_objective, linear_objective
from deft.objectives.base import Objective
from deft.objectives.head import gpu_blocks, linear, triton_head
from deft.objectives.head.interface import HeadInputs, Wanted
from deft.platform.commands.cost_model import HEADS, head_bytes
from deft.workers.catalogs.models import ModelDimensions

IN_BLOCKS = {
    "ASFT",
    "ASFT_reverse",
    "GEM",
    "LabelSmoothing",
    "SFT_KL",
    "SFT_KL_reverse",
}
"""Objectives with a second distribution."""


def example(name: str) -> Objective:
    return get_objective(CATALOG[name].example)


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this machine's device be one that the kernels run on."""
    monkeypatch.setattr(triton_head, "_unsupported_device", lambda _: None)


def head_on(device_type: str, objective: Objective, dtype: torch.dtype) -> str:
    tensors = torch.zeros(2, 4, dtype=dtype), torch.zeros(9, 4, dtype=dtype)
    inputs = HeadInputs(*tensors, None, torch.zeros(2).long(), None, None, None)
    return linear.head_for("auto", inputs, objective, device_type)


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_on_cuda_tiles_compute_all_but_second_distributions(dtype: torch.dtype) -> None:
    heads = {name: head_on("cuda", example(name), dtype) for name in CATALOG}
    assert {name for name, head in heads.items() if head == "gpu_blocks"} == IN_BLOCKS
    assert {head for name, head in heads.items() if name not in IN_BLOCKS} == {"triton"}


def test_where_tiles_do_not_run_blocks_do() -> None:
    for name in CATALOG:
        # Neither this machine's device nor float64 is one of theirs.
        assert head_on("cuda", example(name), torch.bfloat16) == "gpu_blocks"
        assert head_on("cuda", example(name), torch.float64) == "gpu_blocks"
        assert head_on("xpu", example(name), torch.float32) == "gpu_blocks"
        assert head_on("cpu", example(name), torch.float32) == "chunked"


class LiveBytes(TorchDispatchMode):
    """Follows how many bytes of storage the operations under it hold at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {
            id(tensor.untyped_storage()) for tensor in args if isinstance(tensor, torch.Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, list | tuple) else [result]:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                pointer = storage.data_ptr()
                if id(storage) not in before and pointer and pointer not in self.live:
                    self.live[pointer] = storage.nbytes()
                    weakref.finalize(storage, self.live.pop, pointer, None)
        self.peak = max(self.peak, sum(self.live.values()))
        return result


def extra_bytes(objective: str, rows: int, vocabulary: int) -> int:
    """Measure the most bytes that the blocks hold beside the gradient of the weight."""
    width, dtype = 8, torch.float32
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, width, generator=generator, dtype=dtype)
    weight = torch.randn(vocabulary, width, generator=generator, dtype=dtype)
    labels = torch.randint(vocabulary, (rows,), generator=generator)
    built = get_objective(objective)
    reference = ReferenceHead(hidden, weight) if built.needs_reference else None
    inputs = HeadInputs(hidden, weight, None, labels, None, reference, None)
    wanted = Wanted(
        frozenset({"concentration", "entropy"}) | built.needs, hidden=True, weight=True, bias=False
    )
    with LiveBytes() as memory:
        gpu_blocks.gpu_blocks_head(inputs, built, wanted)
    return memory.peak - weight.nbytes


@pytest.mark.parametrize("objective", ["ASFT", "SFT_KL_reverse", "GEM", "LabelSmoothing", "EAFT"])
def test_memory_is_that_of_a_block_whatever_the_vocabulary(
    objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = 2**21
    monkeypatch.setattr(gpu_blocks, "BLOCK_BYTES", block)
    rows = 128
    small, large = (extra_bytes(objective, rows, V) for V in (4096, 32_768))
    logits = 4 * rows * 32_768
    # Beside the block there are its sums, a few numbers a row and block.
    assert large < block + logits / 64
    assert large - small < logits / 64


def test_the_plan_of_a_run_counts_what_is_held() -> None:
    rows, width, vocabulary = 128, 8, 32_768
    sizes = ModelDimensions(1, width, 1, 1, 1, 1, vocabulary, True, False)
    for name in sorted(IN_BLOCKS):
        planned = head_bytes(sizes, rows, HEADS[name], itemsize=4, is_bfloat16=False)
        measured = extra_bytes(name, rows, vocabulary) + 4 * vocabulary * width
        assert 0.65 * planned <= measured <= 1.1 * planned, name


def test_a_block_is_narrower_where_there_are_more_rows_and_distributions() -> None:
    def widths(rows: int, objective: str) -> list[int]:
        hidden, weight = torch.zeros(rows, 1), torch.zeros(100_000, 1)
        inputs = HeadInputs(hidden, weight, None, torch.zeros(rows).long(), None, None, None)
        wanted = Wanted(frozenset(), hidden=True, weight=True, bias=False)
        if get_objective(objective).needs_reference:
            inputs = inputs._replace(reference=ReferenceHead(hidden, weight))
        blocks = gpu_blocks._blocks(inputs, wanted)
        assert blocks[-1].stop == 100_000
        return [block.stop - block.start for block in blocks]

    assert max(widths(8192, "GEM")) == 2**28 // (8192 * 4 * 2)
    assert max(widths(8192, "ASFT")) == 2560
    assert max(widths(2**20, "GEM")) == gpu_blocks.LEAST_COLUMNS


def test_the_weight_gradient_is_written_once_in_the_dtype_of_the_weight() -> None:
    for dtype, stored in (
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        inputs = HeadInputs(
            torch.randn(5, 4, dtype=dtype),
            torch.randn(30, 4, dtype=dtype),
            None,
            torch.arange(5),
            None,
            None,
            None,
        )
        wanted = Wanted(frozenset(), hidden=True, weight=True, bias=False)
        result = gpu_blocks.gpu_blocks_head(inputs, get_objective("GEM"), wanted)
        assert result.grad_weight is not None
        assert result.grad_weight.dtype == stored


def test_gradients_can_be_left_out() -> None:
    hidden, weight = torch.randn(6, 4), torch.randn(30, 4)
    output = linear_objective(hidden, weight, torch.arange(6), "LabelSmoothing")
    assert not output.loss.requires_grad
