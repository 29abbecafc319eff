"""Checkpoints on an object store: a real S3 server over HTTP, at times a bad one."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.fs
import pytest
import ray.train

from deft.platform.errors import describe_error, root_cause
from deft.platform.run.ray_train import chosen_checkpoint, fetch_model, fit
from deft.workers.spec import TrainingSpec
from deft.workers.training.job import TrainJob

STEPS, CHECKPOINT_EVERY, DEATH = 8, 3, 5
SPEC = TrainingSpec(
    batch_size=8,
    micro_batch_size=2,
    max_length=256,
    dtype="float32",
    checkpoint_every=CHECKPOINT_EVERY,
)


class DiesOnce:
    """Events of a worker that is killed after step `DEATH`, once a checkpoint is stored."""

    def __init__(self, storage: str, died: Path) -> None:
        self.storage = storage
        self.died = died

    def put(self, event: dict[str, Any]) -> None:
        if event["event"] != "train" or event["step"] != DEATH or self.died.exists():
            return
        filesystem, path = pyarrow.fs.FileSystem.from_uri(self.storage)
        record = f"{path}/run/checkpoint_manager_snapshot.json"
        deadline = time.monotonic() + 120
        while filesystem.get_file_info(record).type == pyarrow.fs.FileType.NotFound:
            assert time.monotonic() < deadline, "no checkpoint within two minutes"
            time.sleep(0.1)
        self.died.touch()
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("delay", "refused", "what"),
    [
        (0.0, None, ""),
        (0.5, None, "object storage that takes 0.5 s more for each request"),
        (0.0, 20, "object storage that refuses one request in twenty"),
    ],
)
def test_a_run_goes_on_from_a_checkpoint_in_a_bucket(
    ray_cluster: None,
    make_job: Callable[..., TrainJob],
    start_s3: Callable[[str], Any],
    tmp_path: Path,
    delay: float,
    refused: int | None,
    what: str,
    fault: Callable[..., None],
) -> None:
    server = start_s3("127.0.0.1")
    storage = server.bucket(access="key:secret@")
    server.delay, server.refused = delay, refused
    job = replace(
        make_job(SPEC, objective="DEFT", num_steps=STEPS),
        events=DiesOnce(storage, tmp_path / "died"),  # type: ignore[arg-type]
    )
    restarts: list[str] = []
    began = time.monotonic()
    result = fit(
        job,
        name="run",
        storage=storage,
        use_gpu=False,
        on_restart=restarts.append,
        is_training=bool,
    )
    assert len(restarts) == 1
    assert_finished(result, tmp_path)
    if what:
        fault(
            f"{what}, and a killed worker",
            "checkpoints take longer, in the background",
            seconds=f"it does not stop; all in all {time.monotonic() - began:.0f} s",
        )


def assert_finished(result: ray.train.Result, tmp_path: Path) -> None:
    assert result.metrics is not None
    assert result.metrics["step"] == STEPS
    fetch_model(chosen_checkpoint(result, "last"), tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert (tmp_path / "model" / "tokenizer.json").is_file()


class StepsInAFile:
    """Events that write down which steps were taken."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def put(self, event: dict[str, Any]) -> None:
        if event["event"] == "train":
            with self.file.open("a") as file:
                file.write(f"{event['step']}\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("outage", "cause"), [("refuse", "HTTP status 503"), ("hang", "Timeout was reached")]
)
def test_storage_that_is_away_ends_the_run_and_nothing_is_lost(
    ray_cluster: None,
    make_job: Callable[..., TrainJob],
    start_s3: Callable[[str], Any],
    tmp_path: Path,
    outage: str,
    cause: str,
    fault: Callable[..., None],
) -> None:
    server = start_s3("127.0.0.1")
    storage = server.bucket(access="key:secret@")
    server.outage = outage
    steps = tmp_path / "steps"
    job = replace(
        make_job(SPEC, objective="DEFT", num_steps=STEPS),
        events=StepsInAFile(steps),  # type: ignore[arg-type]
    )

    def train() -> ray.train.Result:
        return fit(
            job, name="run", storage=storage, use_gpu=False, on_restart=print, is_training=bool
        )

    began = time.monotonic()
    with pytest.raises(Exception) as raised:  # noqa: PT011
        train()
    seconds = time.monotonic() - began
    assert cause in describe_error(root_cause(raised.value))
    assert server.is_away
    server.come_back()
    steps.unlink()
    assert_finished(train(), tmp_path)
    assert int(steps.read_text().split()[0]) == CHECKPOINT_EVERY + 1
    fault(
        f"object storage that {'refuses' if outage == 'refuse' else 'hangs'}, all the time",
        f"the run ends and says so, here after {seconds:.0f} s; the same command goes on from the "
        "last checkpoint",
        seconds="it answers again",
    )
