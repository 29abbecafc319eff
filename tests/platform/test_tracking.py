"""A real MLflow store: nothing twice, nothing lost, a clear word when it cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from deft.platform.errors import StageError
from deft.platform.loading import load_spec
from deft.platform.run_directory import RunDirectory
from deft.platform.tracking import default_tracking_uri, flatten, start_recorder

SPEC = load_spec(None, {"dataset": "figfont", "model": "tiny", "objective": "DEFT"})


def test_events_are_delivered_once_however_often_they_are_sent(tmp_path: Path) -> None:
    run, uri = RunDirectory(tmp_path, SPEC), default_tracking_uri(tmp_path)
    run.create()
    recorder = start_recorder(run, uri)
    for step in range(1, 4):
        run.append_event(step, {"train/nll": 1 / step})
        recorder.deliver()
    # A driver that was killed knows nothing of what it had delivered.
    again = start_recorder(run, uri)
    assert again.run_id == recorder.run_id
    again.finish()
    client = MlflowClient(uri)
    history = client.get_metric_history(recorder.run_id, "train/nll")
    assert [(point.step, point.value) for point in history] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert client.get_run(recorder.run_id).info.status == "FINISHED"


def test_failed_run_carries_its_cause_and_can_go_on(tmp_path: Path) -> None:
    run, uri = RunDirectory(tmp_path, SPEC), default_tracking_uri(tmp_path)
    run.create()
    recorder = start_recorder(run, uri)
    recorder.fail(MemoryError("no room"))
    failed = MlflowClient(uri).get_run(recorder.run_id)
    assert failed.info.status == "FAILED"
    assert failed.data.tags["deft.error"] == "MemoryError: no room"
    assert start_recorder(run, uri).run_id == recorder.run_id
    assert MlflowClient(uri).get_run(recorder.run_id).info.status == "RUNNING"


def test_data_and_prompt_format_are_recorded(tmp_path: Path) -> None:
    run, uri = RunDirectory(tmp_path, SPEC), default_tracking_uri(tmp_path)
    run.create()
    bad_records = tmp_path / "bad_records.jsonl"
    bad_records.write_text('{"where": "a:7"}\n')
    prepared = {
        "num_examples": 90,
        "num_validation_examples": 5,
        "bad_records": {"missing field": 2},
        "bad_records_file": str(bad_records),
        "prompt_style": "chat",
        "format_hash": "0123456789ab",
        "overlap": {"gsm8k": {"num_overlapping": 9, "share": 0.1, "ids": ["a:3"]}},
    }
    run.finish("prepare", prepared)
    for _ in range(2):  # as when a run is started again
        recorder = start_recorder(run, uri)
        recorder.describe_data()
    client = MlflowClient(uri)
    data = client.get_run(recorder.run_id).data
    assert data.tags["deft.prompt_style"] == "chat"
    assert data.tags["deft.prompt_hash"] == "0123456789ab"
    assert data.metrics["data/num_examples"] == 90
    assert data.metrics["data/num_validation_examples"] == 5
    assert data.metrics["data/bad_records/missing_field"] == 2
    assert data.metrics["data/overlap/gsm8k"] == 0.1
    assert len(client.get_metric_history(recorder.run_id, "data/num_examples")) == 1
    files = {file.path for file in client.list_artifacts(recorder.run_id, "data")}
    assert files == {"data/prepare.json", "data/bad_records.jsonl"}


def test_server_that_does_not_answer_is_said_before_anything_long_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run = RunDirectory(tmp_path, SPEC)
    with pytest.raises(StageError, match="MLflow cannot be used"):
        start_recorder(run, "http://127.0.0.1:9")


def test_parameters_are_named_as_people_filter_by_them() -> None:
    flat = flatten(SPEC.model_dump(mode="json"))
    assert flat["dataset"] == "figfont"
    assert flat["dataset.size"] == 8000
    assert flat["model"] == "tiny"
    assert flat["objective"] == "DEFT"
    assert flat["training.learning_rate"] == 1e-3
    assert flat["evaluation.benchmarks.figfont.size"] == 500
    assert flat["seed"] == 0
