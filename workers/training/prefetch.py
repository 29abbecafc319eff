"""Steps that are made ready in the background while the one before is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetched(produce: Callable[[int], T], steps: range) -> Iterator[T]:
    """Yield ``produce(step)`` for each of ``steps``, each begun one step ahead.

    It runs in one thread besides; what it raises is raised where its step is asked for.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as pool:
        upcoming = pool.submit(produce, steps.start) if steps else None
        for step in steps:
            assert upcoming is not None
            product = upcoming.result()
            if step + 1 < steps.stop:
                upcoming = pool.submit(produce, step + 1)
            yield product
