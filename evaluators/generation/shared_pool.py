"""Warm engines that several runs of a sweep share, lent by one actor."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.queue import Queue

from deft.evaluators.generation.job import EvaluationJob, JobResult
from deft.evaluators.generation.pool import EvaluatorPool
from deft.evaluators.generation.shards import ShardedJobs
from deft.evaluators.spec import EngineSpec
from deft.workers.common.ray_placement import on_this_node

MAX_CALLERS = 100_000
"""Most runs that wait for an engine at the same time; one that waits is no thread."""


@dataclass
class _Call:
    """The jobs of one run, and where their results go."""

    progress: Queue | None
    loop: asyncio.AbstractEventLoop
    results: asyncio.Queue[tuple[EvaluationJob, JobResult] | Exception]
    over: bool = False
    """Whether nobody waits for results any more."""

    def put(self, result: tuple[EvaluationJob, JobResult] | Exception) -> None:
        """Hand over a result from another thread."""
        self.loop.call_soon_threadsafe(self.results.put_nowait, result)


class EngineLender:
    """An asynchronous Ray actor with engines that take jobs of all runs in the order they came.

    Each engine is a pool of its own, driven by a thread. Jobs are cut into shards for the engines
    that nobody uses when they come: with many runs, each run loads its model into one engine.
    """

    def __init__(
        self, spec: EngineSpec, num_engines: int, *, use_gpu: bool, reserve: bool, verbose: bool
    ) -> None:
        self._jobs: queue.SimpleQueue[tuple[_Call, EvaluationJob]] = queue.SimpleQueue()
        self._num_unfinished = 0
        self._lock = threading.Lock()
        self._pools = [
            EvaluatorPool(spec, use_gpu, verbose=verbose, max_engines=1, reserve=reserve)
            for _ in range(num_engines)
        ]
        for pool in self._pools:
            # Before cells that train could take them.
            pool.reserve_devices(1)
        for pool in self._pools:
            threading.Thread(target=self._serve, args=(pool,), daemon=True).start()

    async def run(
        self, jobs: Sequence[EvaluationJob], progress: Queue | None
    ) -> AsyncIterator[tuple[EvaluationJob, JobResult]]:
        """Run jobs as `EvaluatorPool.run` does, on the engines that are free first."""
        call = _Call(progress, asyncio.get_running_loop(), asyncio.Queue())
        sharded = ShardedJobs(jobs, max(1, len(self._pools) - self._num_unfinished))
        num_running = 0
        try:
            while sharded.pending or num_running:
                for job in sharded.pending:
                    self._count(+1)
                    self._jobs.put((call, job))
                num_running += len(sharded.pending)
                sharded.pending.clear()
                result = await call.results.get()
                num_running -= 1
                if isinstance(result, Exception):
                    raise result
                whole = sharded.add(*result)
                if whole is not None:
                    yield whole
        finally:
            call.over = True

    def _serve(self, pool: EvaluatorPool) -> None:
        """Run jobs on the engine of ``pool``, once its devices are free."""
        pool.wait_for_devices()
        while True:
            call, job = self._jobs.get()
            try:
                if not call.over:
                    for result in pool.run_each([job], call.progress):
                        call.put(result)
            except Exception as error:
                call.put(error)
            finally:
                self._count(-1)

    def _count(self, change: int) -> None:
        with self._lock:
            self._num_unfinished += change

    async def is_ready(self) -> bool:
        """Return once the engines' devices have been asked for."""
        return True

    async def close(self) -> None:
        """Stop every engine and give its devices back."""
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
            num_engines: most engines at a time.
            use_gpu: whether they run on GPUs.
            reserve: whether their devices stay reserved until `close`.
            verbose: whether vLLM and PyTorch log more than errors.
        """
        # Typed Any because Ray's own type does not know all options.
        lender: Any = ray.remote(EngineLender)
        self._lender = lender.options(
            num_cpus=0, max_concurrency=MAX_CALLERS, scheduling_strategy=on_this_node()
        ).remote(spec, num_engines, use_gpu=use_gpu, reserve=reserve, verbose=verbose)
        ray.get(self._lender.is_ready.remote())

    def run(
        self, jobs: Sequence[EvaluationJob], progress: Queue | None = None
    ) -> Iterator[tuple[EvaluationJob, JobResult]]:
        """Run jobs on the engines that are free first, see `EvaluatorPool.run`."""
        for result in self._lender.run.remote(list(jobs), progress):
            yield ray.get(result)

    def close(self) -> None:
        """Stop every engine and give its devices back."""
        ray.get(self._lender.close.remote())
        ray.kill(self._lender)

    def __enter__(self) -> SharedPool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
