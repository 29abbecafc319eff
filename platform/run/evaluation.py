"""Evaluating models: what `deft run` does after training, and all that `deft evaluate` does."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.util.queue import Queue

from deft.evaluators.benchmarks.catalog import get_benchmark
from deft.evaluators.benchmarks.definition import changed_benchmarks
from deft.evaluators.generation.job import EvaluationJob, JobResult
from deft.evaluators.generation.model_dir import fingerprint
from deft.evaluators.generation.pool import EvaluatorPool, Pool, count_engines
from deft.evaluators.generation.prepare import (
    prepare_benchmarks,
    require_prompts,
    with_absolute_paths,
)
from deft.evaluators.scores.metrics import mean_over_benchmarks
from deft.evaluators.spec import GENERAL, HELDOUT, EvaluationSpec, heldout_table
from deft.platform.config.spec import ModelEvaluationSpec
from deft.platform.console import RunConsole
from deft.platform.errors import StageError, UserError, describe, root_cause
from deft.platform.records.run_directory import RunDirectory
from deft.platform.run.cluster import ANYWHERE, event_queue, ray_cluster, require_workers, run_task
from deft.platform.run.contamination import different_formats
from deft.platform.tracking.recorder import PATIENCE, Recorder, require_tracking_uri
from deft.workers.common.files import exclusive, write_atomic
from deft.workers.data.prepare import Prepared, prepare_model

SECONDS = ("seconds", "start_seconds", "work_seconds")
"""What `evaluate_models` says about time."""


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated, where, and what the user sees of it."""

    spec: EvaluationSpec
    models: Mapping[str, str]
    """Label (``base``, ``eval``) → directory of a model."""
    trained_style: str
    """Prompt style that the models are or will be trained with."""
    out: Path
    """Directory of the run."""
    console: RunConsole
    use_gpu: bool
    pool: Pool
    """Engines that generate."""
    validation_dir: str | None = None
    """Held-out rows, as the prepare stage leaves them."""


@contextmanager
def open_pool(
    spec: EvaluationSpec, *, use_gpu: bool, verbose: bool, shared: Pool | None = None
) -> Iterator[Pool]:
    """``shared``, or engines for this block alone; none is started before it is needed."""
    if shared is not None or not spec.suite:
        yield shared or _NoPool()
        return
    with EvaluatorPool(spec.engine, use_gpu, verbose=verbose) as pool:
        yield pool


class _NoPool:
    """For evaluations that generate nothing, which no cluster is too small for."""

    def run(
        self, jobs: Sequence[EvaluationJob], progress: Queue | None = None
    ) -> Iterator[tuple[EvaluationJob, JobResult]]:
        raise AssertionError("there is nothing to generate")


def evaluate_base(
    evaluation: Evaluation, items: Mapping[str, str], cache: Path, events: Queue
) -> dict[str, Any]:
    """What `evaluate_models` finds of the one model that training starts from.

    It is the same for every run that starts there and is evaluated alike, so it is found once and
    kept under ``cache``; others wait for it. Its predictions are copied into each run.
    """
    ((label, model),) = evaluation.models.items()
    digest = hashlib.sha256()
    for part in (
        fingerprint(Path(model)),
        evaluation.spec.model_dump_json(),
        evaluation.spec.data_digest(),
        *(Path(items[name]).name for name in sorted(items)),
        evaluation.trained_style,
        str(evaluation.validation_dir),
    ):
        digest.update(part.encode() + b"\0")
    directory = cache / "evaluations" / digest.hexdigest()[:12]
    manifest = directory / "evaluate.json"
    with exclusive(directory / ".lock", patience=math.inf):
        if manifest.is_file():
            outcome = dict(json.loads(manifest.read_text()))
            outcome |= {"num_generated": 0} | dict.fromkeys(SECONDS, 0.0)
            evaluation.console.say(f"          {label}: evaluated already, for another run")
        else:
            for_all = replace(evaluation, out=directory)
            losses = measure_heldout(for_all, events)
            outcome = evaluate_models(for_all, items, losses, events)
            write_atomic(manifest, json.dumps(outcome))
    found = directory / "predictions"
    if found.is_dir():
        shutil.copytree(found, evaluation.out / "predictions", dirs_exist_ok=True)
    return outcome


def merge_outcomes(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """What `evaluate_models` found of several models, as if it had been one evaluation."""
    return {
        key: {**value, **second[key]} if isinstance(value, dict) else value + second[key]
        for key, value in first.items()
    }


def require_engine(spec: EvaluationSpec, *, use_gpu: bool) -> None:
    """Raise UserError if responses are to be generated and no node can hold the engine."""
    if not spec.suite:
        return
    try:
        count_engines(spec.engine, use_gpu=use_gpu)
    except ValueError as error:
        raise UserError(f"evaluation: {error}") from None


def evaluate_models(
    evaluation: Evaluation,
    items: Mapping[str, str],
    losses: Mapping[str, Mapping[str, float]],
    events: Queue,
) -> dict[str, Any]:
    """Generate and grade what has not been yet.

    Args:
        evaluation: see there.
        items: what `prepare_benchmarks` returned.
        losses: what `measure_heldout` returned. It comes first: an engine, once started, keeps its
            devices, and there may be none left for it then.
        events: where progress is told, see `shown_events`.

    Returns:
        ``results`` (label → benchmark → metric → value), ``means`` (label → metric → mean over the
        benchmarks that the spec names), ``prompts`` (label → benchmark → format
        and ends of responses), ``tables`` (label → benchmark → path of the predictions and score to
        compare by), ``models`` (label → directory), how many responses were generated and found,
        and seconds: all of them, those of engine starts, and those of generating and grading.
    """
    started = time.monotonic()
    results: dict[str, dict[str, dict[str, float]]] = {label: {} for label in evaluation.models}
    prompts: dict[str, dict[str, Any]] = {label: {} for label in evaluation.models}
    tables: dict[str, dict[str, Any]] = {label: {} for label in evaluation.models}
    totals = {"num_generated": 0, "num_resumed": 0, "start_seconds": 0.0, "work_seconds": 0.0}
    for label, measured in losses.items():
        results[label][HELDOUT] = dict(measured)
    for job, result in generate(evaluation, items, events):
        results[job.label][job.name] = dict(result.metrics)
        prompts[job.label][job.name] = asdict(result.prompt)
        tables[job.label][job.name] = {
            "path": str(job.predictions.relative_to(evaluation.out)),
            "headline": get_benchmark(job.benchmark.name).headline,
        }
        for name in totals:
            totals[name] += getattr(result, name)
    named = {get_benchmark(benchmark.name).name for benchmark in evaluation.spec.benchmarks}
    means = {
        label: mean_over_benchmarks({name: found[name] for name in found if name in named})
        for label, found in results.items()
    }
    return {
        "results": results,
        "means": {label: mean for label, mean in means.items() if mean},
        "prompts": prompts,
        "tables": tables,
        "models": dict(evaluation.models),
        **totals,
        "seconds": time.monotonic() - started,
    }


def warn_of_changed_benchmarks(items: Mapping[str, str], stages: Path, console: RunConsole) -> None:
    """Say which results are of a benchmark that has another definition by now.

    Args:
        items: benchmark as the spec names it → file of its items at the time.
        stages: directory of the run's manifests.
        console: where.
    """
    for name in changed_benchmarks(items):
        console.say(
            f"warning: benchmark {name} has changed since (instruction, reader, grader or "
            "metrics): these results are of its former definition; to evaluate again, delete "
            f"evaluate.json and record.json in {stages} and give the same command"
        )


@contextmanager
def shown_events(console: RunConsole) -> Iterator[Queue]:
    """A queue whose events are shown: those of evaluators and of `measure_heldout`."""
    with console.progress("responses") as view:

        def handle(event: dict[str, Any]) -> None:
            if event["event"] == "eval_progress":
                name = f"{event['benchmark']}, {event['model']}"
                view.update(name, event["done"], event["total"])
            elif event["event"] == "engine_ready":
                how = "started" if event["how"] == "started" else "took over the weights"
                console.say(f"          engine {how} in {event['seconds']:.1f} s")
            elif event["event"] == "waiting_for_devices":
                need = ", ".join(f"{amount:g} {kind}" for kind, amount in event["needed"].items())
                console.say(f"          waiting for {need} to become free")
            elif event["event"] == "evaluator_died":
                name = f"{event['benchmark']}, {event['model']}"
                console.say(f"          {name}: evaluator lost, another goes on")

        with event_queue(handle) as events:
            yield events


def generate(
    evaluation: Evaluation, items: Mapping[str, str], events: Queue
) -> Iterator[tuple[EvaluationJob, JobResult]]:
    """Yield each benchmark of each model as soon as it is done, with what the evaluator found."""
    jobs = [
        EvaluationJob(
            label=label,
            model=model,
            benchmark=benchmark,
            items=items[benchmark.name],
            trained_style=evaluation.trained_style,
            out=str(evaluation.out),
        )
        for label, model in evaluation.models.items()
        for benchmark in evaluation.spec.suite
    ]
    if jobs:
        yield from evaluation.pool.run(jobs, events)


def measure_heldout(evaluation: Evaluation, events: Queue) -> dict[str, dict[str, float]]:
    """Loss of every model on held-out rows, by a Ray task each; nothing where there are none.

    No task of the pool's, whose engines hold their GPUs' memory: it takes a device of its own.
    """
    spec = evaluation.spec.heldout
    if spec is None or (spec.file is None and evaluation.validation_dir is None):
        return {}
    file = str(Path(spec.file).absolute()) if spec.file else None
    rows_dir, style, size = evaluation.validation_dir, evaluation.trained_style, spec.size

    def work(label: str, model: str, out: str) -> dict[str, float]:
        from deft.evaluators.scores.heldout import measure_losses, read_rows

        rows = read_rows(Path(model), file=file, rows_dir=rows_dir, style=style, size=size)

        def report(done: int, total: int) -> None:
            event = {"event": "eval_progress", "benchmark": HELDOUT, "model": label}
            events.put({**event, "done": done, "total": total})

        return measure_losses(Path(model), rows, Path(out), report) if rows else {}

    gpus = 1 if evaluation.use_gpu else 0
    remote = ray.remote(num_cpus=1, num_gpus=gpus, scheduling_strategy=ANYWHERE)(work)
    measured = {}
    for label, model in evaluation.models.items():
        out = evaluation.out / heldout_table(label)
        measured[label] = ray.get(remote.remote(label, model, str(out)))
    return {label: losses for label, losses in measured.items() if losses}


def record_results(
    recorder: Recorder, manifest: Mapping[str, Any], steps: Mapping[str, int]
) -> None:
    """Log ``<label>/<benchmark>/<metric>`` of every model, at the training step of its label.

    ``<label>/mean/<metric>`` is the mean over benchmarks.
    """
    for label, benchmarks in manifest["results"].items():
        for benchmark, metrics in benchmarks.items():
            recorder.log_result(steps[label], label, benchmark, metrics, manifest["finished_at"])
    for label, means in manifest["means"].items():
        named = {f"{label}/mean/{name}": value for name, value in means.items()}
        recorder.log(steps[label], named, manifest["finished_at"])


def run_evaluation(
    spec: ModelEvaluationSpec, root: Path, console: RunConsole, tracking_uri: str, *, verbose: bool
) -> RunDirectory:
    """Evaluate and record one model; what is finished already is not done again.

    Args:
        spec: the evaluation.
        root: run root; the evaluation's directory, the cache and the MLflow store live there.
        console: where progress is shown.
        tracking_uri: MLflow tracking URI.
        verbose: whether Ray's and vLLM's own output is shown.

    Raises:
        UserError: the input cannot be used; nothing was written for it.
        StageError: something else failed; responses that were generated are kept.
    """
    require_tracking_uri(tracking_uri)
    run = RunDirectory(root.resolve(), spec)
    if run.manifest("evaluate") and run.manifest("record"):
        console.stage("done", f"{run.path.name} is finished already")
        manifest = run.manifest("evaluate") or {}
        warn_of_changed_benchmarks(manifest.get("items", {}), run.path / "stages", console)
        return run
    if run.manifest("evaluate"):
        with run.locked(), Recorder(run, tracking_uri, console.say) as recorder:
            record_evaluation(run, recorder, console)
        return run
    cache = root.resolve() / "cache"
    with ray_cluster(verbose=verbose):
        use_gpu = require_workers(0)
        require_engine(spec.evaluation, use_gpu=use_gpu)
        model_dir, items = prepare_evaluation(spec, cache)
        with run.locked(), open_pool(spec.evaluation, use_gpu=use_gpu, verbose=verbose) as pool:
            evaluation = Evaluation(
                spec=spec.evaluation,
                models={"eval": model_dir},
                trained_style=spec.prompt_style,
                out=run.path,
                console=console,
                use_gpu=use_gpu,
                pool=pool,
            )
            run.create()
            with Recorder(run, tracking_uri, console.say) as recorder:
                recorder.describe_code()
                recorder.describe_evaluation(model_dir, items)
                with failing(recorder, "evaluate"):
                    names = [get_benchmark(b.name).name for b in spec.evaluation.suite]
                    console.stage("evaluate", f"{spec.model.name} · {', '.join(names) or HELDOUT}")
                    with shown_events(console) as events:
                        losses = measure_heldout(evaluation, events)
                        outcome = evaluate_models(evaluation, items, losses, events)
                    run.finish("evaluate", {**outcome, "items": items})
                    record_evaluation(run, recorder, console)
    return run


@contextmanager
def failing(recorder: Recorder, stage: str) -> Iterator[None]:
    """Let a failure of ``stage`` be one of its MLflow run too.

    Raises:
        UserError: the cause is the user's to mend.
        StageError: anything else went wrong.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        recorder.fail(error)
        raise
    except Exception as error:
        cause = root_cause(error)
        recorder.fail(cause)
        if isinstance(cause, UserError):
            raise cause from None
        raise StageError(f"{stage}: {describe(cause)}") from error


def record_evaluation(run: RunDirectory, recorder: Recorder, console: RunConsole) -> None:
    """Send MLflow the results of an evaluation that has finished, and close its run."""
    manifest = run.manifest("evaluate")
    assert manifest is not None
    record_results(recorder, manifest, {"eval": 0})
    finish_record(run, recorder, console)


def finish_record(run: RunDirectory, recorder: Recorder, console: RunConsole) -> None:
    """Close the MLflow run. If MLflow takes nothing, the record stage is left for another time."""
    started = time.monotonic()
    run_id = recorder.finish()
    if run_id is None:
        console.say(
            f"warning: MLflow took nothing for {PATIENCE:.0f} s; all results are in {run.path}, "
            "and the same command delivers them when MLflow is there"
        )
        return
    run.finish("record", {"mlflow_run_id": run_id})
    console.stage("record", f"MLflow run {run_id} ({time.monotonic() - started:.0f} s)")


def prepare_evaluation(spec: ModelEvaluationSpec, cache: Path) -> tuple[str, dict[str, str]]:
    """The model's directory and the benchmarks' items, built or downloaded by Ray tasks.

    Raises:
        UserError: one of them cannot be had, or a prompt style does not fit the model.
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


def warn_of_other_formats(
    prepared: Prepared, prompts: Mapping[str, Mapping[str, Any]], console: RunConsole
) -> None:
    """Say which benchmarks the trained model was asked in another prompt format than it learnt.

    `general` is what the model could do before, and is meant to be unlike the training data.
    """
    hashes = {name: found["hash"] for name, found in prompts.items() if name != GENERAL}
    for name in different_formats(prepared.format_hash, hashes):
        asked = prompts[name]
        console.say(
            f"warning: {name} was asked in another prompt format ({asked['style']}, "
            f"{asked['num_bos']} BOS) than the training data's ({prepared.prompt_style}, "
            f"{prepared.num_bos} BOS)"
        )
