"""Helpers that tests of several packages share, importable by `pythonpath` in pyproject.toml."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from deft.evaluators.benchmarks.items import prepare_items
from deft.evaluators.generation.job import EvaluationJob, PromptRecord
from deft.evaluators.generation.prompts import Stops
from deft.evaluators.scores.metrics import accuracy
from deft.evaluators.scores.predictions import Prediction, summarize_predictions, write_predictions
from deft.evaluators.spec import BenchmarkSpec
from deft.platform.config.loading import load_spec
from deft.platform.config.spec import ExperimentSpec
from deft.platform.records.manifests import (
    BenchmarkOverlap,
    BenchmarkResult,
    EvaluateManifest,
    ModelResult,
    PrepareManifest,
    RecordManifest,
    Timings,
    TrainManifest,
)
from deft.platform.records.run_directory import RunDirectory
from deft.workers.data.prepare import Prepared, SourceCounts

if TYPE_CHECKING:
    from deft.workers.training.job import TrainJob

ROOT = Path(__file__).resolve().parent.parent
"""The checkout."""
DEFT = Path(sys.executable).with_name("deft")
"""The installed command."""
SHARED = ROOT.parent / "shared"
"""Data beside the checkout that some machines have; tests that read it skip where it is absent."""
SMALL_RUN_STEPS = 40
SMALL_RUN: dict[str, Any] = {
    "dataset": {"name": "figfont", "size": 120},
    "model": "tiny",
    "training": {
        "num_workers": 1,
        "epochs": 10,
        "max_steps": SMALL_RUN_STEPS,
        "batch_size": 8,
        "micro_batch_size": 8,
        "max_length": 256,
        "dtype": "float32",
    },
    "evaluation": {
        "general": False,
        "benchmarks": [{"name": "figfont", "size": 8, "max_tokens": 8}],
        "engine": {"type": "transformers"},
    },
}
"""A run of some seconds, but for its objective."""

BLOCK = re.compile(r"^```[a-z]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?(deft .*)")


def commands_in(page: str) -> list[str]:
    """Return the `deft` commands of a document's blocks of code."""
    lines = "".join(BLOCK.findall((ROOT / page).read_text())).replace("\\\n", " ").splitlines()
    return [match[1] for line in lines if (match := COMMAND.match(line))]


def environment_without_cluster() -> dict[str, str]:
    """Return this process's environment for a command that shall start a Ray of its own."""
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}


def run_with_own_mounts(
    script: str, folder: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a bash script that mounts file systems, which nobody else sees, in ``folder``.

    The test is skipped where the system does not allow it.
    """
    namespace = ["unshare", "--map-root-user", "--mount"]
    if subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode:
        pytest.skip("the system does not allow a file system of one's own (user namespaces)")
    return subprocess.run(
        [*namespace, "bash", "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def wait_until(
    condition: Callable[[], bool],
    what: str = "the condition",
    *,
    seconds: float = 60,
    process: subprocess.Popen[Any] | None = None,
) -> None:
    """Wait until ``condition`` holds; fail after ``seconds``, or when ``process`` has ended."""
    deadline = time.monotonic() + seconds
    while not condition():
        if process is not None:
            assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


class Clock:
    """Stands for the module `time`, as far as progress asks it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


def train_steps(run: Path) -> list[int]:
    """Return the optimizer steps on record of the run in directory ``run``, in their order."""
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [event["step"] for event in events if "train/nll" in event["metrics"]]


def evaluation_job(model: str, folder: Path, **benchmark: Any) -> EvaluationJob:
    """Prepare the evaluation of a model on one benchmark, below ``folder``."""
    spec = BenchmarkSpec.model_validate(benchmark)
    items = prepare_items(spec, None, folder / "cache")
    return EvaluationJob("eval", model, spec, str(items), "chat", str(folder / "out"))


def free_ports(number: int) -> list[int]:
    """Return distinct ports of the loopback interface that nothing listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [bound.getsockname()[1] for bound in sockets]
    for bound in sockets:
        bound.close()
    return ports


def free_port() -> int:
    """Return a port of the loopback interface that nothing listens on."""
    return free_ports(1)[0]


def make_prepare_manifest(
    items: dict[str, str] | None = None,
    overlap: dict[str, BenchmarkOverlap] | None = None,
    **fields: Any,
) -> PrepareManifest:
    """Return what a prepare stage leaves; ``fields`` replaces fields of `Prepared`."""
    prepared = Prepared(
        model_dir="/cache/models/tiny",
        examples_dir="/cache/examples/0123456789ab",
        rows_dir="/cache/rows/ba9876543210/train",
        validation_dir="/cache/rows/ba9876543210/validation",
        num_examples=90,
        num_validation_examples=5,
        num_too_long=0,
        num_truncated=0,
        num_noisy_examples=0,
        bad_records={},
        bad_records_file="/cache/rows/ba9876543210/bad_records.jsonl",
        num_tokens=9000,
        num_target_tokens=400,
        prompt_style="chat",
        format_hash="0123456789ab",
        num_bos=1,
        sources=(
            SourceCounts(
                name="figfont",
                revision=None,
                format_hash="0123456789ab",
                num_examples=90,
                num_validation_examples=5,
                num_noisy_examples=0,
                num_tokens=9000,
                num_target_tokens=400,
            ),
        ),
    )
    return PrepareManifest(
        prepared=replace(prepared, **fields), items=items or {}, overlap=overlap or {}
    )


def make_train_manifest(step: int, seconds: float = 1.0) -> TrainManifest:
    """Return what a train stage leaves that ended after ``step`` steps."""
    return TrainManifest(model="model", seconds=seconds, step=step, metrics={})


def make_benchmark_result(
    metrics: dict[str, float], predictions: str = "", primary_metric: str = "avg"
) -> BenchmarkResult:
    """Return the result of one model on one benchmark, asked in the chat style."""
    return BenchmarkResult(
        metrics=metrics,
        primary_metric=primary_metric,
        predictions=predictions,
        prompt=PromptRecord(
            style="chat", hash="abcabcabcabc", num_bos=1, stop=Stops(token_ids=[2], strings=[])
        ),
    )


def make_evaluate_manifest(
    models: dict[str, ModelResult], seconds: float = 1.0
) -> EvaluateManifest:
    """Return what an evaluate stage leaves."""
    return EvaluateManifest(
        models=models, num_generated=0, num_resumed=0, timings=Timings(total=seconds)
    )


def make_prediction(item: int, *, is_correct: bool, **fields: Any) -> Prediction:
    """Return one graded response; ``fields`` replaces fields of `Prediction`."""
    prediction = Prediction(
        id=f"item-{item}",
        item_digest=f"digest-{item}",
        sample=0,
        source="made up",
        prompt=f"question {item}",
        num_bos=1,
        response=f"response {item}",
        gold=f"gold {item}",
        finish_reason="stop",
        n_tokens=3,
        verdict="correct" if is_correct else "wrong",
        extracted=f"extracted {item}",
        scores={},
    )
    return replace(prediction, **fields)


def write_finished_run(
    root: Path, tables: dict[str, dict[str, list[Prediction]]], *settings: str, objective: str
) -> RunDirectory[ExperimentSpec]:
    """Leave what a run of the tiny model on figfont leaves, all stages finished.

    Args:
        root: run root.
        tables: ``base`` or ``eval`` → benchmark → its predictions.
        settings: of the run, as for `--set`.
        objective: of the run.
    """
    names = {"dataset": "figfont", "model": "tiny", "objective": objective}
    return leave_finished_run(root, load_spec(None, names, settings), tables)


def leave_finished_run(
    root: Path, spec: ExperimentSpec, tables: dict[str, dict[str, list[Prediction]]]
) -> RunDirectory[ExperimentSpec]:
    """Leave what a run of ``spec`` leaves, all stages finished; see `write_finished_run`."""
    run = RunDirectory(root, spec)
    run.create()
    models = {}
    for label, benchmarks in tables.items():
        results = {}
        for benchmark, predictions in benchmarks.items():
            file = f"predictions/{label}-{benchmark}.parquet"
            write_predictions(predictions, run.path / file)
            metrics = summarize_predictions(predictions, (accuracy,))
            results[benchmark] = make_benchmark_result(metrics, predictions=file)
        directory = "/models/tiny-0123456789ab" if label == "base" else str(run.path / "model")
        models[label] = ModelResult(directory=directory, benchmarks=results)
    for step in (1, 2):
        run.append_event(step, {"train/nll": 3.0 - step, "train/objective": 3.0 - step})
    run.finish(make_prepare_manifest())
    run.finish(make_train_manifest(2))
    run.finish(make_evaluate_manifest(models))
    run.finish(RecordManifest(mlflow_run_id=f"mlflow-{run.path.name}"))
    return run


def deepspeed_runs(
    jobs: list[TrainJob], storage: Path, num_workers: int = 2
) -> list[dict[str, Any]]:
    """Train several jobs in one group of workers; the last step of each exports the model.

    Returns for each job its objective per step, its gradient norms, and its exported weights.
    """
    import ray.train
    import torch
    from ray.train.torch import TorchTrainer

    def run_all(config: dict[str, Any]) -> None:
        import tempfile

        from transformers import AutoModelForCausalLM

        from deft.workers.training.ray_entry import prepare_process

        prepare_process()
        from deft.workers.training import sft_loop

        class Events:
            def __init__(self) -> None:
                self.seen: list[dict[str, Any]] = []

            def put(self, event: dict[str, Any]) -> None:
                self.seen.append(event)

            def curve(self, kind: str, name: str) -> list[float]:
                return [e["metrics"][name] for e in self.seen if e["event"] == kind]

        results = []
        for job in config["jobs"]:
            events = Events()
            with tempfile.TemporaryDirectory() as directory:

                def save_checkpoint(
                    engine: Any, export: Any, *_: Any, directory: str = directory
                ) -> None:
                    export(Path(directory))

                # One Ray Train run stands for many here: none has a checkpoint.
                sft_loop.save_checkpoint = save_checkpoint
                sft_loop.train(replace(job, events=events))
                if ray.train.get_context().get_world_rank() == 0:
                    exported = AutoModelForCausalLM.from_pretrained(directory)
                    results.append(
                        {
                            "objective": events.curve("train", "objective"),
                            "grad_norm": events.curve("train", "grad_norm"),
                            "validation": events.curve("validation", "nll"),
                            "metrics": events.seen[-2]["metrics"],
                            "weights": exported.state_dict(),
                        }
                    )
        with tempfile.TemporaryDirectory() as directory:
            torch.save(results, Path(directory, "results.pt"))
            rank = ray.train.get_context().get_world_rank()
            checkpoint = ray.train.Checkpoint.from_directory(directory) if rank == 0 else None
            ray.train.report({}, checkpoint=checkpoint)

    result = TorchTrainer(
        run_all,
        train_loop_config={"jobs": jobs},
        scaling_config=ray.train.ScalingConfig(num_workers=num_workers),
        run_config=ray.train.RunConfig(storage_path=str(storage)),
    ).fit()
    assert result.checkpoint is not None
    loaded: list[dict[str, Any]] = torch.load(Path(result.checkpoint.path, "results.pt"))
    return loaded


CHOICE_TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}, train: {rows}}}}}
output_type: multiple_choice
test_split: test
fewshot_split: train
doc_to_text: "{{{{question}}}} = "
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{gold}}}}"
target_delimiter: ""
metric_list: [{{metric: acc, aggregation: mean}}, {{metric: acc_norm, aggregation: mean}}]
metadata: {{version: 2.0}}
"""
GENERATE_TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
output_type: generate_until
test_split: test
doc_to_text: "{{{{question}}}} = "
doc_to_target: "{{{{choices[gold]}}}}"
generation_kwargs: {{until: ["A"], max_gen_toks: 6}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""


def write_harness_tasks(folder: Path) -> dict[str, str]:
    """Write tasks of lm-evaluation-harness and their rows; returns them as names of benchmarks."""
    rows = [
        {"question": f"{n} + {n}", "choices": [str(2 * n), f"{n}{n}", "none"], "gold": n % 3}
        for n in range(9)
    ]
    file = folder / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    group = "group: own_group\ntask: [own_choice, own_text]\nmetadata: {version: 3}\n"
    texts = {"own_choice": CHOICE_TASK, "own_text": GENERATE_TASK}
    files = {name: text.format(name=name, rows=file) for name, text in texts.items()}
    for name, text in (files | {"own_group": group}).items():
        (folder / f"{name}.yaml").write_text(text)
    return {name: f"lm_eval:{folder / name}.yaml" for name in (*files, "own_group")}
