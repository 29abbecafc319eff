"""Ray Train on the driver's side: start training, replace lost workers, fetch the model."""

from __future__ import annotations

import json
import shutil
import signal
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.fs
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from deft.platform.errors import describe_error, lost_worker
from deft.platform.run.memory import count_kernel_kills, describe_shortage
from deft.platform.signals import received_signal
from deft.workers.common.checksums import FOLDER, damaged_file
from deft.workers.common.files import atomic_directory
from deft.workers.common.loopback import bind_stores_to_loopback
from deft.workers.common.ray_placement import give_back_placement_group
from deft.workers.common.stop_request import is_stop_requested, request_stop
from deft.workers.training.job import TrainJob
from deft.workers.training.ray_entry import run_job

MAX_RESTARTS = 3
"""Times in a row that lost workers are replaced without a new checkpoint in between."""

STOP_GRACE = 20.0
"""Seconds for a last checkpoint after SIGTERM: Kubernetes and SLURM give a process 30 to end."""

POLL_INTERVAL = 1.0
"""Seconds between calls of `on_poll`."""


def fit(
    job: TrainJob,
    *,
    name: str,
    storage: str,
    use_gpu: bool,
    on_restart: Callable[[str], None],
    is_training: Callable[[], bool],
    on_poll: Callable[[], None] = lambda: None,
) -> ray.train.Result:
    """Train ``job``, from its last checkpoint if there is one.

    A worker that dies (out of memory, a node that goes) is replaced and training goes on from the
    last checkpoint. An error that a worker raises would be raised again and ends the run.

    Args:
        job: what to train.
        name: the run's directory under ``storage``; the same name continues the same run.
        storage: directory or URI.
        use_gpu: whether every worker gets a GPU.
        on_restart: called with the cause each time workers are replaced.
        is_training: whether there is anything to store when SIGTERM comes.
        on_poll: called every second; what it raises ends the training.

    Raises:
        KeyboardInterrupt: the driver was asked to end.
        MemoryError: workers were killed for memory again and again.
        Exception: what a worker raised, wrapped by Ray; see `deft.platform.errors.root_cause`.
    """
    spec, run = job.training, uuid.uuid4().hex
    elastic: Any = spec.num_workers
    if spec.min_workers is not None:
        elastic = (spec.min_workers, spec.num_workers)
    trainer = TorchTrainer(
        run_job,
        train_loop_config={"job": job, "run": run},
        torch_config=ProcessGroupConfig(),
        scaling_config=ray.train.ScalingConfig(
            num_workers=elastic,
            use_gpu=use_gpu,
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=storage,
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=spec.keep_checkpoints or 2,
                checkpoint_score_attribute="validation/nll" if spec.keep == "best" else None,
                checkpoint_score_order="min",
            ),
        ),
    )
    restarts = 0
    while True:
        kills_before = count_kernel_kills()
        try:
            return _fit(trainer, is_training, on_poll)
        except Exception as error:
            cause = lost_worker(error)
            if cause is None:
                raise
            shortage = describe_shortage(cause, job, kills_before)
            restarts += 1
            if restarts > MAX_RESTARTS:
                if shortage is not None:
                    raise MemoryError(shortage) from error
                raise
            on_restart(shortage or describe_error(cause))
        finally:
            give_back_placement_group(run)


class ProcessGroupBackend(TorchConfig().backend_cls):  # type: ignore[misc]
    """Ray's own, with stores that only this machine reaches where the cluster is this machine."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Set up the process group."""
        worker_group.execute(bind_stores_to_loopback)
        super().on_start(worker_group, backend_config)


class ProcessGroupConfig(TorchConfig):
    """Configuration of `ProcessGroupBackend`."""

    @property
    def backend_cls(self) -> type[ProcessGroupBackend]:
        """The class that sets up process groups."""
        return ProcessGroupBackend


def _fit(
    trainer: TorchTrainer, is_training: Callable[[], bool], on_poll: Callable[[], None]
) -> ray.train.Result:
    """Fit; after SIGTERM give the workers `STOP_GRACE` seconds to store a checkpoint.

    Raises:
        KeyboardInterrupt: this process, or the driver of its sweep, was asked to end.
    """
    outcome: Future[ray.train.Result] = Future()

    def work() -> None:
        try:
            outcome.set_result(trainer.fit())
        except BaseException as error:
            outcome.set_exception(error)

    # In the main thread, Ray Train would set a handler of SIGINT.
    threading.Thread(target=work, name="fit", daemon=True).start()
    try:
        while not outcome.done():
            wait([outcome], timeout=POLL_INTERVAL)
            on_poll()
        result = outcome.result()
    except KeyboardInterrupt:
        if received_signal() == signal.SIGTERM and is_training():
            request_stop()
            with suppress(Exception):
                outcome.result(STOP_GRACE)
        raise
    if is_stop_requested():
        raise KeyboardInterrupt
    return result


def chosen_checkpoint(result: ray.train.Result, keep: str) -> ray.train.Checkpoint:
    """Return the checkpoint whose model a run exports: the last, or that of lowest held-out NLL."""
    checkpoint: ray.train.Checkpoint | None = result.checkpoint
    if keep == "best":
        checkpoint = result.get_best_checkpoint("validation/nll", "min")
    assert checkpoint is not None
    return checkpoint


def fetch_model(checkpoint: ray.train.Checkpoint, directory: Path) -> None:
    """Copy the exported model of a checkpoint, wherever it is stored, to a local directory.

    Raises:
        OSError: what arrived is not what was stored.
    """
    shutil.rmtree(directory, ignore_errors=True)
    storage = checkpoint.filesystem
    assert storage is not None
    with storage.open_input_file(f"{checkpoint.path}/{FOLDER}/0.json") as record:
        digests = json.loads(record.read())
    with atomic_directory(directory) as aside:
        pyarrow.fs.copy_files(
            f"{checkpoint.path}/model",
            str(aside),
            source_filesystem=storage,
            destination_filesystem=pyarrow.fs.LocalFileSystem(),
        )
        exported = {
            name.removeprefix("model/"): digest
            for name, digest in digests.items()
            if name.startswith("model/")
        }
        if (name := damaged_file(aside, exported)) is not None:
            raise OSError(f"{checkpoint.path}/model/{name} is not what was stored there")
