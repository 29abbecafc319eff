"""The Ray cluster that a command runs on: connection, tasks, and events of its workers."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Literal, NoReturn, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console

from deft.platform.errors import (
    StageError,
    UserError,
    describe_error,
    print_error,
    root_cause,
    warn_once,
)
from deft.platform.private_ray import close_token_file, kill_helpers, session_directory
from deft.platform.signals import (
    exit_code,
    kept_signal_handlers,
    received_signal,
    sigterm_blocked_in_children,
)
from deft.workers.common.files import DamageWarning
from deft.workers.common.hub import NotOnThisNodeError
from deft.workers.common.ray_placement import on_this_node

Result = TypeVar("Result")

ANYWHERE: Literal["DEFAULT"] = "DEFAULT"
"""Scheduling strategy of tasks that would else be confined to what a Ray Tune trial reserves."""

HEAD_INTERVAL = 5.0
"""Seconds between probes of the cluster's head."""

HEAD_SILENCE = 40.0
"""Seconds without an answer after which the head is given up; Ray waits for 60."""

OWN_HEAD_SILENCE = 10.0
"""The same for a cluster on this machine that a command started: nobody starts its head again."""

OWN_START_SILENCE = 15
"""The same while such a cluster starts: Ray itself ends the command then, after 60 by default."""


@contextmanager
def ray_cluster(*, verbose: bool) -> Iterator[None]:
    """Use the cluster this process is connected to or RAY_ADDRESS names; else start a local one.

    A local cluster stops with the block.

    Raises:
        UserError: no cluster answers at RAY_ADDRESS.
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
        # This machine is not preempted, and a watcher would be a process for every training run.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        # While Ray starts, `_watched_head` cannot see its head yet.
        os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", f"{OWN_START_SILENCE}")
    endpoint = re.fullmatch(r"(?:ray://)?(.+:\d+)", address)
    if endpoint is not None:
        # Ray itself would try for a quarter of an hour.
        try:
            probe_port(endpoint[1])
        except OSError as error:
            raise UserError(
                f"RAY_ADDRESS={address}: no Ray cluster there ({describe_error(error)}); without "
                "RAY_ADDRESS, one starts here"
            ) from None
    with ExitStack() as stack:
        private: dict[str, Any] = {}
        if address == "local":
            private = {"_temp_dir": str(stack.enter_context(session_directory()))}
        try:
            with kept_signal_handlers(), sigterm_blocked_in_children():
                ray.init(
                    # Without one, Ray takes what cluster was last started on this machine, dead or
                    # alive.
                    address=address,
                    include_dashboard=False,
                    log_to_driver=verbose,
                    logging_level=logging.INFO if verbose else logging.ERROR,
                    **private,
                )
        except SystemExit:  # Ray's handler of SIGTERM while it starts
            signal.raise_signal(signal.SIGTERM)
            raise
        except ConnectionError:
            raise UserError(
                f"RAY_ADDRESS={address}: what listens there is not a Ray cluster, or one that "
                "wants a token: set RAY_AUTH_MODE=token"
            ) from None
        except Exception as error:  # Ray raises no class of its own where it does not start
            if address != "local":
                raise
            raise StageError(
                f"Ray did not start on this machine ({describe_error(error)}); the machine may be "
                "overloaded, try again, or see what `--verbose` says"
            ) from error
        stack.callback(ray.shutdown)
        if address == "local":
            stack.callback(kill_helpers)
        close_token_file()
        head = endpoint[1] if endpoint else ray.get_runtime_context().gcs_address
        silence = OWN_HEAD_SILENCE if address == "local" else HEAD_SILENCE
        stack.enter_context(_watched_head(head, silence))
        yield


def probe_port(address: str) -> None:
    """Raise OSError if nothing listens at ``address``, host:port."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), HEAD_INTERVAL).close()


@contextmanager
def _watched_head(address: str, silence: float) -> Iterator[None]:
    """End this process with a message when the cluster's head has been silent for ``silence`` s.

    Ray itself ends the process later, without a message at this log level; until then a thread that
    waits for Ray cannot be interrupted.
    """
    block_left = threading.Event()

    def watch() -> None:
        heard_at = time.monotonic()
        while not block_left.wait(HEAD_INTERVAL):
            try:
                probe_port(address)
                heard_at = time.monotonic()
            except OSError as error:
                if time.monotonic() > heard_at + silence:
                    _end_without_head(
                        f"the head of the Ray cluster ({address}) has not answered for "
                        f"{silence:.0f} s ({describe_error(error)})"
                    )

    threading.Thread(target=watch, name="head", daemon=True).start()
    try:
        yield
    finally:
        block_left.set()


def _end_without_head(cause: str) -> NoReturn:
    """End this process, from whichever thread, because its cluster is gone."""
    received, code = received_signal(), 1
    if received is not None:
        # SLURM sends it to a cluster's processes as well, where they are of the same job.
        cause, code = f"ended by {received.name}", exit_code(received)
    print_error(f"{cause}; what was finished is kept, and the same command goes on from there")
    Console(stderr=True).show_cursor()  # which a progress bar has hidden
    os._exit(code)


def require_workers(num_workers: int) -> bool:
    """Check that the cluster can hold the training workers; return whether they get GPUs.

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
            f"the Ray cluster has {available}; lower it"
        )
    return use_gpu


def run_task(work: Callable[[], Result], *, stage: str, refusal: str = "") -> Result:
    """Run ``work`` as a Ray task, so that the driver need not import heavy libraries.

    What it warns of as damaged is shown here.

    Args:
        work: a ValueError or FileNotFoundError of it becomes a UserError.
        stage: named in the message of any other failure.
        refusal: prefix of the UserError's message.

    Raises:
        UserError: the input cannot be used.
        StageError: something else went wrong.
    """

    def watched() -> tuple[Result, list[str]]:
        with warnings.catch_warnings(record=True) as caught:
            result = work()
        return result, [str(w.message) for w in caught if w.category is DamageWarning]

    try:
        result, damages = _run_where_it_can(watched)
    except RayTaskError as error:
        cause = root_cause(error)
        if isinstance(cause, (ValueError, FileNotFoundError)):
            raise UserError(f"{refusal}{cause}") from None
        raise StageError(f"{stage}: {describe_error(cause)}") from error
    for damage in damages:
        warn_once(damage)
    return result


def _run_where_it_can(work: Callable[[], Result]) -> Result:
    """Run ``work`` on any node, and where that lacks a file of the hub, on the others in turn.

    Each node has a cache of the hub of its own, and without a network one may have what others
    have not. The driver's node comes first: it is where a user looks after files.
    """
    try:
        result: Result = ray.get(
            ray.remote(num_cpus=1, scheduling_strategy=ANYWHERE)(work).remote()
        )
        return result
    except RayTaskError as error:
        if not isinstance(root_cause(error), NotOnThisNodeError):
            raise
        refusal = error
    here = ray.get_runtime_context().get_node_id()
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    if len(nodes) == 1:
        raise refusal
    task: Any = ray.remote(work)
    for node in sorted(nodes, key=lambda node: node != here):
        strategy = NodeAffinitySchedulingStrategy(node, soft=False)
        try:
            # A driver's node may have no CPUs to reserve.
            on_node: Result = ray.get(
                task.options(num_cpus=0, scheduling_strategy=strategy).remote()
            )
            return on_node
        except RayTaskError as error:
            if not isinstance(root_cause(error), NotOnThisNodeError):
                raise
    raise refusal


@contextmanager
def event_queue(
    handle: Callable[[dict[str, Any]], None],
) -> Iterator[tuple[Queue, Callable[[], None]]]:
    """Yield a queue for events of Ray workers; a thread passes them to ``handle`` one by one.

    All events put before the block ends are handled before it is left. An exception of ``handle``
    is raised then, unless the block itself raised; or before, by the function that is yielded with
    the queue, for blocks that would be long in vain.
    """
    queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": on_this_node()})
    failures: list[BaseException] = []

    def pump() -> None:
        while True:
            try:
                event = queue.get()
            except RayError as error:  # this node, or the cluster, is gone
                failures.append(error)
                return
            if event is None:
                return
            try:
                if not failures:
                    handle(event)
            except Exception as error:
                failures.append(error)

    def raise_failure() -> None:
        if failures:
            raise failures[0]

    thread = threading.Thread(target=pump, name="events", daemon=True)
    thread.start()
    try:
        yield queue, raise_failure
    finally:
        with suppress(RayError):
            queue.put(None)
        thread.join()
        with suppress(RayError):
            queue.shutdown(force=True)
    raise_failure()
