"""The train stage of a run: start Ray Train, show and record its progress."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deft.platform.config.spec import ExperimentSpec
from deft.platform.console import ProgressView, RunConsole, format_metrics
from deft.platform.records.manifests import TrainManifest
from deft.platform.records.run_directory import RunDirectory
from deft.platform.run.cluster import event_queue
from deft.platform.run.context import RunContext
from deft.platform.run.ray_train import chosen_checkpoint, fetch_model, fit
from deft.workers.common.text import plural
from deft.workers.data.prepare import Prepared
from deft.workers.training.job import TrainJob

OnValidation = Callable[[int, dict[str, float]], None]
"""Called with the step and the metrics of every validation."""


def train_stage(
    run: RunDirectory[ExperimentSpec],
    prepared: Prepared,
    context: RunContext,
    on_validation: OnValidation | None = None,
) -> None:
    """Train with Ray Train; the export moves to `model/`, step metrics go to the events."""
    spec, training, console = run.spec, run.spec.training, context.console
    if run.has_finished("train"):
        console.stage("train", "finished already")
        return
    num_steps = training.num_steps(prepared.num_examples, prepared.num_tokens)
    console.stage(
        "train",
        f"{spec.objective} · {num_steps} steps of {training.batch_size} examples · "
        f"{training.num_workers} workers, ZeRO-{training.resolved_zero_stage}",
    )
    started = time.monotonic()
    with console.progress("steps") as view:
        progress = TrainingProgress(run, num_steps, console, view, on_validation)
        view.wait(f"starting {plural(training.num_workers, 'worker')}")
        with event_queue(progress.handle) as (events, raise_failure):
            job = TrainJob(
                training=training,
                objective=str(spec.objective),
                model_dir=prepared.model_dir,
                examples_dir=prepared.examples_dir,
                rows_dir=prepared.rows_dir,
                validation_dir=prepared.validation_dir,
                scratch_dir=scratch_directory(run),
                num_steps=num_steps,
                seed=spec.seed,
                events=events,
                prompt_style=prepared.prompt_style,
            )
            result = fit(
                job,
                name=run.path.name,
                storage=training.checkpoint_storage or str(run.path / "checkpoints"),
                use_gpu=context.use_gpu,
                on_restart=progress.restarted,
                is_training=lambda: progress.has_begun,
                on_poll=raise_failure,
            )
    fetch_model(chosen_checkpoint(result, training.keep), run.path / "model")
    seconds, metrics = time.monotonic() - started, dict(result.metrics or {})
    step = metrics.pop("step")
    run.finish(
        TrainManifest(
            model="model", seconds=seconds, step=step, dtype=progress.dtype, metrics=metrics
        )
    )
    shutil.rmtree(scratch_directory(run), ignore_errors=True)
    if training.keep_checkpoints is None:
        shutil.rmtree(run.path / "checkpoints", ignore_errors=True)


def scratch_directory(run: RunDirectory[ExperimentSpec]) -> str:
    """Return where checkpoints of ``run`` are gathered: runs on one node have one each."""
    scratch = run.spec.training.scratch
    return str(Path(scratch, run.path.name) if scratch else run.path / "scratch")


class TrainingProgress:
    """Shows the events of training workers, and appends their metrics to the run's events."""

    def __init__(
        self,
        run: RunDirectory[ExperimentSpec],
        num_steps: int,
        console: RunConsole,
        view: ProgressView,
        on_validation: OnValidation | None,
    ) -> None:
        self._run = run
        self._num_steps = num_steps
        self._console = console
        self._view = view
        self._on_validation = on_validation
        self.has_begun = False
        """Whether a worker has taken a step since this process was started."""
        self.dtype: str | None = None
        """Of the parameters, once the workers have loaded them."""
        # A resumed run repeats the steps since its checkpoint.
        self._recorded = {(next(iter(e.metrics)).split("/")[0], e.step) for e in run.events()}

    def handle(self, event: dict[str, Any]) -> None:
        """Show one event of a worker; append it to the run's events if it carries metrics."""
        kind, step, metrics = event["event"], event["step"], event["metrics"]
        self.has_begun |= kind == "train"
        self._show(kind, step, metrics)
        if kind in ("train", "validation") and (kind, step) not in self._recorded:
            self._recorded.add((kind, step))
            self._run.append_event(step, {f"{kind}/{name}": x for name, x in metrics.items()})

    def restarted(self, cause: str) -> None:
        """Warn that workers were replaced."""
        self._console.print(
            f"warning: lost a training worker ({cause}); restarting from the last checkpoint"
        )

    def _show(self, kind: str, step: int, metrics: dict[str, Any]) -> None:
        if kind == "train":
            shown = format_metrics(metrics, ("objective", "nll", "mean_p", "mean_gate"))
            self._view.update("train", step, self._num_steps, shown)
            if step == self._num_steps:
                self._view.wait("storing the model")
        elif kind == "validation":
            shown = format_metrics(metrics, ("nll", "bits_per_byte", "token_accuracy"))
            self._console.print(f"          held out, after {step} steps  {shown}")
            if self._on_validation is not None:
                self._on_validation(step, metrics)
        elif kind == "numerics":
            self.dtype = metrics["dtype"].removeprefix("torch.")
            self._console.print(f"          {self.dtype} · attention {metrics['attention']}")
            self._view.wait("first step")
        elif kind == "damaged_checkpoint":
            self._console.print(
                f"warning: the checkpoint of step {step} is damaged ({metrics['file']}) "
                "and passed over"
            )
        elif kind == "preemption":
            self._console.print(f"warning: a node will be taken away; step {step} is stored")
        elif kind == "stop":
            self._console.print(f"warning: asked to end; step {step} is stored")
        else:
            self._console.print(f"warning: step {step} was skipped: {metrics['problem']}")
