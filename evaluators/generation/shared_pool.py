"""Warm engines that several runs of a sweep share: one actor that lends them out."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from typing import Any

import ray
from ray.util.queue import Queue

from deft.evaluators.generation.actor import Job
from deft.evaluators.generation.pool import EvaluatorPool
from deft.evaluators.spec import EngineSpec
from deft.workers.common.ray_placement import on_this_node

CALLERS = 256
"""Runs that may wait for an engine at the same time."""


class EngineLender:
    """A Ray actor with pools of one engine each; whoever comes gets a free one, or waits."""

    def __init__(
        self, spec: EngineSpec, num_engines: int, *, use_gpu: bool, reserve: bool, verbose: bool
    ) -> None:
        self._free: queue.Queue[EvaluatorPool] = queue.Queue()
        self._pools = [
            EvaluatorPool(spec, use_gpu, verbose=verbose, max_engines=1, reserve=reserve)
            for _ in range(num_engines)
        ]
        for pool in self._pools:
            self._free.put(pool)

    def run(
        self, jobs: Sequence[Job], progress: Queue | None
    ) -> Iterator[tuple[Job, dict[str, Any]]]:
        """As `EvaluatorPool.run`, on one engine."""
        pool = self._free.get()
        try:
            yield from pool.run(jobs, progress)
        finally:
            self._free.put(pool)

    def close(self) -> None:
        """End every engine and give its devices back."""
        for pool in self._pools:
            pool.close()


class SharedPool:
    """Engines for all runs of a sweep; used like an `EvaluatorPool`, from any process at once.

    A context manager in the driver, which starts and ends them; copies that are sent to other
    processes only use them.
    """

    def __init__(
        self,
        spec: EngineSpec,
        num_engines: int,
        *,
        use_gpu: bool,
        reserve: bool,
        verbose: bool = False,
    ) -> None:
        """Start no engine yet.

        Args:
            spec: the engines' settings.
            num_engines: how many there are at most.
            use_gpu: whether they run on GPUs.
            reserve: whether their devices are theirs until the end.
            verbose: whether vLLM and PyTorch log more than errors.
        """
        # Typed Any because Ray's own type does not know all options.
        lender: Any = ray.remote(EngineLender)
        self._lender = lender.options(
            num_cpus=0, max_concurrency=CALLERS, scheduling_strategy=on_this_node()
        ).remote(spec, num_engines, use_gpu=use_gpu, reserve=reserve, verbose=verbose)

    def run(
        self, jobs: Sequence[Job], progress: Queue | None = None
    ) -> Iterator[tuple[Job, dict[str, Any]]]:
        """See `EvaluatorPool.run`."""
        for result in self._lender.run.remote(list(jobs), progress):
            yield ray.get(result)

    def close(self) -> None:
        """End every engine and give its devices back."""
        ray.get(self._lender.close.remote())
        ray.kill(self._lender)

    def __enter__(self) -> SharedPool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
