"""The main job on real parts: two runs that differ in their objective, read back from MLflow."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pyarrow.parquet as pq
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run

from deft.platform.records.manifests import EvaluateManifest, PrepareManifest, require_manifest
from deft.workers.training.engine import resolve_dtype

RUN_FILE = """
name: small
dataset: {name: figfont, size: 400}
model: tiny
training:
  epochs: 2
  batch_size: 16
  micro_batch_size: 4
  max_length: 256
  learning_rate: 3.0e-3
  checkpoint_every: 10
  validate_every: 20
evaluation: {benchmarks: [{name: figfont, size: 20}]}
"""

Deft = Callable[..., CompletedProcess[str]]


def run_of(client: MlflowClient, objective: str) -> Run:
    experiment = client.get_experiment_by_name("deft")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], f"params.objective = '{objective}'")
    return run


def curve(client: MlflowClient, run: Run, name: str) -> list[float]:
    history = client.get_metric_history(run.info.run_id, name)
    assert [point.step for point in history] == list(range(1, len(history) + 1))
    return [point.value for point in history]


def test_two_objectives_from_yaml_to_mlflow(
    deft: Deft, tmp_path: Path, ray_address: str, fault: Callable[..., None]
) -> None:
    """One of the two runs is killed half-way and started again; its curve must not show it."""
    (tmp_path / "run.yaml").write_text(RUN_FILE)
    kill_driver_while_training(tmp_path, ray_address)
    for objective in ("original", "DEFT"):
        done = deft("run", "run.yaml", "--objective", objective, RAY_ADDRESS=ray_address)
        assert done.returncode == 0, done.stderr
        assert "jaro_winkler" in done.stdout
        assert "deft ui" in done.stdout
        noise = [
            line for line in done.stderr.splitlines() if "Warning" not in line and line.strip()
        ]
        assert noise == []

    root = tmp_path / "runs"
    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    nll_run, deft_run = run_of(client, "original"), run_of(client, "DEFT")

    for run in (nll_run, deft_run):
        assert run.info.status == "FINISHED"
        assert run.data.params["model"] == "tiny"
        assert run.data.params["dataset"] == "figfont"
        assert run.data.params["training.batch_size"] == "16"
        assert run.data.params["evaluation.benchmarks.figfont.size"] == "20"
        assert run.data.tags["deft.prompt_style"] == "chat"
        assert len(run.data.tags["deft.prompt_hash"]) == 12
        assert run.data.metrics["data/num_validation_examples"] > 0
        assert run.data.metrics["data/overlap/figfont"] == 0
        nll = curve(client, run, "train/nll")
        assert nll[-1] < nll[0] / 2
        metrics = run.data.metrics
        assert 0 <= metrics["base/figfont/jaro_winkler"] <= 1
        # Intervals and counts, which would have charts of their own, are in a table.
        assert not [name for name in metrics if name.endswith(("_ci_low", "_stderr"))]
        results = Path(client.download_artifacts(run.info.run_id, "results.csv")).read_text()
        assert "trained,figfont,num_items,20.0,,," in results
        assert "base,general,num_items,100.0,,," in results
        # One yardstick for all objectives: a trained model knows what was held out from it better.
        assert metrics["eval/heldout/nll"] < metrics["base/heldout/nll"] / 2
        assert 0 <= metrics["eval/heldout/ece"] <= 1
        held_out = client.get_metric_history(run.info.run_id, "validation/bits_per_byte")
        assert [point.step for point in held_out] == [0, 20, 40, len(nll)]
        assert held_out[-1].value < held_out[0].value / 2
        # The last validation and the evaluation of the trained model are the same measurement, in
        # batches of another shape, which bfloat16 rounds another way.
        rounding = 1e-4 if resolve_dtype("auto") is torch.float32 else 1e-3
        measured = metrics["eval/heldout/bits_per_byte"]
        assert measured == pytest.approx(held_out[-1].value, rel=rounding)
        for name in ("learning_rate", "grad_norm", "tokens_per_second", "mean_p"):
            assert len(curve(client, run, f"train/{name}")) == len(nll)

        contexts = {data.tags[0].value for data in run.inputs.dataset_inputs}
        assert contexts == {"training", "validation", "evaluation"}
        (output,) = run.outputs.model_outputs
        model = client.get_logged_model(output.model_id)
        assert model.tags["deft.directory"] == str(root / run.info.run_name / "model")
        linked = {metric.key: metric.dataset_name for metric in model.metrics}
        assert linked["eval/figfont/jaro_winkler"] == "figfont"
        assert not any(name.startswith("base/") for name in linked)

        artifacts = {file.path for file in client.list_artifacts(run.info.run_id)}
        assert {"spec.json", "events.jsonl", "packages.txt", "predictions", "figures"} <= artifacts
        file = client.download_artifacts(run.info.run_id, "predictions/eval-figfont.parquet")
        predictions = pq.read_table(file).to_pydict()
        assert predictions["gold"][0] == "IGAD"
        assert len(predictions["response"]) == 20
        evaluated = require_manifest(root / run.info.run_name, EvaluateManifest).models["eval"]
        prompt = evaluated.benchmarks["figfont"].prompt
        prepared = require_manifest(root / run.info.run_name, PrepareManifest).prepared
        assert (prompt.hash, prompt.num_bos) == (prepared.format_hash, prepared.num_bos)
        spec = json.loads(Path(client.download_artifacts(run.info.run_id, "spec.json")).read_text())
        assert spec["objective"] == run.data.params["objective"]
        directory = root / run.info.run_name
        card = (directory / "model" / "README.md").read_text()
        assert f"| figfont | jaro_winkler | {metrics['base/figfont/jaro_winkler']:.3f} [" in card
        log = (directory / "log.txt").read_text()
        assert f"train {len(nll)}/{len(nll)} steps" in log
        assert "record    http" in log

    # −log p weighs every token alike, and is the NLL; DEFT's gate α/(α + 1e-6) · p^α with
    # α = Σ p² is near 1 while the model knows nothing, and falls as it commits itself.
    assert set(curve(client, nll_run, "train/mean_gate")) == {1.0}
    assert curve(client, nll_run, "train/objective") == pytest.approx(
        curve(client, nll_run, "train/nll")
    )
    gates = curve(client, deft_run, "train/mean_gate")
    focus = curve(client, deft_run, "train/mean_focus")
    assert gates[0] > 0.98
    assert gates[-1] < 0.95
    assert focus == pytest.approx(curve(client, deft_run, "train/mean_concentration"))
    assert focus[-1] > 10 * focus[0]
    assert all(
        value < nll
        for value, nll in zip(
            curve(client, deft_run, "train/objective"),
            curve(client, deft_run, "train/nll"),
            strict=True,
        )
    )

    check_comparison(deft, nll_run.info.run_name, deft_run.info.run_name)
    check_second_time(deft, root, ray_address)
    check_export(root / str(deft_run.data.tags["deft.run"]))
    fault(
        "kill -9 of the driver, `deft run`",
        "its workers end; the same command goes on from the last checkpoint",
        seconds="it is started again",
    )


def kill_driver_while_training(tmp_path: Path, ray_address: str) -> None:
    """Start the DEFT run and kill -9 its driver after the first checkpoint."""
    command = [Path(sys.executable).with_name("deft"), "run", "run.yaml", "--objective", "DEFT"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, "RAY_ADDRESS": ray_address},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as driver:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and driver.poll() is None:
            lines = [file.read_text().count("\n") for file in tmp_path.glob("runs/*/events.jsonl")]
            if lines and lines[0] > 12:
                break
            time.sleep(0.05)
        driver.kill()
    (events,) = tmp_path.glob("runs/*/events.jsonl")
    assert 12 < events.read_text().count("\n") < 44
    assert not (events.parent / "stages" / "train.json").exists()


def check_comparison(deft: Deft, first: str, second: str) -> None:
    """Both runs and the model before, benchmark by benchmark, with intervals and significance."""
    done = deft("compare", first, second, COLUMNS="240")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for title in (
        "figfont, jaro_winkler (20 items)",
        "general, avg@1 (100 items)",
        "bits per byte",
    ):
        start = next(i for i, line in enumerate(lines) if title in line)
        block = "\n".join(lines[start : start + 11])
        assert first in block
        assert second in block
        assert "base: tiny-" in block
    assert "corrected for 6 comparisons (Holm)" in done.stdout
    # Training cut the loss on held-out rows by far more than chance would.
    start = next(i for i, line in enumerate(lines) if "bits per byte" in line)
    base = next(line for line in lines[start:] if "base: tiny-" in line)
    assert "higher" in base


def check_second_time(deft: Deft, root: Path, ray_address: str) -> None:
    """Run the same spec again: it says what is done, and does nothing."""
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    again = deft("run", "run.yaml", "--objective", "deft", RAY_ADDRESS=ray_address)
    assert again.returncode == 0
    assert "finished already" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()} == before


def check_export(run: Path) -> None:
    """Load the export as a Hugging Face model that asks for nothing of ours."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(run / "model")
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    loss = model(**tokenizer("US", return_tensors="pt")).logits.float().logsumexp(-1)
    assert loss.isfinite().all()
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert all(math.isfinite(v) for event in events for v in event["metrics"].values())


FAILING_OBJECTIVE = """
import torch
from deft.objectives import objective
from deft.objectives.functions.deformed import original

@objective()
def fragile(stats):
    # The check before training runs in no process group.
    if torch.distributed.is_initialized():
        raise RuntimeError("the objective of this test fails on purpose")
    return original(stats)
"""


def test_error_in_a_worker_reaches_the_user_as_its_cause(
    deft: Deft, tmp_path: Path, ray_address: str
) -> None:
    (tmp_path / "run.yaml").write_text(RUN_FILE)
    (tmp_path / "fragile_objective.py").write_text(FAILING_OBJECTIVE)
    arguments = ["run", "run.yaml", "--objective", "fragile_objective:fragile"]
    done = deft(*arguments, RAY_ADDRESS=ray_address)
    assert done.returncode == 1
    assert "train: RuntimeError: the objective of this test fails on purpose" in done.stderr
    assert "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error")]) == 1
    client = MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    failed = run_of(client, "fragile_objective:fragile")
    assert failed.info.status == "FAILED"
    assert "on purpose" in failed.data.tags["deft.error"]
    (run,) = (tmp_path / "runs").glob("small-*")
    assert [file.stem for file in (run / "stages").iterdir()] == ["prepare"]
