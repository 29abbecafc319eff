"""Checkpoints on an object store: a real S3 server over HTTP, at times a slow one."""

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

from deft.platform.training import chosen_checkpoint, fetch_model, fit
from deft.workers.job import TrainJob
from deft.workers.spec import TrainingSpec

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
@pytest.mark.parametrize("delay", [0.0, 0.5])
def test_a_run_goes_on_from_a_checkpoint_in_a_bucket(
    ray_cluster: None,
    make_job: Callable[..., TrainJob],
    start_s3: Callable[[str], Any],
    tmp_path: Path,
    delay: float,
    fault: Callable[..., None],
) -> None:
    server = start_s3("127.0.0.1")
    storage = server.bucket(access="key:secret@")
    server.delay = delay
    job = replace(
        make_job(SPEC, objective="DEFT", num_steps=STEPS),
        events=DiesOnce(storage, tmp_path / "died"),  # type: ignore[arg-type]
    )
    restarts: list[str] = []
    began = time.monotonic()
    result = fit(job, name="run", storage=storage, use_gpu=False, on_restart=restarts.append)
    assert len(restarts) == 1
    assert result.metrics is not None
    assert result.metrics["step"] == STEPS
    fetch_model(chosen_checkpoint(result, "last"), tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert (tmp_path / "model" / "tokenizer.json").is_file()
    if delay:
        fault(
            f"object storage that takes {delay} s more for each request, and a killed worker",
            "checkpoints take longer, in the background",
            seconds=f"it does not stop; all in all {time.monotonic() - began:.0f} s",
        )
