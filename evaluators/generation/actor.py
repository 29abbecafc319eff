"""The Ray actor that evaluates: one engine, one benchmark or shard at a time, any model."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ray.util.queue import Queue

from deft.evaluators.benchmarks.catalog import get_benchmark
from deft.evaluators.generation.benchmark_prompts import BenchmarkPrompts, render_prompts
from deft.evaluators.generation.engine import Decoding, Engine, Generation, Request
from deft.evaluators.generation.grader_failure import require_some_grade
from deft.evaluators.generation.job import EvaluationJob, JobResult
from deft.evaluators.generation.journal import (
    Response,
    ResponseJournal,
    read_journals,
    write_journal,
)
from deft.evaluators.generation.model_dir import read_architecture
from deft.evaluators.generation.prompts import request_seed
from deft.evaluators.grading import SECOND_OPINIONS
from deft.evaluators.grading.sandbox.pool import GraderPool
from deft.evaluators.grading.verdicts import Grade, Verdict
from deft.evaluators.scores.predictions import (
    Prediction,
    read_all,
    summarize_predictions,
    write_predictions,
)
from deft.evaluators.spec import EngineSpec
from deft.workers.modeling.model_identity import fingerprint

GRADING_WORKERS = 2
"""Grading processes beside each engine."""


class Evaluator:
    """Evaluates one model after the other on a warm engine.

    ``progress``, where given, receives one small dictionary per event. While a model is loaded:
    ``{"event": "engine_start", "model": path, "pid": id}`` and ``{"event": "engine_ready",
    "model": path, "how": "started" | "swapped", "seconds": s}``. For each benchmark about a hundred
    ``{"event": "eval_progress", "model": label, "benchmark": name, "done": i, "total": n}``, which
    count responses. For a line of a journal that cannot be read ``{"event": "damaged_line",
    "message": text}``.
    """

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        self._engine: Engine | None = None
        self._loaded_model = ""
        self._graders: dict[str, GraderPool] = {}

    def run(self, job: EvaluationJob, progress: Queue | None = None) -> JobResult:
        """Generate every response that is not in a journal yet, and grade all of them.

        A shard leaves a table of its predictions; the job that puts shards together only reads
        what they have left.

        Raises:
            FileNotFoundError: the model is no directory with safetensors weights.
            ValueError: it has no readable tokenizer, or the prompt style does not fit it.
            ValueError: a grader failed on all of its responses.
            RuntimeError: the engine could not load the model.
        """

        def on_damage(text: str) -> None:
            _report(progress, event="damaged_line", message=text)

        if get_benchmark(job.benchmark.name).harness is not None:
            return self._run_harness(job, progress, on_damage)
        if job.num_merged:
            return merge_shards(job, on_damage)
        began = time.monotonic()
        spec, rendered = job.benchmark, render_prompts(job)
        name = rendered.benchmark.name
        keys = _keys(job, rendered)
        known = read_journals(job.journal, job.other_journals(), on_damage)
        responses = {key: known[key] for key in keys if key in known}
        num_resumed = len(responses)
        missing = [key for key in keys if key not in responses]
        start_seconds = self._load(Path(job.model), progress) if missing else 0.0

        report = _every_percent(progress, job.label, _title(job), len(keys))
        grades: dict[tuple[str, int], Future[Grade]] = {}
        second_opinions: dict[tuple[str, int], Future[Grade]] = {}

        def add(response: Response) -> None:
            responses[response.key] = response
            if response.finish_reason != "prompt_too_long":
                grader, record = rendered.grader(response.id), asdict(response)
                grades[response.key] = self._grader(grader).submit(record)
                if grader in SECOND_OPINIONS:
                    second = self._grader(SECOND_OPINIONS[grader]).submit(record)
                    second_opinions[response.key] = second

        for response in list(responses.values()):
            add(response)
        report(len(responses))
        requests = [
            rendered.request(item_id, request_seed(spec.seed, name, item_id, sample))
            for item_id, sample in missing
        ]
        with ResponseJournal(job.journal) as journal:
            for index, generation in self._generate(requests, rendered.decoding(spec)):
                item_id, sample = missing[index]
                response = rendered.response(item_id, sample, generation)
                journal.append(response)
                add(response)
                report(len(responses))

        results = {key: future.result() for key, future in grades.items()}
        seconds = {key: future.result() for key, future in second_opinions.items()}
        not_asked = Grade(Verdict.no_answer)
        predictions = [
            rendered.prediction(responses[key], results.get(key, not_asked), seconds.get(key))
            for key in keys
        ]
        if job.num_shards == 1:
            metrics = _finish(job, rendered, predictions, responses)
        else:
            write_predictions(predictions, job.part(job.shard))
            metrics = {}
        return JobResult(
            metrics=metrics,
            prompt=rendered.record(),
            num_generated=len(missing),
            num_resumed=num_resumed,
            start_seconds=start_seconds,
            work_seconds=time.monotonic() - began - start_seconds,
        )

    def _run_harness(
        self, job: EvaluationJob, progress: Queue | None, on_damage: Callable[[str], None]
    ) -> JobResult:
        """Do a job of lm-evaluation-harness, see `run`; shards leave nothing but their journals."""
        from deft.evaluators.harness.job import HarnessJob  # the library is optional

        began = time.monotonic()
        work = HarnessJob(job.whole if job.num_merged else job, on_damage)
        start_seconds = self._load(Path(job.model), progress) if work.missing else 0.0
        report = _every_percent(progress, job.label, _title(job), work.num_requests)
        report(work.num_resumed)
        if work.missing:
            assert self._engine is not None
            work.answer(self._engine, report)
        return JobResult(
            metrics=work.finish() if job.num_shards == 1 else {},
            prompt=work.record(),
            num_generated=len(work.missing),
            num_resumed=work.num_resumed,
            start_seconds=start_seconds,
            work_seconds=time.monotonic() - began - start_seconds,
        )

    def _generate(
        self, requests: Sequence[Request], decoding: Decoding
    ) -> Iterator[tuple[int, Generation]]:
        if requests:
            assert self._engine is not None
            yield from self._engine.generate(requests, decoding)

    def _grader(self, name: str) -> GraderPool:
        """Return the grading processes of ``name``, started once: that takes seconds."""
        if name not in self._graders:
            self._graders[name] = GraderPool(name, workers=GRADING_WORKERS).__enter__()
        return self._graders[name]

    def _load(self, model: Path, progress: Queue | None) -> float:
        """Have the engine serve ``model``; returns the seconds that took."""
        identity = f"{model}\0{fingerprint(model)}"
        if identity == self._loaded_model:
            return 0.0
        began = time.monotonic()
        self._loaded_model = ""
        architecture = read_architecture(model)
        _report(progress, event="engine_start", model=str(model), pid=os.getpid())
        if self._engine is None:
            self._engine = create_engine(self._spec)
        how = self._engine.load(model, architecture)
        self._loaded_model = identity
        seconds = time.monotonic() - began
        _report(progress, event="engine_ready", model=str(model), how=how, seconds=seconds)
        return seconds


def create_engine(spec: EngineSpec) -> Engine:
    """Create the engine that ``spec`` names, without a model."""
    # Each takes seconds to import and reads the process's environment when it does.
    if spec.type == "transformers":
        from deft.evaluators.generation.transformers_engine import TransformersEngine

        return TransformersEngine(spec)
    from deft.evaluators.generation.vllm_engine import VllmEngine

    return VllmEngine(spec)


def merge_shards(job: EvaluationJob, on_damage: Callable[[str], None]) -> JobResult:
    """Put the predictions and the journals of a benchmark's shards together.

    ``on_damage`` is told of lines of journals that cannot be read.

    Raises:
        ValueError: a grader failed on all responses of the benchmark.
    """
    began = time.monotonic()
    rendered, parts = render_prompts(job), [job.part(shard) for shard in range(job.num_merged)]
    predictions = {(row.id, row.sample): row for part in parts for row in read_all(part)}
    keys = _keys(job, rendered)
    responses = read_journals(job.responses, job.other_journals(), on_damage)
    metrics = _finish(job, rendered, [predictions[key] for key in keys], responses)
    write_journal(job.responses, (responses[key] for key in keys if key in responses))
    for path in (*job.other_journals(), *parts):
        path.unlink(missing_ok=True)
    return JobResult(metrics, rendered.record(), 0, 0, 0.0, time.monotonic() - began)


def _title(job: EvaluationJob) -> str:
    """Name a job in progress events."""
    part = f", {job.shard + 1} of {job.num_shards}"
    return f"{job.name}{part}" if job.num_shards > 1 else job.name


def _keys(job: EvaluationJob, rendered: BenchmarkPrompts) -> list[tuple[str, int]]:
    """List item id and sample of all responses, in the order of the table of predictions."""
    return [(id_, sample) for id_ in rendered.items for sample in range(job.benchmark.samples)]


def _finish(
    job: EvaluationJob,
    rendered: BenchmarkPrompts,
    predictions: Sequence[Prediction],
    responses: Mapping[tuple[str, int], Response],
) -> dict[str, float]:
    """Write the table of a whole benchmark; returns its metrics."""
    _require_grades(rendered, predictions, responses)
    write_predictions(predictions, job.predictions, rendered.conditions(job))
    return summarize_predictions(
        predictions,
        rendered.benchmark.metrics,
        several_sources=rendered.benchmark.several_sources,
    )


def _require_grades(
    rendered: BenchmarkPrompts,
    predictions: Sequence[Prediction],
    responses: Mapping[tuple[str, int], Response],
) -> None:
    """Raise ValueError if a grader of the benchmark failed on all of its responses."""
    by_grader: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        if prediction.finish_reason != "prompt_too_long":
            by_grader.setdefault(rendered.grader(prediction.id), []).append(prediction)
    for grader, graded in by_grader.items():
        failed = sum(prediction.verdict == Verdict.grader_error for prediction in graded)
        record = asdict(responses[graded[0].id, graded[0].sample])
        require_some_grade(rendered.benchmark.name, grader, failed, len(graded), record)


def _report(progress: Queue | None, **event: Any) -> None:
    if progress is not None:
        progress.put(event)


def _every_percent(
    progress: Queue | None, label: str, benchmark: str, total: int
) -> Callable[[int], None]:
    """Return a callback that reports the first count, the last, and one per percent between."""
    last_reported = -1

    def report(done: int) -> None:
        nonlocal last_reported
        if last_reported < 0 or done == total or done - last_reported >= max(1, total // 100):
            last_reported = done
            _report(
                progress,
                event="eval_progress",
                model=label,
                benchmark=benchmark,
                done=done,
                total=total,
            )

    return report
