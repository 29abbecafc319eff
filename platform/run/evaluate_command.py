"""`deft evaluate`: prepare, evaluate and record one model."""

from __future__ import annotations

from pathlib import Path

from deft.evaluators.benchmarks.catalog import get_benchmark
from deft.evaluators.generation.prepare import (
    prepare_benchmarks,
    require_prompts,
    with_absolute_paths,
)
from deft.evaluators.spec import HELDOUT
from deft.platform.config.spec import ModelEvaluationSpec
from deft.platform.console import RunConsole
from deft.platform.errors import UserError
from deft.platform.records.manifests import EvaluateManifest
from deft.platform.records.root_use import using
from deft.platform.records.run_directory import RunDirectory
from deft.platform.run.cluster import run_task
from deft.platform.run.context import RunContext
from deft.platform.run.evaluation import (
    Evaluation,
    evaluate_models,
    measure_heldout,
    require_engine,
    shown_events,
    warn_of_changed_benchmarks,
    with_engines,
)
from deft.platform.run.recording import finish_record, record_failure, record_results
from deft.platform.tracking.evaluation_recorder import EvaluationRecorder
from deft.platform.tracking.uri import require_tracking_uri, warn_if_unreachable
from deft.workers.data.prepare import prepare_model


def run_evaluation(
    spec: ModelEvaluationSpec, context: RunContext
) -> RunDirectory[ModelEvaluationSpec]:
    """Evaluate and record one model; what is finished already is not done again.

    Raises:
        UserError: the input cannot be used; nothing was written for it.
        StageError: something else failed; responses that were generated are kept.
    """
    require_tracking_uri(context.tracking_uri)
    run, console = RunDirectory(context.root, spec), context.console
    if run.has_finished("evaluate") and run.has_finished("record"):
        console.stage("done", f"{run.path.name} is finished already")
        items = run.require_manifest(EvaluateManifest).items
        warn_of_changed_benchmarks(items, run.path / "stages", console)
        return run
    warn_if_unreachable(context.tracking_uri, console.print)
    if run.has_finished("evaluate"):
        with (
            run.locked(),
            console.kept_in(run.path),
            EvaluationRecorder(run, context.tracking_uri, console.print) as recorder,
        ):
            record_evaluation(recorder, console)
        return run
    with using(context.root), context.cluster():
        context = context.on_cluster()
        require_engine(spec.evaluation, use_gpu=context.use_gpu)
        model_dir, items = prepare_evaluation(spec, context.cache)
        with run.locked():
            run.create()
            with (
                console.kept_in(run.path),
                EvaluationRecorder(run, context.tracking_uri, console.print) as recorder,
            ):
                recorder.describe_code()
                recorder.describe_evaluation(model_dir, items)
                with record_failure(recorder, "evaluate"):
                    names = [get_benchmark(b.name).name for b in spec.evaluation.suite]
                    console.stage("evaluate", f"{spec.model.name} · {', '.join(names) or HELDOUT}")
                    manifest = evaluate_model(run, model_dir, items, context)
                    run.finish(manifest.model_copy(update={"items": items}))
                    record_evaluation(recorder, console)
    return run


def prepare_evaluation(spec: ModelEvaluationSpec, cache: Path) -> tuple[str, dict[str, str]]:
    """Build or download model and benchmarks by Ray tasks; return the model's directory and items.

    Raises:
        UserError: one of them is not available, or a prompt style does not fit the model.
        StageError: something else went wrong.
    """
    if spec.model.name == "tiny":
        raise UserError(
            "model: tiny is built from training data; train it with `deft run`, then give the run"
        )
    path, style = Path(spec.model.name), spec.prompt_style
    name = str(path.absolute()) if path.exists() else spec.model.name
    model = spec.model.model_copy(update={"name": name})
    evaluation = with_absolute_paths(spec.evaluation)
    models, bad_data = cache / "models", {"stage": "evaluation", "refusal": "evaluation: "}
    items = run_task(lambda: prepare_benchmarks(evaluation, cache), **bad_data)
    directory = run_task(
        lambda: str(prepare_model(model, cache, 0, models)), stage="model", refusal="model: "
    )
    run_task(lambda: require_prompts(evaluation, items, directory, style), **bad_data)
    return directory, items


def evaluate_model(
    run: RunDirectory[ModelEvaluationSpec],
    model_dir: str,
    items: dict[str, str],
    context: RunContext,
) -> EvaluateManifest:
    """Measure the held-out loss, then generate and grade responses."""
    spec = run.spec
    with (
        with_engines(spec.evaluation, context) as context,
        shown_events(context.console) as events,
    ):
        evaluation = Evaluation(
            spec=spec.evaluation,
            models={"eval": model_dir},
            items=items,
            trained_style=spec.prompt_style,
            out=run.path,
            context=context,
        )
        losses = measure_heldout(evaluation, events)
        return evaluate_models(evaluation, losses, events)


def record_evaluation(recorder: EvaluationRecorder, console: RunConsole) -> None:
    """Send the results of a finished evaluation to MLflow and close its run."""
    record_results(recorder, recorder.run.require_manifest(EvaluateManifest), {"eval": 0})
    finish_record(recorder, console)
