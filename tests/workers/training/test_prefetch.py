"""The next step is made ready while one is trained; errors appear at the step that has them."""

from __future__ import annotations

import threading

import pytest

from deft.workers.training.prefetch import prefetched


def test_each_step_is_produced_once_in_order_and_one_ahead() -> None:
    started: list[int] = []
    next_one = threading.Event()

    def produce(step: int) -> str:
        started.append(step)
        if step == 4:
            next_one.set()
        return f"batch {step}"

    batches = prefetched(produce, range(3, 7))
    assert next(batches) == "batch 3"
    assert next_one.wait(timeout=30)
    assert started == [3, 4]
    assert list(batches) == ["batch 4", "batch 5", "batch 6"]
    assert started == [3, 4, 5, 6]
    assert list(prefetched(produce, range(0))) == []


def test_an_error_is_raised_at_its_own_step() -> None:
    def produce(step: int) -> int:
        if step == 1:
            raise ValueError("a row that cannot be read")
        return step

    batches = prefetched(produce, range(3))
    assert next(batches) == 0
    with pytest.raises(ValueError, match="cannot be read"):
        next(batches)
