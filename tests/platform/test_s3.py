"""Checkpoints on an object store: a real S3 server over HTTP, and a worker that dies meanwhile."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.fs
import pytest
from moto.server import ThreadedMotoServer

from deft.platform.training import chosen_checkpoint, fetch_model, fit
from deft.workers.job import TrainJob
from deft.workers.spec import TrainingSpec

STEPS, CHECKPOINT_EVERY, DEATH = 8, 3, 5


@pytest.fixture
def storage() -> Iterator[str]:
    """URI of an empty bucket."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    query = f"endpoint_override={host}:{port}&scheme=http&region=us-east-1"
    bucket = f"s3://key:secret@checkpoints?{query}&allow_bucket_creation=true"
    filesystem, name = pyarrow.fs.FileSystem.from_uri(bucket)
    filesystem.create_dir(name)
    yield f"s3://key:secret@checkpoints/runs?{query}"
    server.stop()


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
        deadline = time.monotonic() + 60
        while filesystem.get_file_info(record).type == pyarrow.fs.FileType.NotFound:
            assert time.monotonic() < deadline, "no checkpoint within a minute"
            time.sleep(0.1)
        self.died.touch()
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_run_goes_on_from_a_checkpoint_in_a_bucket(
    ray_cluster: None, make_job: Callable[..., TrainJob], storage: str, tmp_path: Path
) -> None:
    spec = TrainingSpec(
        batch_size=8,
        micro_batch_size=2,
        max_length=256,
        dtype="float32",
        checkpoint_every=CHECKPOINT_EVERY,
    )
    events = DiesOnce(storage, tmp_path / "died")
    job = replace(
        make_job(spec, objective="DEFT", num_steps=STEPS),
        events=events,  # type: ignore[arg-type]
    )
    restarts: list[str] = []
    result = fit(job, name="run", storage=storage, use_gpu=False, on_restart=restarts.append)
    assert len(restarts) == 1
    assert result.metrics is not None
    assert result.metrics["step"] == STEPS
    fetch_model(chosen_checkpoint(result, "last"), tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert (tmp_path / "model" / "tokenizer.json").is_file()
