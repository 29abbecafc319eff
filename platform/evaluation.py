"""Evaluating models: what `deft run` does after training, and all that `deft evaluate` does."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.queue import Queue

from deft.evaluators.actor import Job, load_tokenizer
from deft.evaluators.benchmarks import get_benchmark
from deft.evaluators.items import prepare_items, read_items
from deft.evaluators.pool import EvaluatorPool
from deft.evaluators.prompts import encode_item, resolve_style
from deft.evaluators.spec import EvaluationSpec
from deft.platform.cluster import event_queue
from deft.platform.console import RunConsole
from deft.platform.errors import StageError, UserError, describe, root_cause
from deft.platform.tracking import Recorder

HELDOUT = "heldout"
"""What losses are called among the results of benchmarks."""


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
    verbose: bool
    validation_dir: str | None = None
    """Held-out rows, as the prepare stage leaves them."""
    pool: EvaluatorPool | None = None
    """Warm engines to use; if none is given there is one for this evaluation alone."""


def prepare_benchmarks(
    spec: EvaluationSpec, model_dir: str, trained_style: str, cache: Path
) -> dict[str, str]:
    """Items of every benchmark on disk, and proof that the model can be asked them.

    Runs as a Ray task, before anything that takes long.

    Returns:
        Name of a benchmark in the spec → file of its items.

    Raises:
        UserError: data is missing or bad, or a prompt style does not fit the model.
        StageError: something else went wrong.
    """
    spec = _absolute(spec)
    suite = spec.suite

    def work() -> dict[str, str]:
        tokenizer = load_tokenizer(Path(model_dir)) if suite else None
        items = {}
        for benchmark_spec in suite:
            benchmark = get_benchmark(benchmark_spec.name)
            path = prepare_items(benchmark_spec, spec.data_dir, cache)
            assert tokenizer is not None
            try:
                style = resolve_style(benchmark_spec, benchmark, tokenizer, trained_style)
                encode_item(tokenizer, read_items(path)[0], benchmark, style)
            except ValueError as error:
                raise ValueError(f"{benchmark.name}: {error}") from None
            items[benchmark_spec.name] = str(path)
        return items

    try:
        prepared: dict[str, str] = ray.get(ray.remote(work).remote())
    except ray.exceptions.RayTaskError as error:
        cause = root_cause(error)
        if isinstance(cause, (ValueError, FileNotFoundError)):
            raise UserError(f"evaluation: {cause}") from None
        raise StageError(f"evaluation: {describe(cause)}") from error
    return prepared


def _absolute(spec: EvaluationSpec) -> EvaluationSpec:
    """``spec`` with local paths made absolute: Ray's processes work in other directories."""
    benchmarks = tuple(
        benchmark.model_copy(update={"file": str(Path(benchmark.file).absolute())})
        if benchmark.file
        else benchmark
        for benchmark in spec.benchmarks
    )
    folder = str(Path(spec.data_dir).absolute()) if spec.data_dir else None
    return spec.model_copy(update={"benchmarks": benchmarks, "data_dir": folder})


def evaluate_models(evaluation: Evaluation, items: Mapping[str, str]) -> dict[str, Any]:
    """Measure losses, then generate and grade what has not been yet.

    Args:
        evaluation: see there.
        items: what `prepare_benchmarks` returned.

    Returns:
        ``results`` (label → benchmark → metric → value), ``prompts`` (label → benchmark → format
        and ends of responses), ``models``, and how many responses were generated and found, and
        the seconds that took.
    """
    started = time.monotonic()
    results: dict[str, dict[str, dict[str, float]]] = {label: {} for label in evaluation.models}
    prompts: dict[str, dict[str, Any]] = {label: {} for label in evaluation.models}
    totals = {"num_generated": 0, "num_resumed": 0, "start_seconds": 0.0}
    with evaluation.console.progress("responses") as view:

        def handle(event: dict[str, Any]) -> None:
            if event["event"] == "eval_progress":
                name = f"{event['benchmark']}, {event['model']}"
                view.update(name, event["done"], event["total"])
            elif event["event"] == "engine_ready":
                how = "started" if event["how"] == "started" else "took over the weights"
                evaluation.console.say(f"          engine {how} in {event['seconds']:.1f} s")

        with event_queue(handle) as events:
            for label, losses in measure_heldout(evaluation, events).items():
                results[label][HELDOUT] = losses
            for job, result in generate(evaluation, items, events):
                results[job.label][job.name] = result["metrics"]
                prompts[job.label][job.name] = result["prompt"]
                for name in totals:
                    totals[name] += result[name]
    return {
        "results": results,
        "prompts": prompts,
        "models": dict(evaluation.models),
        **totals,
        "seconds": time.monotonic() - started,
    }


def generate(
    evaluation: Evaluation, items: Mapping[str, str], events: Queue
) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Yield every model's every benchmark as soon as it is done, with what the evaluator returned.

    Raises:
        UserError: the cluster has no node that can hold an engine.
    """
    jobs = [
        Job(
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
    if not jobs:
        return
    with ExitStack() as stack:
        pool = evaluation.pool
        if pool is None:
            try:
                pool = EvaluatorPool(
                    evaluation.spec.engine, evaluation.use_gpu, verbose=evaluation.verbose
                )
            except ValueError as error:
                raise UserError(f"evaluation: {error}") from None
            stack.enter_context(pool)
        yield from pool.run(jobs, events)


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
        from deft.evaluators.losses import measure_losses, read_rows

        rows = read_rows(Path(model), file=file, rows_dir=rows_dir, style=style, size=size)

        def report(done: int, total: int) -> None:
            event = {"event": "eval_progress", "benchmark": HELDOUT, "model": label}
            events.put({**event, "done": done, "total": total})

        return measure_losses(Path(model), rows, Path(out), report) if rows else {}

    remote = ray.remote(num_cpus=1, num_gpus=1 if evaluation.use_gpu else 0)(work)
    measured = {}
    for label, model in evaluation.models.items():
        out = evaluation.out / "predictions" / f"{label}-{HELDOUT}.parquet"
        measured[label] = ray.get(remote.remote(label, model, str(out)))
    return {label: losses for label, losses in measured.items() if losses}


def record_results(
    recorder: Recorder, manifest: Mapping[str, Any], steps: Mapping[str, int]
) -> None:
    """Log ``<label>/<benchmark>/<metric>`` of every model, at the training step of its label."""
    for label, benchmarks in manifest["results"].items():
        for benchmark, metrics in benchmarks.items():
            named = {f"{label}/{benchmark}/{name}": value for name, value in metrics.items()}
            recorder.log(steps[label], named, manifest["finished_at"])
