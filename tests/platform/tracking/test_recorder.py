"""A real MLflow store: nothing twice, nothing lost, and names that people filter by."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType

from deft.platform.config.loading import load_spec
from deft.platform.console import RunConsole
from deft.platform.errors import UserError
from deft.platform.records.manifests import EvaluateManifest, ModelResult, RecordManifest
from deft.platform.records.run_directory import RunDirectory
from deft.platform.run.context import RunContext
from deft.platform.run.driver import run_experiment
from deft.platform.tracking import recorder as tracking
from deft.platform.tracking.experiment_recorder import ExperimentRecorder
from deft.platform.tracking.recorder import flatten
from deft.platform.tracking.sweep_recorder import SweepRecorder
from deft.platform.tracking.uri import default_tracking_uri, require_tracking_uri
from deft.workers.data.prepare import SourceCounts
from helpers import (
    make_benchmark_result,
    make_evaluate_manifest,
    make_prepare_manifest,
    make_train_manifest,
)

MakeRun = Callable[..., RunDirectory]
CapFd = pytest.CaptureFixture[str]

SPEC = load_spec(None, {"dataset": "figfont", "model": "tiny", "objective": "DEFT"})
NOBODY = "http://127.0.0.1:9"
"""Where no server listens."""


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create an SQLite store without runs: making its tables takes a second."""
    directory = tmp_path_factory.mktemp("store")
    MlflowClient(default_tracking_uri(directory)).search_experiments()
    return directory / "mlflow.db"


@pytest.fixture
def uri(empty_store: Path, tmp_path: Path) -> str:
    shutil.copy(empty_store, tmp_path)
    return default_tracking_uri(tmp_path)


def mlflow_run(uri: str, run: RunDirectory) -> Run:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("deft")
    assert experiment is not None
    condition = f"tags.`deft.run` = '{run.path.name}'"
    (recorded,) = client.search_runs([experiment.experiment_id], condition)
    return recorded


def test_events_are_delivered_once_however_often_they_are_sent(make_run: MakeRun, uri: str) -> None:
    run = make_run()
    with ExperimentRecorder(run, uri, print) as recorder:
        for step in range(1, 4):
            run.append_event(step, {"train/nll": 1 / step, "train/grad_norm": math.nan})
        first = recorder.finish()
    # A driver that was killed may know less of what it had delivered than MLflow does.
    delivered = run.path / "mlflow" / "delivered.json"
    delivered.write_text(delivered.read_text().replace('"events": ', '"events": 0, "entries": '))
    with ExperimentRecorder(run, uri, print) as recorder:
        assert recorder._outbox.delivered.events == 0
        assert recorder.finish() == first
    client = MlflowClient(uri)
    history = client.get_metric_history(first, "train/nll")
    assert [(point.step, point.value) for point in history] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert len(client.get_metric_history(first, "train/grad_norm")) == 3
    assert client.get_run(first).info.status == "FINISHED"


def test_failed_run_carries_its_cause_and_can_go_on(make_run: MakeRun, uri: str) -> None:
    run = make_run()
    with ExperimentRecorder(run, uri, print) as recorder:
        recorder.fail(MemoryError("no room"))
    failed = mlflow_run(uri, run)
    assert failed.info.status == "FAILED"
    assert failed.data.tags["deft.error"] == "MemoryError: no room"
    with ExperimentRecorder(run, uri, print) as recorder:
        assert recorder.finish() == failed.info.run_id
    finished = mlflow_run(uri, run)
    assert finished.info.status == "FINISHED"
    assert "deft.error" not in finished.data.tags


def test_data_code_and_prompt_format_are_recorded(make_run: MakeRun, uri: str) -> None:
    run = make_run()
    for _ in range(2):  # as when a run is started again
        with ExperimentRecorder(run, uri, print) as recorder:
            recorder.describe_code()
            recorder.describe_data()
            recorder.finish()
    client, recorded = MlflowClient(uri), mlflow_run(uri, run)
    tags, metrics = recorded.data.tags, recorded.data.metrics
    assert tags["deft.prompt_style"] == "chat"
    assert tags["deft.prompt_hash"] == "0123456789ab"
    assert "**tiny** fine-tuned on **figfont** with **DEFT**" in tags["mlflow.note.content"]
    assert "90 examples with 400 target tokens" in tags["mlflow.note.content"]
    assert tags["mlflow.source.name"] == "deft run"
    assert metrics["data/num_examples"] == 90
    assert metrics["data/num_validation_examples"] == 5
    assert metrics["data/bad_records/missing_field"] == 2
    assert metrics["data/overlap/gsm8k"] == 0.1
    assert len(client.get_metric_history(recorded.info.run_id, "data/num_examples")) == 1
    files = {file.path for file in client.list_artifacts(recorded.info.run_id, "data")}
    assert files == {"data/prepare.json", "data/bad_records.jsonl"}
    assert "packages.txt" in {file.path for file in client.list_artifacts(recorded.info.run_id)}
    datasets = {
        data.tags[0].value: (data.dataset.name, data.dataset.digest, data.dataset.profile)
        for data in recorded.inputs.dataset_inputs
    }
    assert datasets == {
        "training": (
            "figfont",
            "ba9876543210-training",
            '{"num_rows": 90, "num_tokens": 9000, "num_target_tokens": 400}',
        ),
        "validation": ("figfont", "ba9876543210-validation", '{"num_rows": 5}'),
        "evaluation": ("figfont", "0123456789ab", '{"num_rows": 5}'),
    }


def test_data_sets_of_a_mixture_are_recorded_apart(tmp_path: Path, uri: str) -> None:
    (tmp_path / "sums.jsonl").write_text('{"prompt": "?", "response": "!"}\n')
    mixture = f"[{{name: {tmp_path}/sums.jsonl, weight: 2}}, {{name: figfont, size: 30}}]"
    names = {"model": "tiny", "objective": "p"}
    spec = load_spec(None, names, [f"dataset.mixture={mixture}"])
    sources = tuple(
        SourceCounts(name, None, "0123456789ab", number, 2, 0, 100 * number, 10 * number)
        for name, number in (("sums.jsonl", 60), ("figfont", 30))
    )
    records = tmp_path / "bad_records.jsonl"
    records.touch()
    run = RunDirectory(tmp_path, spec)
    run.create()
    run.finish(make_prepare_manifest(sources=sources, bad_records_file=str(records)))
    with ExperimentRecorder(run, uri, print) as recorder:
        recorder.describe_data()
        recorder.finish()
    logged_run = mlflow_run(uri, run)
    note = logged_run.data.tags["mlflow.note.content"]
    assert "of them sums.jsonl 60 examples with 600 target tokens" in note
    assert "of them figfont 30 examples with 300 target tokens" in note
    assert logged_run.data.metrics["data/source/sums.jsonl/num_target_tokens"] == 600
    assert logged_run.data.metrics["data/source/figfont/num_examples"] == 30
    datasets = {
        (each.tags[0].value, each.dataset.name): each.dataset.source_type
        for each in logged_run.inputs.dataset_inputs
    }
    assert datasets == {
        ("training", "sums.jsonl"): "local",
        ("training", "figfont"): "code",
        ("validation", "sums+figfont"): "code",
    }


def test_results_are_linked_to_the_model_and_to_what_it_was_asked(
    make_run: MakeRun, uri: str
) -> None:
    run = make_run()
    with ExperimentRecorder(run, uri, print) as recorder:
        run.finish(make_train_manifest(7))
        recorder.log_model()
        results = {"exact_match": 0.5, "mean_tokens": math.nan}
        recorder.log_result(7, "eval", "figfont", results, 1_700_000_000_000)
        recorder.log_result(7, "eval", "heldout", {"nll": 2.0}, 1_700_000_000_000)
        recorder.log_result(0, "base", "figfont", {"exact_match": 0.0}, 1_700_000_000_000)
        recorder.finish()
    recorded = mlflow_run(uri, run)
    (output,) = recorded.outputs.model_outputs
    model = MlflowClient(uri).get_logged_model(output.model_id)
    assert model.source_run_id == recorded.info.run_id
    assert model.params["objective"] == "DEFT"
    assert model.tags["deft.directory"] == str(run.path / "model")
    linked = {(m.key, m.value, m.dataset_name, m.dataset_digest) for m in model.metrics}
    assert linked == {
        ("eval/figfont/exact_match", 0.5, "figfont", "0123456789ab"),
        ("eval/heldout/nll", 2.0, "figfont", "ba9876543210-validation"),
    }
    assert math.isnan(recorded.data.metrics["eval/figfont/mean_tokens"])


def test_run_that_was_made_twice_is_one_in_the_end(make_run: MakeRun, uri: str) -> None:
    """As when a server answers so late that it was asked again, and then does both."""
    run = make_run()
    with ExperimentRecorder(run, uri, print) as recorder:
        first = recorder.finish()
    client = MlflowClient(uri)
    kept = client.get_run(first)
    client.create_run(kept.info.experiment_id, tags={"deft.id": kept.data.tags["deft.id"]})
    with ExperimentRecorder(run, uri, print) as recorder:
        assert recorder.finish() == first
    experiments = [kept.info.experiment_id]
    assert [recorded.info.run_id for recorded in client.search_runs(experiments)] == [first]
    assert len(client.search_runs(experiments, run_view_type=ViewType.DELETED_ONLY)) == 1


def test_what_mlflow_refuses_is_said_and_the_rest_is_delivered(make_run: MakeRun, uri: str) -> None:
    run, messages = make_run(), list[str]()
    with ExperimentRecorder(run, uri, messages.append) as recorder:
        run.append_event(1, {"train/nll": 1.0})
        run.append_event(2, {"train/at@16": 1.0})  # no name that MLflow takes
        run.append_event(3, {"train/nll": 0.5})
        assert recorder.finish() is not None
    recorded = mlflow_run(uri, run)
    history = MlflowClient(uri).get_metric_history(recorded.info.run_id, "train/nll")
    assert [point.step for point in history] == [1, 3]
    (warning,) = messages
    assert "MLflow refuses a part of this run" in warning
    assert "at@16" in warning


def test_run_without_mlflow_ends_well_and_the_same_command_delivers_it_later(
    make_run: MakeRun, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: CapFd
) -> None:
    monkeypatch.setattr(tracking, "DELIVERY_TIMEOUT", 1.0)
    run = make_run()
    with ExperimentRecorder(run, NOBODY, print) as recorder:
        recorder.describe_data()
        for step in range(1, 4):
            run.append_event(step, {"train/nll": 1 / step, "train/mean_p": 0.5})
    run.finish(make_train_manifest(3))
    figfont = make_benchmark_result({"exact_match": 1.0}, primary_metric="exact_match")
    trained = ModelResult(directory=str(run.path / "model"), benchmarks={"figfont": figfont})
    run.finish(make_evaluate_manifest({"eval": trained}))

    run_experiment(SPEC, RunContext(tmp_path, RunConsole(), NOBODY))
    assert not run.has_finished("record")
    printed = capfd.readouterr().out
    assert "warning: MLflow took nothing for" in printed
    assert "the same command delivers them" in printed

    monkeypatch.undo()
    run_experiment(SPEC, RunContext(tmp_path, RunConsole(), uri))
    recorded = mlflow_run(uri, run)
    assert run.require_manifest(RecordManifest).mlflow_run_id == recorded.info.run_id
    assert recorded.info.status == "FINISHED"
    # It began and ended when it did, not when it was delivered.
    assert recorded.info.start_time == recorder._outbox.delivered.created_at
    assert recorded.info.end_time == run.require_manifest(EvaluateManifest).finished_at
    assert recorded.data.metrics["eval/figfont/exact_match"] == 1.0
    assert recorded.data.metrics["data/num_examples"] == 90
    history = MlflowClient(uri).get_metric_history(recorded.info.run_id, "train/nll")
    assert [point.step for point in history] == [1, 2, 3]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("htp://localhost:5000", "Did you mean http?"),
        ("http://", "invalid host name"),
        ("http://my server:5000", "invalid host name"),
        ("http://localhost:port", "Port"),
        ("mlruns", "unknown scheme 'mlruns'"),
        ("postgresql+nothing://user@host/db", "nothing"),
        ("mysql+pymysql://user@host/db", "needs the Python package pymysql"),
        ("postgresql://user:hunter2@host/db", "PGPASSWORD"),
        ("http://hunter2@host:5000", "MLFLOW_TRACKING_TOKEN"),
        ("http://user:hunter2@host:port", "MLFLOW_TRACKING_PASSWORD"),
    ],
)
def test_tracking_uri_that_can_never_work_is_refused(bad: str, message: str) -> None:
    with pytest.raises(UserError, match="tracking URI") as refusal:
        require_tracking_uri(bad)
    assert message in str(refusal.value)
    assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize(
    "good",
    [
        NOBODY,
        "https://mlflow.example.org/prefix",
        "http://[::1]:5000",
        "sqlite:////tmp/mlflow.db",
        "databricks",
    ],
)
def test_tracking_uri_that_may_work_some_day_is_not(good: str) -> None:
    require_tracking_uri(good)


def test_cells_are_children_of_their_latest_sweep(
    make_run: MakeRun, uri: str, tmp_path: Path
) -> None:
    cells = [make_run(seed) for seed in range(2)]
    parents = {}
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report").mkdir()
        (tmp_path / name / "report" / "index.html").write_text("a report")
        with SweepRecorder(tmp_path / name, name, uri, print) as sweep:
            sweep.log_params({"axes": {"objective": ["original", "DEFT"], "seed": [0, 1]}})
            sweep.log_note("two cells")
            if name == "first":
                for cell in cells:
                    with ExperimentRecorder(cell, uri, print, sweep=name) as recorder:
                        recorder.finish()
            # The second sweep finds one of them finished.
            sweep.add_cell(cells[0].path)
            sweep.add_cell(tmp_path / "never-started")
            sweep.log_metrics({"num_finished": 1.0})
            sweep.log_artifacts(tmp_path / name / "report")
            parents[name] = sweep.finish()
    reused, left = (mlflow_run(uri, cell).data.tags for cell in cells)
    assert reused["deft.sweep"] == "second"
    assert reused["deft.earlier_sweeps"] == "first"
    assert reused["mlflow.parentRunId"] == parents["second"]
    assert left["deft.sweep"] == "first"
    client = MlflowClient(uri)
    parent = client.get_run(parents["first"])
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["deft.kind"] == "sweep"
    assert parent.data.tags["mlflow.note.content"] == "two cells"
    assert parent.data.params["axes.objective"] == "['original', 'DEFT']"
    assert parent.data.metrics == {"num_finished": 1.0}
    assert [file.path for file in client.list_artifacts(parents["first"], "report")] == [
        "report/index.html"
    ]
    # The cell that ran after its sweep had been made known joined it by itself.
    with ExperimentRecorder(cells[1], uri, print, sweep="second") as recorder:
        recorder.finish()
    joined = mlflow_run(uri, cells[1]).data.tags
    assert joined["mlflow.parentRunId"] == parents["second"]
    assert joined["deft.earlier_sweeps"] == "first"


def test_parameters_are_named_as_people_filter_by_them(make_run: MakeRun, uri: str) -> None:
    flat = flatten(SPEC.model_dump(mode="json"))
    assert flat["dataset"] == "figfont"
    assert flat["dataset.size"] == 8000
    assert flat["model"] == "tiny"
    assert flat["objective"] == "DEFT"
    assert flat["training.learning_rate"] == 1e-3
    assert flat["evaluation.benchmarks.figfont.size"] == 500
    assert flat["seed"] == 0
    rules = [{"objective": "p", "seed": 1}, {"objective": "DEFT"}]
    same = [{"name": "figfont", "size": 60}, {"name": "figfont", "size": 80}]
    tree = {"exclude": rules, "grid": {"dataset": same}, "overrides": []}
    assert flatten(tree) == {"exclude": rules, "grid.dataset": same}
    run = make_run(objective="GeneralFamily-0.5")
    with ExperimentRecorder(run, uri, print) as recorder:
        recorder.finish()
    params = mlflow_run(uri, run).data.params
    assert params["objective"] == "GeneralFamily-0.5"
    assert params["objective.family"] == "GeneralFamily"
    assert params["objective.alpha"] == "0.5"
