"""The base model's evaluation, which runs share: what a changed grader does to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from rich.console import Console

from deft.evaluators.generation.job import EvaluationJob, JobResult, PromptRecord
from deft.evaluators.generation.prompts import Stops
from deft.evaluators.spec import EvaluationSpec
from deft.platform.config.spec import ExperimentSpec
from deft.platform.console import RunConsole
from deft.platform.records.manifests import TrainManifest
from deft.platform.records.run_directory import RunDirectory
from deft.platform.run.context import RunContext
from deft.platform.run.evaluate_stage import evaluate_base, trained_dtype
from deft.platform.run.evaluation import Evaluation


class ScriptedPool:
    """Stands for a pool of engines: leaves one response, and reports what was there already."""

    def __init__(self) -> None:
        self.resumed: list[str] = []

    def run(
        self, jobs: Sequence[EvaluationJob], progress: Any = None
    ) -> Iterator[tuple[EvaluationJob, JobResult]]:
        for job in jobs:
            self.resumed.append(job.responses.read_text() if job.responses.exists() else "")
            job.responses.parent.mkdir(parents=True, exist_ok=True)
            job.responses.write_text("a response\n")
            job.predictions.parent.mkdir(parents=True, exist_ok=True)
            job.predictions.write_bytes(b"graded")
            prompt = PromptRecord(style="chat", hash="0" * 12, num_bos=0, stop=Stops([0], []))
            yield job, JobResult({"avg_at_1": 0.5}, prompt, 1, 0, 0.0, 0.0)


def test_losses_of_both_models_are_measured_in_the_dtype_of_training(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, ExperimentSpec(dataset="figfont", model="tiny", objective="p"))
    (run.path / "model").mkdir(parents=True)
    (run.path / "model" / "config.json").write_text('{"dtype": "bfloat16"}')
    trained = TrainManifest(model="model", seconds=1.0, step=2, dtype="float16", metrics={})
    run.finish(trained)
    assert trained_dtype(run) == "float16"
    # The last start found all steps taken, and so heard no worker say it.
    run.finish(trained.model_copy(update={"dtype": None}))
    assert trained_dtype(run) == "bfloat16"


def test_a_changed_grader_grades_the_base_models_responses_again(tmp_path: Path) -> None:
    pool = ScriptedPool()
    context = RunContext(tmp_path, RunConsole(Console(quiet=True)), "sqlite://", pool=pool)
    model = tmp_path / "model"
    model.mkdir()
    settings = {"benchmarks": ["figfont"], "general": False, "heldout": None}
    evaluation = Evaluation(
        spec=EvaluationSpec.model_validate(settings),
        models={"base": str(model)},
        items={"figfont": "items/figfont-0123456789ab.000000000000.jsonl"},
        trained_style="chat",
        out=tmp_path / "run",
        context=context,
    )
    events: Any = SimpleQueue()
    evaluate_base(evaluation, events)
    evaluate_base(evaluation, events)
    assert pool.resumed == [""]  # the second time it was taken from the cache
    # The second part of the file's name identifies graders and metrics.
    regraded = {"figfont": "items/figfont-0123456789ab.111111111111.jsonl"}
    evaluate_base(replace(evaluation, items=regraded), events)
    assert pool.resumed == ["", "a response\n"]
    other_items = {"figfont": "items/figfont-ba9876543210.111111111111.jsonl"}
    evaluate_base(replace(evaluation, items=other_items), events)
    assert pool.resumed[-1] == ""
