"""Checkpoints on an object store: a real S3 server over HTTP, at times a slow one."""

from __future__ import annotations

import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.fs
import pytest
from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import make_server

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


class Store:
    """An S3 server that answers after ``delay`` seconds."""

    def __init__(self) -> None:
        self.moto = DomainDispatcherApplication(create_backend_app)
        self.server = make_server(
            "127.0.0.1", 0, self, threaded=True, request_handler=MotoRequestHandler
        )
        self.delay = 0.0
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        query = f"endpoint_override=127.0.0.1:{self.server.port}&scheme=http&region=us-east-1"
        name = f"checkpoints-{uuid.uuid4().hex}"  # moto keeps buckets as long as the process lives
        bucket = f"s3://key:secret@{name}?{query}&allow_bucket_creation=true"
        pyarrow.fs.FileSystem.from_uri(bucket)[0].create_dir(name)
        self.uri = f"s3://key:secret@{name}/runs?{query}"

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """Answer a request (WSGI)."""
        time.sleep(self.delay)
        answer: Iterable[bytes] = self.moto(environ, start_response)
        return answer


@pytest.fixture
def store() -> Iterator[Store]:
    found = Store()
    yield found
    found.server.shutdown()


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


def assert_goes_on(make_job: Callable[..., TrainJob], store: Store, folder: Path) -> None:
    """A run whose worker is killed ends all the same, and its model arrives."""
    job = replace(
        make_job(SPEC, objective="DEFT", num_steps=STEPS),
        events=DiesOnce(store.uri, folder / "died"),  # type: ignore[arg-type]
    )
    restarts: list[str] = []
    result = fit(job, name="run", storage=store.uri, use_gpu=False, on_restart=restarts.append)
    assert len(restarts) == 1
    assert result.metrics is not None
    assert result.metrics["step"] == STEPS
    fetch_model(chosen_checkpoint(result, "last"), folder / "model")
    assert (folder / "model" / "model.safetensors").is_file()
    assert (folder / "model" / "tokenizer.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 0.5])
def test_a_run_goes_on_from_a_checkpoint_in_a_bucket(
    ray_cluster: None,
    make_job: Callable[..., TrainJob],
    store: Store,
    tmp_path: Path,
    delay: float,
    fault: Callable[..., None],
) -> None:
    store.delay = delay
    began = time.monotonic()
    assert_goes_on(make_job, store, tmp_path)
    if delay:
        fault(
            f"object storage that takes {delay} s more for each request, and a killed worker",
            "checkpoints take longer, in the background",
            seconds=time.monotonic() - began,
        )
