"""From a spec to a finished, recorded experiment: prepare → train → evaluate → record."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
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
from deft.platform.tracking.recorder import Recorder, require_tracking_uri
from deft.workers.data.prepare import Prepared, prepare
from deft.workers.data.readers import describe as describe_counts
from deft.workers.spec import DatasetSpec, ModelSpec
from deft.workers.training.job import TrainJob

STAGES = ("prepare", "train", "evaluate", "record")


@dataclass(frozen=True)
class Context:
    """What the stages of one run share."""

    spec: ExperimentSpec
    run: RunDirectory
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
) -> RunDirectory:
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
    if all(run.manifest(stage) for stage in STAGES):
        console.stage("done", f"every stage of {run.path.name} is finished already")
        return run
    if all(run.manifest(stage) for stage in STAGES if stage != "record"):
        with (
            run.locked(lock_patience),
            Recorder(run, tracking_uri, console.say, sweep=sweep) as recorder,
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
        outputs = prepare_stage(context)
        with run.locked(lock_patience):
            run.create()
            if run.manifest("prepare") != outputs:
                run.finish("prepare", outputs)
            with Recorder(run, tracking_uri, console.say, sweep=sweep) as recorder:
                recorder.describe_code()
                recorder.describe_data()
                run_recorded(context, as_prepared(outputs), outputs["items"], recorder)
    return run


def require_importable(objective: ObjectiveSpec) -> None:
    """Raise UserError if ``objective`` is given by an import path that leads nowhere."""
    try:
        get_objective(objective)
    except ValueError as error:
        raise UserError(f"objective: {error}") from None


def run_recorded(
    context: Context, prepared: Prepared, items: Mapping[str, str], recorder: Recorder
) -> None:
    """Run the stages that MLflow watches; if one fails, so does its MLflow run."""
    stages: dict[str, Callable[[], None]] = {
        "train": lambda: train_stage(context, prepared),
        "evaluate": lambda: evaluate_stage(context, prepared, items),
        "record": lambda: record_stage(
            context.run, str(context.spec.objective), recorder, context.console
        ),
    }
    for name, stage in stages.items():
        with failing(recorder, name):
            stage()


def prepare_stage(context: Context) -> dict[str, Any]:
    """Data and model on disk, by a Ray task; what is bad about either is the user's to mend.

    Returns:
        The fields of `Prepared`; as `items` the files of `prepare_benchmarks`; and as `overlap`
        what the training examples share with each benchmark, see `overlap_with_benchmarks`.
    """
    spec = context.spec
    cache = context.cache
    manifest = context.run.manifest("prepare")
    if manifest and all(
        Path(path).exists()
        for path in (manifest["model_dir"], manifest["rows_dir"], *manifest["items"].values())
    ):
        context.console.stage("prepare", f"{summary(as_prepared(manifest))}, finished already")
        return manifest

    def work() -> tuple[Prepared, dict[str, str], dict[str, Any]]:
        items = prepare_benchmarks(evaluation, cache)
        prepared = prepare(
            dataset, model, max_length=spec.training.max_length, seed=spec.seed, cache=cache
        )
        require_prompts(evaluation, items, prepared.model_dir, prepared.prompt_style)
        return prepared, items, overlap_with_benchmarks(prepared, items)

    dataset, model = absolute_dataset(spec.dataset), _absolute(spec.model)
    evaluation = absolute(spec.evaluation)
    started = time.monotonic()
    prepared, items, overlap = run_task(work, stage="prepare")
    if spec.training.num_steps(prepared.num_examples, prepared.num_tokens) == 0:
        raise UserError(
            f"training.batch_size: {prepared.num_examples} examples of at most "
            f"{spec.training.max_length} tokens fill no batch of {spec.training.batch_size}"
        )
    context.console.stage("prepare", f"{summary(prepared)} ({time.monotonic() - started:.0f} s)")
    if prepared.bad_records:
        context.console.say(
            f"warning: left out {describe_counts(prepared.bad_records)}; listed in "
            f"{prepared.bad_records_file}"
        )
    if prepared.passed_over:
        context.console.say(f"warning: {dataset.name}: {prepared.passed_over}")
    for name, found in overlap.items():
        if found["num_overlapping"]:
            context.console.say(
                f"warning: {found['num_overlapping']:,} training examples ({found['share']:.2%}) "
                f"share text with benchmark {name}, the first is {found['ids'][0]}"
            )
    return {**asdict(prepared), "items": items, "overlap": overlap}


def as_prepared(outputs: Mapping[str, Any]) -> Prepared:
    """The record in a manifest of the prepare stage."""
    return Prepared(**{field.name: outputs[field.name] for field in fields(Prepared)})


def summary(prepared: Prepared) -> str:
    """What became of the data, in one line; what did not happen is not said."""
    parts = [
        f"{prepared.num_examples:,} examples",
        f"{prepared.num_validation_examples:,} held out",
        f"{prepared.num_too_long:,} too long",
        f"{prepared.num_truncated:,} cut to length",
        f"{prepared.num_noisy_examples:,} with another's response",
        f"{sum(prepared.bad_records.values()):,} bad",
        f"{prepared.num_tokens:,} tokens",
    ]
    said = [part for index, part in enumerate(parts) if index == 0 or not part.startswith("0 ")]
    return f"{', '.join(said)}, {prepared.num_target_tokens:,} of them targets"


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
    if run.manifest("train"):
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
    recorded = {(next(iter(e["metrics"])).split("/")[0], e["step"]) for e in run.events()}

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
                    f"warning: a training process is gone ({cause}); "
                    "going on from the last checkpoint"
                ),
            )

    fetch_model(chosen_checkpoint(result, training.keep), run.path / "model")
    seconds = time.monotonic() - started
    run.finish("train", {"model": "model", "seconds": seconds, "metrics": result.metrics})
    if training.keep_checkpoints is None:
        shutil.rmtree(run.path / "checkpoints", ignore_errors=True)


def evaluate_stage(context: Context, prepared: Prepared, items: Mapping[str, str]) -> None:
    """Ask the base model and the trained one every benchmark, and compare prompts with training."""
    spec, run, console = context.spec, context.run, context.console
    if run.manifest("evaluate"):
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
                evaluate_base(base, items, context.cache, events),
                evaluate_models(trained, items, losses, events),
            )
    warn_of_other_formats(prepared, outcome["prompts"]["eval"], console)
    run.finish("evaluate", outcome)


def record_stage(
    run: RunDirectory, objective: str, recorder: Recorder, console: RunConsole
) -> None:
    """Queue for MLflow what it does not have yet, and close its run."""
    train, evaluation = run.manifest("train"), run.manifest("evaluate")
    assert train is not None
    assert evaluation is not None
    recorder.log_model()
    record_results(recorder, evaluation, {"base": 0, "eval": train["metrics"]["step"]})
    draw_dynamics(run, objective)
    finish_record(run, recorder, console)


def draw_dynamics(run: RunDirectory, objective: str) -> None:
    """Draw gate, focus and target probability over training into `figures/`."""
    events = run.train_events()
    history = {
        name: [event["metrics"][f"train/mean_{name}"] for event in events]
        for name in ("gate", "focus", "p")
        if f"train/mean_{name}" in events[0]["metrics"]
    }
    (run.path / "figures").mkdir(exist_ok=True)
    figure = draw_gate_dynamics(
        {objective: {"step": [event["step"] for event in events], **history}}
    )
    figure.savefig(run.path / "figures" / "gate_dynamics.png", dpi=150)
