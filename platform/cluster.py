"""The Ray cluster a command runs on, and events that come back from it."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import ray
from ray.util.queue import Queue

from deft.platform.errors import StageError, UserError, describe, root_cause
from deft.workers.placement import on_this_node

Result = TypeVar("Result")

ANYWHERE: Literal["DEFAULT"] = "DEFAULT"
"""Scheduling strategy of tasks that would else be confined to what a Ray Tune trial reserves."""


@contextmanager
def ray_cluster(*, verbose: bool) -> Iterator[None]:
    """Use the cluster this process is connected to or RAY_ADDRESS names; else start a local one.

    A local cluster stops with the block.
    """
    if ray.is_initialized():
        yield
        return
    if not verbose:
        # Read by Ray's processes when they start; errors reach the user as exceptions.
        os.environ.setdefault("RAY_LOG_TO_DRIVER_EVENT_LEVEL", "FATAL")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        logging.getLogger("ray").setLevel(logging.ERROR)
    # A process that has loaded torch is worth keeping for the next task or actor.
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "600000")
    address = os.environ.get("RAY_ADDRESS", "local")
    if address == "local":
        # Nobody takes this machine away, and a watcher is a process for every training run.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    ray.init(
        # Without one, Ray takes whatever cluster was last started on this machine, dead or alive.
        address=address,
        include_dashboard=False,
        log_to_driver=verbose,
        logging_level=logging.INFO if verbose else logging.ERROR,
    )
    try:
        yield
    finally:
        ray.shutdown()


def require_workers(num_workers: int) -> bool:
    """Check that the cluster can hold the training workers; returns whether they get GPUs.

    Raises:
        UserError: the cluster has fewer GPUs, or without GPUs fewer cores, than workers.
    """
    resources: dict[str, float] = ray.cluster_resources()
    use_gpu = resources.get("GPU", 0) > 0
    kind = "GPU" if use_gpu else "CPU"
    available = int(resources.get(kind, 0))
    if num_workers > available:
        raise UserError(
            f"training.num_workers: {num_workers} workers need as many {kind}s, "
            f"the Ray cluster has {available}"
        )
    return use_gpu


def run_task(work: Callable[[], Result], *, stage: str, refusal: str = "") -> Result:
    """What ``work`` returns, as a Ray task: it loads what a driver has no need of.

    Args:
        work: what it raises as ValueError or FileNotFoundError is the user's to mend.
        stage: what failed if it raises anything else.
        refusal: ahead of what the user is told to mend.

    Raises:
        UserError: the input cannot be used.
        StageError: something else went wrong.
    """
    try:
        result: Result = ray.get(
            ray.remote(num_cpus=1, scheduling_strategy=ANYWHERE)(work).remote()
        )
    except ray.exceptions.RayTaskError as error:
        cause = root_cause(error)
        if isinstance(cause, (ValueError, FileNotFoundError)):
            raise UserError(f"{refusal}{cause}") from None
        raise StageError(f"{stage}: {describe(cause)}") from error
    return result


@contextmanager
def event_queue(handle: Callable[[dict[str, Any]], None]) -> Iterator[Queue]:
    """A queue that Ray workers put events on; ``handle`` gets them one by one, in a thread.

    All events put before the block ends are handled before it is left. What ``handle`` raises is
    raised then, unless the block itself raised.
    """
    queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": on_this_node()})
    failures: list[BaseException] = []

    def pump() -> None:
        while (event := queue.get()) is not None:
            try:
                if not failures:
                    handle(event)
            except Exception as error:
                failures.append(error)

    thread = threading.Thread(target=pump, name="events", daemon=True)
    thread.start()
    try:
        yield queue
    finally:
        queue.put(None)
        thread.join()
        queue.shutdown(force=True)
    if failures:
        raise failures[0]
