"""Evaluation of models, for `deft run` and `deft evaluate`: losses, responses and their grades."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.util.queue import Queue

from deft.evaluators.benchmarks.catalog import get_benchmark
from deft.evaluators.benchmarks.definition import changed_benchmarks
from deft.evaluators.generation.job import EvaluationJob, JobResult
from deft.evaluators.generation.pool import EvaluatorPool, count_engines
from deft.evaluators.scores.metrics import mean_over_benchmarks
from deft.evaluators.spec import HELDOUT, EvaluationSpec, heldout_table, token_table
from deft.platform.console import RunConsole
from deft.platform.errors import UserError
from deft.platform.records.manifests import (
    BenchmarkResult,
    EvaluateManifest,
    ModelResult,
    Timings,
)
from deft.platform.run.cluster import ANYWHERE, event_queue
from deft.platform.run.context import RunContext


@dataclass(frozen=True)
class Evaluation:
    """One or several models, what is measured on them, and where the results go."""

    spec: EvaluationSpec
    models: Mapping[str, str]
    """Label (``base``, ``eval``) → directory of a model."""
    items: Mapping[str, str]
    """Benchmark as the spec names it → file of its items."""
    trained_style: str
    """Prompt style that the models are or will be trained with."""
    out: Path
    """Directory of the run."""
    context: RunContext
    validation_dir: str | None = None
    """Held-out rows, as the prepare stage leaves them."""
    dtype: str | None = None
    """Dtype of the parameters in training, in which all losses are measured; None takes that of the
    node that measures."""


@contextmanager
def with_engines(spec: EvaluationSpec, context: RunContext) -> Iterator[RunContext]:
    """Yield ``context`` with a pool of engines, its own or one for this block alone.

    No engine starts before it is needed. Without benchmarks there is no pool.
    """
    if context.pool is not None or not spec.suite:
        yield context
        return
    with EvaluatorPool(spec.engine, context.use_gpu, verbose=context.verbose) as pool:
        yield replace(context, pool=pool)


def require_engine(spec: EvaluationSpec, *, use_gpu: bool) -> None:
    """Raise UserError if responses are to be generated and no node can hold the engine."""
    if not spec.suite:
        return
    try:
        count_engines(spec.engine, use_gpu=use_gpu)
    except ValueError as error:
        raise UserError(f"evaluation: {error}") from None


def evaluate_models(
    evaluation: Evaluation, losses: Mapping[str, Mapping[str, float]], events: Queue
) -> EvaluateManifest:
    """Generate and grade the responses that are missing.

    Args:
        evaluation: what to evaluate; its context has a pool if there are benchmarks.
        losses: what `measure_heldout` returned. It comes first: an engine, once started, keeps its
            devices, and there may be none left for it then.
        events: queue of progress events, see `shown_events`.
    """
    started = time.monotonic()
    results: dict[str, dict[str, BenchmarkResult]] = {label: {} for label in evaluation.models}
    job_results: list[JobResult] = []
    for job, result in generate(evaluation, events):
        results[job.label][job.name] = BenchmarkResult(
            metrics=dict(result.metrics),
            primary_metric=get_benchmark(job.benchmark.name).primary_metric,
            predictions=str(job.predictions.relative_to(evaluation.out)),
            prompt=result.prompt,
        )
        job_results.append(result)
    names = {get_benchmark(benchmark.name).name for benchmark in evaluation.spec.benchmarks}
    models = {
        label: ModelResult(
            directory=directory,
            heldout=dict(losses.get(label, {})),
            benchmarks=results[label],
            means=mean_over_benchmarks(
                {name: result.metrics for name, result in results[label].items() if name in names}
            ),
        )
        for label, directory in evaluation.models.items()
    }
    return EvaluateManifest(
        models=models,
        num_generated=sum(result.num_generated for result in job_results),
        num_resumed=sum(result.num_resumed for result in job_results),
        timings=Timings(
            total=time.monotonic() - started,
            engine_start=sum(result.start_seconds for result in job_results),
            work=sum(result.work_seconds for result in job_results),
        ),
    )


def generate(evaluation: Evaluation, events: Queue) -> Iterator[tuple[EvaluationJob, JobResult]]:
    """Yield each benchmark of each model with its result, as soon as it is done."""
    jobs = [
        EvaluationJob(
            label=label,
            model=model,
            benchmark=benchmark,
            items=evaluation.items[benchmark.name],
            trained_style=evaluation.trained_style,
            out=str(evaluation.out),
        )
        for label, model in evaluation.models.items()
        for benchmark in evaluation.spec.suite
    ]
    if jobs:
        assert evaluation.context.pool is not None
        models = " and ".join(evaluation.models)
        events.put({"event": "waiting", "what": f"{models}: starting an engine"})
        yield from evaluation.context.pool.run(jobs, events)


def measure_heldout(evaluation: Evaluation, events: Queue) -> dict[str, dict[str, float]]:
    """Measure the loss of every model on held-out rows, by a Ray task each.

    Not by the pool, whose engines hold their GPUs' memory: a task takes as many as one engine.

    Returns:
        Label → metric → value, without the models that have no held-out rows.
    """
    spec = evaluation.spec.heldout
    if spec is None or (spec.file is None and evaluation.validation_dir is None):
        return {}
    file = str(Path(spec.file).absolute()) if spec.file else None
    rows_dir, style, size = evaluation.validation_dir, evaluation.trained_style, spec.size
    dtype = evaluation.dtype

    def work(label: str, model: str, out: Path) -> dict[str, float]:
        from deft.evaluators.scores.heldout import measure_losses, read_rows

        rows = read_rows(Path(model), file=file, rows_dir=rows_dir, style=style, size=size)

        def report(done: int, total: int) -> None:
            event = {"event": "eval_progress", "benchmark": HELDOUT, "model": label}
            events.put({**event, "done": done, "total": total})

        if not rows:
            return {}
        tables = out / heldout_table(label), out / token_table(label)
        return measure_losses(Path(model), rows, *tables, report, dtype=dtype)

    gpus = evaluation.spec.engine.tensor_parallel if evaluation.context.use_gpu else 0
    remote = ray.remote(num_cpus=1, num_gpus=gpus, scheduling_strategy=ANYWHERE)(work)
    measured = {}
    for label, model in evaluation.models.items():
        events.put({"event": "waiting", "what": f"{label}: loading, held-out losses"})
        measured[label] = ray.get(remote.remote(label, model, evaluation.out))
    return {label: losses for label, losses in measured.items() if losses}


def warn_of_changed_benchmarks(items: Mapping[str, str], stages: Path, console: RunConsole) -> None:
    """Warn of results of a benchmark whose definition has changed since.

    Args:
        items: benchmark as the spec names it → file of its items at the time.
        stages: directory of the run's manifests.
        console: where warnings are shown.
    """
    for name in changed_benchmarks(items):
        console.print(
            f"warning: benchmark {name} has changed since (instruction, reader, grader or "
            "metrics): these results are of its former definition; to evaluate again, delete "
            f"evaluate.json and record.json in {stages} and give the same command"
        )


@contextmanager
def shown_events(console: RunConsole) -> Iterator[Queue]:
    """Yield a queue whose events are shown: those of evaluators and of `measure_heldout`."""
    with console.progress("responses") as view:

        def handle(event: dict[str, Any]) -> None:
            if event["event"] == "eval_progress":
                name = f"{event['benchmark']}, {event['model']}"
                is_heldout = event["benchmark"] == HELDOUT
                unit = "examples" if is_heldout else "responses"
                view.update(name, event["done"], event["total"], unit=unit)
                if event["done"] == event["total"] and not is_heldout:
                    view.wait("grading")
            elif event["event"] == "waiting":
                view.wait(event["what"])
            elif event["event"] == "damaged_line":
                console.print(f"warning: {event['message']}")
            elif event["event"] == "engine_ready":
                how = "started" if event["how"] == "started" else "took over the weights"
                console.print(f"          engine {how} in {event['seconds']:.1f} s")
            elif event["event"] == "waiting_for_devices":
                need = ", ".join(f"{amount:g} {kind}" for kind, amount in event["needed"].items())
                console.print(f"          waiting for {need} to become free")
            elif event["event"] == "evaluator_died":
                name = f"{event['benchmark']}, {event['model']}"
                console.print(f"          {name}: evaluator lost, another goes on")

        with event_queue(handle) as (events, _):
            yield events
