"""Real MLflow servers that are killed, cut off, slow or not there: in order, and exactly once."""

from __future__ import annotations

import http.client
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType

from deft.platform.records.run_directory import RunDirectory
from deft.platform.tracking import recorder as tracking
from deft.platform.tracking.experiment_recorder import ExperimentRecorder
from deft.platform.tracking.sweep_recorder import SweepRecorder
from deft.platform.tracking.uri import default_tracking_uri
from helpers import make_train_manifest, wait_until

MakeRun = Callable[..., RunDirectory]

METRICS = 20
"""Metrics of each step, so that a few hundred steps are several requests."""


def append(run: RunDirectory, first: int, last: int) -> None:
    for step in range(first, last + 1):
        run.append_event(step, {f"train/m{i}": step + i / METRICS for i in range(METRICS)})


def steps(client: MlflowClient, run_id: str, metric: str = "train/m0") -> list[int]:
    return [point.step for point in client.get_metric_history(run_id, metric)]


def runs_of(client: MlflowClient, run: RunDirectory) -> list[Run]:
    """All MLflow runs that a run directory ever had, deleted ones too."""
    experiment = client.get_experiment_by_name("deft")
    assert experiment is not None
    condition = f"tags.`deft.run` = '{run.path.name}'"
    return list(client.search_runs([experiment.experiment_id], condition, ViewType.ALL))


def record(run: RunDirectory, recorder: ExperimentRecorder) -> str | None:
    """Everything that the end of a run records."""
    run.finish(make_train_manifest(300))
    recorder.describe_data()
    recorder.log_model()
    recorder.log_result(0, "base", "figfont", {"exact_match": 0.25}, 1_700_000_000_000)
    recorder.log_result(300, "eval", "figfont", {"exact_match": 0.75}, 1_700_000_000_000)
    (run.path / "figures").mkdir(exist_ok=True)
    (run.path / "figures" / "gate_dynamics.png").write_text("a figure")
    return recorder.finish()


def assert_recorded_once(client: MlflowClient, run: RunDirectory, last: int) -> None:
    (recorded,) = runs_of(client, run)
    assert recorded.info.status == "FINISHED"
    for i in (0, METRICS - 1):
        history = client.get_metric_history(recorded.info.run_id, f"train/m{i}")
        expected = [(step, step + i / METRICS) for step in range(1, last + 1)]
        assert [(point.step, point.value) for point in history] == expected
    for name in ("base/figfont/exact_match", "eval/figfont/exact_match", "data/num_examples"):
        assert len(client.get_metric_history(recorded.info.run_id, name)) == 1
    assert recorded.data.params["objective"] == "DEFT"
    assert recorded.data.tags["deft.prompt_style"] == "chat"
    contexts = [data.tags[0].value for data in recorded.inputs.dataset_inputs]
    assert sorted(contexts) == ["evaluation", "training", "validation"]
    (output,) = recorded.outputs.model_outputs
    (model,) = client.search_logged_models(
        [recorded.info.experiment_id], f"source_run_id = '{recorded.info.run_id}'"
    )
    assert model.model_id == output.model_id
    assert [(metric.key, metric.value) for metric in model.metrics] == [
        ("eval/figfont/exact_match", 0.75)
    ]
    files = {file.path for file in client.list_artifacts(recorded.info.run_id)}
    assert {"spec.json", "events.jsonl", "figures", "data"} <= files


def outlive(
    server: Any, run: RunDirectory, stop: Callable[[], None], start: Callable[[], None]
) -> tuple[float, str]:
    """Record a whole run on ``server`` while something is stopped and started again.

    Returns:
        Seconds from there until everything had arrived, and the warning that was given.
    """
    messages = list[str]()
    client = MlflowClient(server.uri)
    with run.locked(), ExperimentRecorder(run, server.uri, messages.append) as recorder:
        append(run, 1, 150)
        wait_until(lambda: recorder._outbox.delivered.run_id is not None)
        run_id = recorder._outbox.delivered.run_id
        append(run, 151, 200)
        wait_until(lambda: recorder._outbox.delivered.events > 0)
        stop()  # perhaps between doing what it was asked to and saying so
        append(run, 201, 250)  # would wait here, or raise, if anybody waited for the server
        recorder.describe_data()
        wait_until(lambda: bool(messages))
        start()
        began = time.monotonic()
        append(run, 251, 300)
        seen = steps(client, run_id)
        while len(seen) < 300:
            assert seen == list(range(1, len(seen) + 1))
            seen = steps(client, run_id)
        seconds = time.monotonic() - began
        assert record(run, recorder) == run_id
    assert_recorded_once(client, run, 300)
    assert "cannot reach MLflow; results are queued on disk and will be retried" in messages[0]
    assert "MLflow answers again" in messages[1]
    assert len(messages) == 2
    return seconds, messages[0]


def test_server_that_is_killed_and_started_again_gets_everything_in_order_and_once(
    server: Any, make_run: MakeRun, fault: Callable[..., None]
) -> None:
    seconds, warning = outlive(server, make_run(), server.kill, server.start)
    assert "Connection" in warning
    database = "PostgreSQL" if "postgresql" in str(server.command) else "SQLite"
    fault(
        f"kill -9 of the MLflow server ({database}), and its return",
        "runs go on; what it shall get waits on disk, and arrives in order and once",
        seconds=seconds,
    )


@pytest.mark.parametrize("server", ["postgresql"], indirect=True)
def test_a_database_that_is_restarted_under_the_server_gets_everything_in_order_and_once(
    server: Any, database: Any, make_run: MakeRun, fault: Callable[..., None]
) -> None:
    seconds, _ = outlive(server, make_run(seed=2), database.stop, database.start)
    fault(
        "MLflow's database (PostgreSQL) is stopped, and started again",
        "runs go on; what MLflow shall get waits on disk, and arrives in order and once",
        seconds=seconds,
    )


@pytest.mark.parametrize("server", ["sqlite"], indirect=True)
def test_a_clock_that_goes_back_leaves_nothing_out_and_nothing_twice(
    server: Any, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, fault: Callable[..., None]
) -> None:
    """The platform's clock alone: a test must not set the machine's."""
    now, run = time.time_ns, make_run(seed=3)
    with run.locked(), ExperimentRecorder(run, server.uri, lambda _: None) as recorder:
        append(run, 1, 150)
        wait_until(lambda: recorder._outbox.delivered.events > 0)
        monkeypatch.setattr(time, "time_ns", lambda: now() - 3600 * 10**9)
        append(run, 151, 300)
        assert record(run, recorder) is not None
    client = MlflowClient(server.uri)
    (recorded,) = runs_of(client, run)
    assert recorded.info.status == "FINISHED"
    history = client.get_metric_history(recorded.info.run_id, "train/m0")
    # MLflow gives them in the order of their times; charts over steps are as ever.
    assert sorted((point.step, point.value) for point in history) == [
        (step, float(step)) for step in range(1, 301)
    ]
    assert recorded.data.metrics["train/m0"] == 300
    fault(
        "the clock goes back by an hour",
        "charts over time show it; nothing else goes by a clock that can be set",
        seconds="it does not stop",
    )


@pytest.fixture
def proxy(server: Any) -> Iterator[Proxy]:
    recorded = Proxy(server.port)
    thread = threading.Thread(target=recorded.serve_forever, daemon=True)
    thread.start()
    yield recorded
    recorded.shutdown()
    recorded.server_close()


class Proxy(ThreadingHTTPServer):
    """Passes requests on, slowly. Of every kind of request that writes, the first answer is lost,
    after the server has done what it was asked to."""

    daemon_threads = True

    def __init__(self, behind: int) -> None:
        super().__init__(("127.0.0.1", 0), _Pass)
        self.behind = behind
        self.uri = f"http://127.0.0.1:{self.server_port}"
        self.counts: dict[str, int] = {}
        self.lost: list[str] = []

    def handle_error(self, *_: object) -> None:
        """Stay silent: a client that went away is part of the test."""


class _Pass(BaseHTTPRequestHandler):
    server: Proxy

    def pass_on(self) -> None:
        time.sleep(0.05)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        kind = self.path.partition("?")[0].rpartition("/")[2]
        count = self.server.counts[kind] = self.server.counts.get(kind, 0) + 1
        writes = not kind.startswith(("search", "get"))
        self.close_connection = True
        connection = http.client.HTTPConnection("127.0.0.1", self.server.behind)
        headers = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        if writes and count == 1:
            assert answer.status == 200, content
            self.server.lost.append(kind)
            return
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "content-length", "transfer-encoding"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = pass_on  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Nothing."""


def test_answers_that_are_lost_leave_nothing_out_and_nothing_twice(
    server: Any, proxy: Proxy, make_run: MakeRun
) -> None:
    run = make_run(seed=1)  # the server remembers the run of another test
    with run.locked(), ExperimentRecorder(run, proxy.uri, lambda _: None) as recorder:
        append(run, 1, 300)
        assert record(run, recorder) is not None
    assert {"create", "log-batch", "update", "log-inputs", "logged-models", "outputs"} <= set(
        proxy.lost
    )
    assert_recorded_once(MlflowClient(server.uri), run, 300)


CELL = """
import sys
from pathlib import Path
from deft.platform.config.loading import load_spec
from deft.platform.records.manifests import TrainManifest
from deft.platform.records.run_directory import RunDirectory
from deft.platform.tracking.experiment_recorder import ExperimentRecorder

root, uri, seed = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
names = {"dataset": "figfont", "model": "tiny", "objective": "DEFT"}
run = RunDirectory(root, load_spec(None, names, [f"seed={seed}"]))
with run.locked(), ExperimentRecorder(run, uri, lambda text: print(text), sweep="grid") as recorder:
    recorder.describe_data()
    for step in range(1, 201):
        run.append_event(step, {f"train/m{i}": float(step) for i in range(20)})
        if step % 50 == 0:
            recorder._delivery.flush(60)
    run.finish(TrainManifest(model="model", seconds=1.0, step=200, metrics={}))
    recorder.log_model()
    recorder.log_result(200, "eval", "figfont", {"exact_match": 0.5}, 1_700_000_000_000)
    sys.exit(recorder.finish() is None)
"""


def test_processes_that_write_to_one_file_at_the_same_time_lose_nothing(
    make_run: MakeRun, tmp_path: Path
) -> None:
    """All five of them make the store, too: there is none yet."""
    run_sweep(default_tracking_uri(tmp_path), make_run, tmp_path)


@pytest.mark.parametrize("server", ["postgresql"], indirect=True)
def test_processes_that_write_to_one_server_at_the_same_time_lose_nothing(
    server: Any, make_run: MakeRun, tmp_path: Path
) -> None:
    run_sweep(server.uri, make_run, tmp_path)


def run_sweep(uri: str, make_run: MakeRun, root: Path) -> None:
    """Run a sweep of four cells, each a process of its own."""
    seeds = range(10, 14)
    runs = [make_run(seed) for seed in seeds]
    (root / "grid").mkdir()
    with SweepRecorder(root / "grid", "grid", uri, print) as sweep:
        cells = [
            subprocess.Popen([sys.executable, "-c", CELL, str(root), uri, str(seed)])
            for seed in seeds
        ]
        assert [cell.wait(timeout=300) for cell in cells] == [0, 0, 0, 0]
        for run in runs:
            sweep.add_cell(run.path)
        parent = sweep.finish()
    client = MlflowClient(uri)
    for run in runs:
        (recorded,) = runs_of(client, run)
        assert recorded.info.status == "FINISHED"
        assert recorded.data.tags["mlflow.parentRunId"] == parent
        assert steps(client, recorded.info.run_id, "train/m19") == list(range(1, 201))
        assert len(recorded.inputs.dataset_inputs) == 3
        assert len(recorded.outputs.model_outputs) == 1
    (experiment,) = client.search_experiments(filter_string="name = 'deft'")
    in_sweep = client.search_runs([experiment.experiment_id], "tags.`deft.sweep` = 'grid'")
    assert len(in_sweep) == 5


class _Forbidden(BaseHTTPRequestHandler):
    def answer(self) -> None:
        self.send_response(403)
        self.send_header("Content-Length", "9")
        self.end_headers()
        self.wfile.write(b"forbidden")

    do_GET = do_POST = answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Nothing."""


def test_server_that_refuses_is_named_once_with_its_cause(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "DELIVERY_TIMEOUT", 2.0)
    run, messages = make_run(), list[str]()
    with ThreadingHTTPServer(("127.0.0.1", 0), _Forbidden) as refusing:
        threading.Thread(target=refusing.serve_forever, daemon=True).start()
        uri = f"http://127.0.0.1:{refusing.server_port}"
        with run.locked(), ExperimentRecorder(run, uri, messages.append) as recorder:
            assert recorder.finish() is None
        refusing.shutdown()
    (warning,) = messages
    assert "403" in warning
    assert "forbidden" in warning
