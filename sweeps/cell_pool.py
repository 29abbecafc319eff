"""Cells on a few long-lived Ray actors, each of which takes the next cell when it is done."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from deft.sweeps.watch import CellWatch

ACTOR_MEMORY = 1.0
"""Bytes that an actor reserves: a cell only waits for training workers and engines, which reserve
devices themselves, but what reserves nothing Ray may put on a head without CPUs."""


class CellRunner:
    """A process that runs one cell after the other and loads libraries once."""

    def run(self, trial: Callable[[dict[str, Any]], None], run: str) -> None:
        """Run one cell, see `run_on_actors`."""
        trial({"run": run})


def run_on_actors(
    runs: Sequence[str],
    trial: Callable[[dict[str, Any]], None],
    watch: CellWatch,
    *,
    num_parallel: int,
    retries: int,
) -> None:
    """Run cells in their order; one that fails, or whose process dies, is tried again at the end.

    Args:
        runs: names of the cells' runs.
        trial: called with ``{"run": name}`` in one of the actors.
        watch: is told how each cell ends.
        num_parallel: cells that run at a time.
        retries: further attempts for a cell that fails.
    """
    pending, failures = deque(runs), Counter[str]()
    shared_trial = ray.put(trial)
    running: dict[Any, tuple[str, Any]] = {}
    idle = [_start_actor() for _ in range(min(num_parallel, len(runs)))]
    while pending or running:
        while pending and idle:
            run, actor = pending.popleft(), idle.pop()
            running[actor.run.remote(shared_trial, run)] = run, actor
        (done,), _ = ray.wait(list(running))
        run, actor = running.pop(done)
        try:
            ray.get(done)
        except RayError as error:
            idle.append(_start_actor() if _is_dead(error) else actor)
            failures[run] += 1
            if failures[run] > retries:
                watch.failed(run)
            else:
                watch.retried(run)
                pending.append(run)
        else:
            idle.append(actor)
            watch.completed(run)
    for actor in idle:
        ray.kill(actor)


def _start_actor() -> Any:
    return ray.remote(num_cpus=0, memory=ACTOR_MEMORY)(CellRunner).remote()


def _is_dead(error: RayError) -> bool:
    return not isinstance(error, ray.exceptions.RayTaskError)
