"""From a spec to a finished, recorded experiment: prepare → train → evaluate → record."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deft.evaluators.benchmarks.catalog import get_benchmark
from deft.evaluators.generation.pool import Pool
from deft.evaluators.generation.prepare import absolute, prepare_benchmarks, require_prompts
from deft.objectives import ObjectiveSpec, get_objective
from deft.objectives.diagnostics import draw_gate_dynamics
from deft.platform.config.spec import ExperimentSpec
from deft.platform.console import RunConsole, format_metrics
from deft.platform.errors import UserError
from deft.platform.records.manifests import (
    EvaluateManifest,
    PrepareManifest,
    Stage,
    TrainManifest,
)
from deft.platform.records.run_directory import RunDirectory
from deft.platform.run.cluster import event_queue, ray_cluster, require_workers, run_task
from deft.platform.run.contamination import overlap_with_benchmarks
from deft.platform.run.evaluation import (
    Evaluation,
    evaluate_base,
    evaluate_models,
    failing,
    finish_record,
    measure_heldout,
    merge_outcomes,
    open_pool,
    record_results,
    require_engine,
    shown_events,
    warn_of_other_formats,
)
from deft.platform.run.ray_train import chosen_checkpoint, fetch_model, fit
from deft.platform.tracking.experiment_recorder import ExperimentRecorder
from deft.platform.tracking.uri import require_tracking_uri
from deft.workers.data.prepare import Prepared, prepare
from deft.workers.data.readers import describe as describe_counts
from deft.workers.spec import DatasetSpec, ModelSpec
from deft.workers.training.job import TrainJob

STAGES: tuple[Stage, ...] = ("prepare", "train", "evaluate", "record")


@dataclass(frozen=True)
class Context:
    """What the stages of one run share."""

    spec: ExperimentSpec
    run: RunDirectory[ExperimentSpec]
    cache: Path
    console: RunConsole
    use_gpu: bool
    verbose: bool
    pool: Pool | None
    on_validation: Callable[[int, dict[str, float]], None] | None


def run_experiment(
    spec: ExperimentSpec,
    root: Path,
    console: RunConsole,
    tracking_uri: str,
    *,
    verbose: bool,
    pool: Pool | None = None,
    lock_patience: float = 0.0,
    on_validation: Callable[[int, dict[str, float]], None] | None = None,
    sweep: str | None = None,
) -> RunDirectory[ExperimentSpec]:
    """Run every stage of ``spec`` that has not finished yet.

    Args:
        spec: the experiment.
        root: run root; the run's directory, the cache and the default MLflow store live there.
        console: where progress is shown.
        tracking_uri: MLflow tracking URI.
        verbose: whether Ray's, DeepSpeed's and vLLM's own output is shown.
        pool: warm engines to evaluate with; if none is given the run starts its own.
        lock_patience: seconds to wait for another process that works on the same run.
        on_validation: told the step and the metrics of every validation.
        sweep: name of the sweep that the run is a cell of, in MLflow a child of the sweep's run.

    Raises:
        UserError: the input cannot be used; nothing was written for it.
        StageError: a stage failed; finished stages are kept.
    """
    require_importable(spec.objective)
    require_tracking_uri(tracking_uri)
    run = RunDirectory(root.resolve(), spec)
    if all(run.has_finished(stage) for stage in STAGES):
        console.stage("done", f"every stage of {run.path.name} is finished already")
        return run
    if all(run.has_finished(stage) for stage in STAGES if stage != "record"):
        with (
            run.locked(lock_patience),
            ExperimentRecorder(run, tracking_uri, console.say, sweep=sweep) as recorder,
        ):
            record_stage(run, str(spec.objective), recorder, console)
        return run
    with ray_cluster(verbose=verbose):
        use_gpu = require_workers(spec.training.min_workers or spec.training.num_workers)
        if pool is None:
            require_engine(spec.evaluation, use_gpu=use_gpu)
        context = Context(
            spec, run, root.resolve() / "cache", console, use_gpu, verbose, pool, on_validation
        )
        manifest = prepare_stage(context)
        with run.locked(lock_patience):
            run.create()
            if run.manifest(PrepareManifest) != manifest:
                run.finish(manifest)
            with ExperimentRecorder(run, tracking_uri, console.say, sweep=sweep) as recorder:
                recorder.describe_code()
                recorder.describe_data()
                run_recorded(context, manifest, recorder)
    return run


def require_importable(objective: ObjectiveSpec) -> None:
    """Raise UserError if ``objective`` is given by an import path that leads nowhere."""
    try:
        get_objective(objective)
    except ValueError as error:
        raise UserError(f"objective: {error}") from None


def run_recorded(context: Context, manifest: PrepareManifest, recorder: ExperimentRecorder) -> None:
    """Run the stages that MLflow watches; if one fails, so does its MLflow run."""
    stages: dict[str, Callable[[], None]] = {
        "train": lambda: train_stage(context, manifest.prepared),
        "evaluate": lambda: evaluate_stage(context, manifest),
        "record": lambda: record_stage(
            context.run, str(context.spec.objective), recorder, context.console
        ),
    }
    for name, stage in stages.items():
        with failing(recorder, name):
            stage()


def prepare_stage(context: Context) -> PrepareManifest:
    """Bring data and model to disk by a Ray task, unless that was done before.

    Raises:
        UserError: data or model cannot be used.
    """
    spec = context.spec
    cache = context.cache
    before = context.run.manifest(PrepareManifest)
    if before and all(
        Path(path).exists()
        for path in (before.prepared.model_dir, before.prepared.rows_dir, *before.items.values())
    ):
        context.console.stage("prepare", f"{summary(before.prepared)}, finished already")
        return before

    def work() -> PrepareManifest:
        items = prepare_benchmarks(evaluation, cache)
        prepared = prepare(
            dataset, model, max_length=spec.training.max_length, seed=spec.seed, cache=cache
        )
        require_prompts(evaluation, items, prepared.model_dir, prepared.prompt_style)
        overlap = overlap_with_benchmarks(prepared, items)
        return PrepareManifest(prepared=prepared, items=items, overlap=overlap)

    dataset, model = absolute_dataset(spec.dataset), _absolute(spec.model)
    evaluation = absolute(spec.evaluation)
    started = time.monotonic()
    manifest = run_task(work, stage="prepare")
    prepared = manifest.prepared
    if spec.training.num_steps(prepared.num_examples, prepared.num_tokens) == 0:
        raise UserError(
            f"training.batch_size: only {prepared.num_examples} training examples are at most "
            f"{spec.training.max_length} tokens long, fewer than the batch size of "
            f"{spec.training.batch_size}; lower it, or raise training.max_length"
        )
    context.console.stage("prepare", f"{summary(prepared)} ({time.monotonic() - started:.0f} s)")
    if prepared.bad_records:
        context.console.say(
            f"warning: left out {describe_counts(prepared.bad_records)}; listed in "
            f"{prepared.bad_records_file}"
        )
    for name, overlap in manifest.overlap.items():
        if overlap.num_overlapping:
            context.console.say(
                f"warning: {overlap.num_overlapping:,} training examples ({overlap.share:.2%}) "
                f"share text with benchmark {name}, the first is {overlap.ids[0]}"
            )
    return manifest


def summary(prepared: Prepared) -> str:
    """Summarize the prepared data in one line; zero counts are omitted."""
    parts = [
        f"{prepared.num_examples:,} examples",
        f"{prepared.num_validation_examples:,} held out",
        f"{prepared.num_too_long:,} too long",
        f"{prepared.num_truncated:,} cut to length",
        f"{prepared.num_noisy_examples:,} with another's response",
        f"{sum(prepared.bad_records.values()):,} bad",
        f"{prepared.num_tokens:,} tokens",
    ]
    nonzero = [part for index, part in enumerate(parts) if index == 0 or not part.startswith("0 ")]
    return f"{', '.join(nonzero)}, {prepared.num_target_tokens:,} of them targets"


def absolute_dataset(spec: DatasetSpec) -> DatasetSpec:
    """``spec`` with local paths made absolute: Ray's processes work in other directories."""
    path = spec.local_path
    key = "name" if spec.data_dir is None else "data_dir"
    return spec if path is None else spec.model_copy(update={key: str(path.absolute())})


def _absolute(spec: ModelSpec) -> ModelSpec:
    path = Path(spec.name)
    return spec.model_copy(update={"name": str(path.absolute())}) if path.exists() else spec


def train_stage(context: Context, prepared: Prepared) -> None:
    """Train with Ray Train; the export moves to `model/`, step metrics go to the events."""
    spec, run, console = context.spec, context.run, context.console
    if run.has_finished("train"):
        console.stage("train", "finished already")
        return
    training = spec.training
    num_steps = training.num_steps(prepared.num_examples, prepared.num_tokens)
    console.stage(
        "train",
        f"{spec.objective} · {num_steps} steps of {training.batch_size} examples · "
        f"{training.num_workers} workers, ZeRO-{training.resolved_zero_stage}",
    )
    started = time.monotonic()
    # A resumed run repeats the steps since its checkpoint.
    recorded = {(next(iter(e.metrics)).split("/")[0], e.step) for e in run.events()}

    with console.progress("steps") as view:

        def handle(event: dict[str, Any]) -> None:
            kind, step, metrics = event["event"], event["step"], event["metrics"]
            if kind == "train":
                shown = format_metrics(metrics, ("objective", "nll", "mean_p", "mean_gate"))
                view.update("train", step, num_steps, shown)
            elif kind == "validation":
                shown = format_metrics(metrics, ("nll", "bits_per_byte", "token_accuracy"))
                console.say(f"          held out, after {step} steps  {shown}")
                if context.on_validation is not None:
                    context.on_validation(step, metrics)
            elif kind == "damaged_checkpoint":
                console.say(
                    f"warning: the checkpoint of step {step} is damaged ({metrics['file']}) "
                    "and passed over"
                )
            elif kind == "preemption":
                console.say(f"warning: a node will be taken away; step {step} is stored")
            else:
                console.say(f"warning: step {step} was skipped: {metrics['problem']}")
            if kind in ("train", "validation") and (kind, step) not in recorded:
                recorded.add((kind, step))
                run.append_event(step, {f"{kind}/{name}": x for name, x in metrics.items()})

        with event_queue(handle) as events:
            job = TrainJob(
                training=training,
                objective=str(spec.objective),
                model_dir=prepared.model_dir,
                examples_dir=prepared.examples_dir,
                rows_dir=prepared.rows_dir,
                validation_dir=prepared.validation_dir,
                num_steps=num_steps,
                seed=spec.seed,
                events=events,
            )
            result = fit(
                job,
                name=run.path.name,
                storage=training.checkpoint_storage or str(run.path / "checkpoints"),
                use_gpu=context.use_gpu,
                on_restart=lambda cause: console.say(
                    f"warning: lost a training worker ({cause}); "
                    "restarting from the last checkpoint"
                ),
            )

    fetch_model(chosen_checkpoint(result, training.keep), run.path / "model")
    metrics = dict(result.metrics or {})
    run.finish(
        TrainManifest(
            model="model",
            seconds=time.monotonic() - started,
            step=metrics.pop("step"),
            metrics=metrics,
        )
    )
    if training.keep_checkpoints is None:
        shutil.rmtree(run.path / "checkpoints", ignore_errors=True)


def evaluate_stage(context: Context, manifest: PrepareManifest) -> None:
    """Evaluate the base model and the trained one, and compare prompts with those of training."""
    spec, run, console, prepared = context.spec, context.run, context.console, manifest.prepared
    if run.has_finished("evaluate"):
        console.stage("evaluate", "finished already")
        return
    names = [get_benchmark(benchmark.name).name for benchmark in spec.evaluation.suite]
    console.stage("evaluate", f"base and trained model · {', '.join(names) or 'no benchmark'}")
    with open_pool(
        spec.evaluation, use_gpu=context.use_gpu, verbose=context.verbose, shared=context.pool
    ) as pool:
        base = Evaluation(
            spec=spec.evaluation,
            models={"base": prepared.model_dir},
            trained_style=prepared.prompt_style,
            out=run.path,
            validation_dir=prepared.validation_dir,
            console=console,
            use_gpu=context.use_gpu,
            pool=pool,
        )
        trained = replace(base, models={"eval": str(run.path / "model")})
        with shown_events(console) as events:
            losses = measure_heldout(trained, events)
            outcome = merge_outcomes(
                evaluate_base(base, manifest.items, context.cache, events),
                evaluate_models(trained, manifest.items, losses, events),
            )
    warn_of_other_formats(prepared, outcome.models["eval"], console)
    run.finish(outcome)


def record_stage(
    run: RunDirectory[ExperimentSpec],
    objective: str,
    recorder: ExperimentRecorder,
    console: RunConsole,
) -> None:
    """Queue for MLflow what it does not have yet, and close its run."""
    last_step = run.require_manifest(TrainManifest).step
    recorder.log_model()
    evaluation = run.require_manifest(EvaluateManifest)
    record_results(recorder, evaluation, {"base": 0, "eval": last_step})
    draw_dynamics(run, objective)
    finish_record(run, recorder, console)


def draw_dynamics(run: RunDirectory[ExperimentSpec], objective: str) -> None:
    """Draw gate, focus and target probability over training into `figures/`."""
    events = run.train_events()
    history = {
        name: [event.metrics[f"train/mean_{name}"] for event in events]
        for name in ("gate", "focus", "p")
        if f"train/mean_{name}" in events[0].metrics
    }
    (run.path / "figures").mkdir(exist_ok=True)
    figure = draw_gate_dynamics({objective: {"step": [event.step for event in events], **history}})
    figure.savefig(run.path / "figures" / "gate_dynamics.png", dpi=150)
