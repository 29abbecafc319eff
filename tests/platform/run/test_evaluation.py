"""`deft evaluate` and `deft compare` on real parts: a model of one's own, a benchmark of one's own.

The engine is transformers', which starts in seconds; vLLM's is tested with the pool.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from deft.platform.commands.compare import compare_runs
from deft.platform.commands.compare_table import show_comparison
from deft.platform.config.loading import load_evaluation
from deft.platform.console import RunConsole
from deft.platform.errors import UserError
from deft.platform.records.manifests import EvaluateManifest, RecordManifest, require_manifest
from deft.platform.records.run_directory import RunDirectory
from deft.platform.run.context import RunContext
from deft.platform.run.evaluate_command import run_evaluation
from deft.platform.tracking import recorder as tracking
from deft.platform.tracking.experiment_recorder import ExperimentRecorder
from deft.workers.common.example import Example
from deft.workers.modeling.model_files import build_tiny
from helpers import make_train_manifest, write_harness_tasks

Deft = Callable[..., CompletedProcess[str]]

OWN_BENCHMARK = """
from deft.evaluators.benchmarks.base import Benchmark, Item, Sampling
from deft.evaluators.scores.metrics import accuracy, pass_at_k


def rows():
    return ({"a": a, "b": a + 1} for a in range(12))


def read(record, number):
    question = f"What is {record['a']} + {record['b']}?"
    gold = str(record["a"] + record["b"])
    return Item(str(number), ({"role": "user", "content": question},), gold)


sums = Benchmark(
    name="sums",
    summary="sums of neighbors",
    source="made up",
    records=rows,
    read=read,
    grader="own_benchmark:grade",
    sampling=Sampling(max_tokens=6),
    metrics=(accuracy, pass_at_k),
)


def grade(record):
    from deft.evaluators.grading.verdicts import Grade, Verdict

    right = len(record["response"]) % 2 == 0
    return Grade(Verdict.correct if right else Verdict.wrong, record["response"])
"""


@pytest.fixture
def model(tmp_path: Path, save_small_model: Callable[[Path], None]) -> Path:
    save_small_model(tmp_path / "my-model")
    return tmp_path / "my-model"


def test_any_model_on_a_benchmark_of_ones_own(
    deft: Deft, model: Path, tmp_path: Path, ray_address: str
) -> None:
    (tmp_path / "own_benchmark.py").write_text(OWN_BENCHMARK)
    rows = [{"prompt": f"What is {i}?", "response": f"{i}"} for i in range(8)]
    (tmp_path / "held.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = [
        *("evaluate", "--model", "my-model", "--benchmarks", "own_benchmark:sums"),
        *("--samples", "4", "--heldout", "held.jsonl"),
        *("--set", "evaluation.engine.type=transformers"),
    ]
    done = deft(*arguments, RAY_ADDRESS=ray_address)
    assert done.returncode == 0, done.stderr
    assert "sums, eval 48/48 responses" in done.stdout
    assert "avg@4" in done.stdout
    assert "bits_per_byte" in done.stdout

    (directory,) = (tmp_path / "runs").glob("evaluation-my-model-*")
    metrics = require_manifest(directory, EvaluateManifest).models["eval"].metrics["sums"]
    table = pq.read_table(directory / "predictions" / "eval-sums.parquet").to_pylist()
    assert len(table) == 48
    right = [row["verdict"] == "correct" for row in table]
    assert right == [len(row["response"]) % 2 == 0 for row in table]
    assert metrics["avg_at_4"] == pytest.approx(sum(right) / 48)
    heldout = require_manifest(directory, EvaluateManifest).models["eval"].heldout
    assert heldout["num_items"] == 8

    client = MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("deft")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["eval/sums/avg_at_4"] == metrics["avg_at_4"]
    assert run.data.metrics["eval/heldout/nll"] > 0
    assert run.data.params["evaluation.benchmarks.own_benchmark:sums.samples"] == "4"

    again = deft(*arguments, RAY_ADDRESS=ray_address)
    assert again.returncode == 0
    assert "finished already" in again.stdout

    interrupt(directory, table)
    resumed = deft(*arguments, RAY_ADDRESS=ray_address)
    assert resumed.returncode == 0, resumed.stderr
    manifest = require_manifest(directory, EvaluateManifest)
    assert (manifest.num_resumed, manifest.num_generated) == (10, 38)
    after = pq.read_table(directory / "predictions" / "eval-sums.parquet").to_pylist()
    assert after == table

    other = deft(*arguments, "--temperature", "0.2", RAY_ADDRESS=ray_address)
    assert other.returncode == 0, other.stderr
    names = [path.name for path in (tmp_path / "runs").glob("evaluation-my-model-*")]
    first, second = directory.name, next(name for name in names if name != directory.name)
    compared = deft("compare", first, second, COLUMNS="240")
    assert compared.returncode == 0, compared.stderr
    assert "sums, avg@4 (12 items)" in compared.stdout
    # The same model on the same rows: not a bit of difference.
    bits = compared.stdout[compared.stdout.index("heldout, bits per byte") :]
    line = next(line for line in bits.splitlines() if second in line)
    assert "+0.000" in line
    assert "1.0000 ≈" in line


def test_evaluation_of_a_run_is_linked_to_it_even_if_mlflow_was_not_there(
    make_run: Callable[..., RunDirectory],
    save_small_model: Callable[[Path], None],
    tmp_path: Path,
    ray_cluster: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained, uri = make_run(), f"sqlite:///{tmp_path / 'mlflow.db'}"
    save_small_model(trained.path / "model")
    trained.finish(make_train_manifest(7))
    with ExperimentRecorder(trained, uri, print) as recorder:
        recorder.log_model()
        training_run = recorder.finish()
    held_out = tmp_path / "held.jsonl"
    held_out.write_text('{"prompt": "What is 1?", "response": "1"}\n')
    heldout = {"heldout": {"file": str(held_out)}}
    spec = load_evaluation(trained.path.name, [], {}, heldout, (), tmp_path)

    monkeypatch.setattr(tracking, "DELIVERY_TIMEOUT", 1.0)
    nobody = "http://127.0.0.1:9"
    run = run_evaluation(spec, RunContext(tmp_path, RunConsole(), nobody))
    assert run.has_finished("evaluate")
    assert not run.has_finished("record")
    monkeypatch.undo()
    run_evaluation(spec, RunContext(tmp_path, RunConsole(), uri))

    client = MlflowClient(uri)
    recorded = client.get_run(run.require_manifest(RecordManifest).mlflow_run_id)
    assert recorded.info.status == "FINISHED"
    assert recorded.data.tags["deft.kind"] == "evaluation"
    assert recorded.data.tags["deft.trained_by"] == trained.path.name
    assert recorded.data.tags["deft.trained_by_run_id"] == training_run
    (used,) = recorded.inputs.model_inputs
    (made,) = client.get_run(training_run).outputs.model_outputs
    assert used.model_id == made.model_id
    measured = {m.key: m.run_id for m in client.get_logged_model(made.model_id).metrics}
    assert measured["eval/heldout/nll"] == recorded.info.run_id


def interrupt(directory: Path, table: list[dict[str, object]]) -> None:
    """Leave the run as a crash does: no manifest, a part of the responses, the last line torn."""
    for stage in ("evaluate", "record"):
        (directory / "stages" / f"{stage}.json").unlink()
    (journal,) = (directory / "responses").iterdir()
    lines = journal.read_text().splitlines()
    assert len(lines) == len(table)
    journal.write_text("\n".join(lines[:10]) + '\n{"id": "3", "sam')


def test_data_that_is_missing_is_said_before_anything_is_made(
    deft: Deft, model: Path, tmp_path: Path, ray_address: str
) -> None:
    (tmp_path / "data").mkdir()
    before = sorted(tmp_path.rglob("*"))
    arguments = ["--model", "my-model", "--benchmarks", "gsm8k", "--data-dir", "data"]
    done = deft("evaluate", *arguments, RAY_ADDRESS=ray_address)
    assert done.returncode == 2
    assert "there is no gsm8k.jsonl|.json|.parquet in the data folder" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_tasks_of_lm_evaluation_harness_stand_in_the_same_tables(
    tmp_path: Path, ray_cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two models on a benchmark of the platform and a task of the library: one comparison."""
    names = ["chain_sum", write_harness_tasks(tmp_path)["own_choice"]]
    settings = ["evaluation.engine.type=transformers", "evaluation.heldout=null"]
    console, uri, runs = RunConsole(), f"sqlite:///{tmp_path / 'mlflow.db'}", []
    for seed in (0, 1):
        path = tmp_path / f"model-{seed}"
        path.mkdir()
        text = "0123456789 + = none user assistant"
        build_tiny(path, [Example("0", ({"role": "user", "content": text},), "")], seed=seed)
        sampling = {"size": 9, "max_tokens": 4}
        spec = load_evaluation(str(path), names, sampling, {}, settings, tmp_path)
        runs.append(run_evaluation(spec, RunContext(tmp_path, console, uri)))
    comparison = compare_runs([run.path for run in runs])
    tables = {(row.benchmark, row.metric) for row in comparison.rows}
    assert tables == {("chain_sum", "avg@1"), ("lm_eval:own_choice", "avg@1")}
    assert comparison.num_comparisons == 2
    show_comparison(comparison, console)
    assert "lm_eval:own_choice, avg@1 (9 items)" in capsys.readouterr().out

    (measured,) = runs[1].require_manifest(EvaluateManifest).models.values()
    client = MlflowClient(uri)
    recorded = client.get_run(runs[1].require_manifest(RecordManifest).mlflow_run_id)
    accuracy = measured.benchmarks["lm_eval:own_choice"].metrics["acc"]
    assert recorded.data.metrics["eval/lm_eval:own_choice/acc"] == accuracy


def test_unknown_task_is_refused_with_the_nearest_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"did you mean lm_eval:arc_challenge\?"):
        load_evaluation("my-model", ["lm_eval:arc_chalenge"], {}, {}, (), tmp_path)
