"""From a spec to a finished, recorded experiment: prepare → train → evaluate → record."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from deft.objectives import ObjectiveSpec
from deft.objectives.check import check_own_objective
from deft.objectives.diagnostics import draw_gate_dynamics
from deft.platform.config.spec import ExperimentSpec
from deft.platform.console import RunConsole
from deft.platform.errors import UserError
from deft.platform.records.manifests import (
    STAGES,
    EvaluateManifest,
    PrepareManifest,
    Stage,
    TrainManifest,
)
from deft.platform.records.root_use import using
from deft.platform.records.run_directory import RunDirectory
from deft.platform.run.context import RunContext
from deft.platform.run.evaluate_stage import evaluate_stage
from deft.platform.run.evaluation import require_engine, warn_of_changed_benchmarks
from deft.platform.run.model_card import write_card
from deft.platform.run.prepare_stage import prepare_stage
from deft.platform.run.recording import finish_record, record_failure, record_results
from deft.platform.run.train_stage import OnValidation, train_stage
from deft.platform.tracking.experiment_recorder import ExperimentRecorder
from deft.platform.tracking.uri import require_tracking_uri, warn_if_unreachable


def run_experiment(
    spec: ExperimentSpec,
    context: RunContext,
    *,
    lock_patience: float = 0.0,
    on_validation: OnValidation | None = None,
    sweep: str | None = None,
) -> RunDirectory[ExperimentSpec]:
    """Run every stage of ``spec`` that has not finished yet.

    Args:
        spec: the experiment.
        context: what it shares with other runs.
        lock_patience: seconds to wait for another process that works on the same run.
        on_validation: called with the step and the metrics of every validation.
        sweep: name of the sweep that the run is a cell of, in MLflow a child of the sweep's run.

    Raises:
        UserError: the input cannot be used; nothing was written for it.
        StageError: a stage failed; finished stages are kept.
    """
    require_importable(spec.objective)
    require_tracking_uri(context.tracking_uri)
    run, console = RunDirectory(context.root, spec), context.console
    if all(run.has_finished(stage) for stage in STAGES):
        console.stage("done", f"every stage of {run.path.name} is finished already")
        items = run.require_manifest(PrepareManifest).items
        warn_of_changed_benchmarks(items, run.path / "stages", console)
        return run
    if sweep is None:
        warn_if_unreachable(context.tracking_uri, console.print)

    def recorder() -> ExperimentRecorder:
        return ExperimentRecorder(run, context.tracking_uri, console.print, sweep=sweep)

    if all(run.has_finished(stage) for stage in STAGES if stage != "record"):
        with run.locked(lock_patience), console.kept_in(run.path), recorder() as mlflow_run:
            record_stage(mlflow_run, console)
        return run
    with using(context.root), context.cluster():
        context = context.on_cluster(spec.training.min_workers or spec.training.num_workers)
        if context.pool is None:
            require_engine(spec.evaluation, use_gpu=context.use_gpu)
        manifest = prepare_stage(run, context)
        with run.locked(lock_patience):
            run.create()
            if run.manifest(PrepareManifest) != manifest:
                run.finish(manifest)
            with console.kept_in(run.path), recorder() as mlflow_run:
                mlflow_run.describe_code()
                mlflow_run.describe_data()
                run_recorded(manifest, context, mlflow_run, on_validation)
    return run


def require_importable(objective: ObjectiveSpec) -> None:
    """Raise UserError if ``objective`` cannot be imported, or its gate is not its value's."""
    try:
        check_own_objective(objective)
    except ValueError as error:
        raise UserError(str(error)) from None


def run_recorded(
    manifest: PrepareManifest,
    context: RunContext,
    recorder: ExperimentRecorder,
    on_validation: OnValidation | None,
) -> None:
    """Run the stages that MLflow watches; if one fails, so does its MLflow run."""
    run = recorder.run
    with ExitStack() as slot:
        if not run.has_finished("evaluate"):
            slot.enter_context(context.training_slot())
        stages: dict[Stage, Callable[[], None]] = {
            "train": lambda: train_stage(run, manifest.prepared, context, on_validation),
            "evaluate": lambda: evaluate_stage(run, manifest, context, on_measured=slot.close),
            "record": lambda: record_stage(recorder, context.console),
        }
        for name, stage in stages.items():
            with record_failure(recorder, name):
                stage()


def record_stage(recorder: ExperimentRecorder, console: RunConsole) -> None:
    """Queue for MLflow what it does not have yet, and close its run."""
    run = recorder.run
    last_step = run.require_manifest(TrainManifest).step
    recorder.log_model()
    results = run.require_manifest(EvaluateManifest)
    record_results(recorder, results, {"base": 0, "eval": last_step})
    draw_dynamics(run)
    write_card(run)
    finish_record(recorder, console)


def draw_dynamics(run: RunDirectory[ExperimentSpec]) -> None:
    """Draw gate, focus and target probability over training into `figures/`."""
    events = run.train_events()
    if not events:
        return
    history = {
        name: [event.metrics[f"train/mean_{name}"] for event in events]
        for name in ("gate", "focus", "p")
        if f"train/mean_{name}" in events[0].metrics
    }
    if not history:
        return
    (run.path / "figures").mkdir(exist_ok=True)
    figure = draw_gate_dynamics(
        {str(run.spec.objective): {"step": [event.step for event in events], **history}}
    )
    figure.savefig(run.path / "figures" / "gate_dynamics.png", dpi=150)
