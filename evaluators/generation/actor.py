"""The Ray actor that evaluates: one engine, one benchmark at a time, any number of models."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ray.util.queue import Queue

from deft.evaluators.generation.benchmark_prompts import BenchmarkPrompts, render_prompts
from deft.evaluators.generation.engine import Decoding, Engine, Generation, Request
from deft.evaluators.generation.engines import create_engine
from deft.evaluators.generation.grader_failure import require_some_grade
from deft.evaluators.generation.job import EvaluationJob, JobResult
from deft.evaluators.generation.journal import Response, ResponseJournal, read_responses
from deft.evaluators.generation.model_dir import fingerprint, read_architecture
from deft.evaluators.generation.prompts import request_seed
from deft.evaluators.grading.sandbox.pool import GraderPool
from deft.evaluators.grading.verdicts import Grade, Verdict
from deft.evaluators.scores.predictions import summarize_predictions, write_predictions
from deft.evaluators.spec import EngineSpec

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
        """Generate every response that is not in the journal yet, and grade all of them.

        Raises:
            FileNotFoundError: the model is no directory with safetensors weights.
            ValueError: it has no readable tokenizer, or the prompt style does not fit it.
            ValueError: a grader failed on all of its responses.
            RuntimeError: the engine could not load the model.
        """
        began = time.monotonic()
        spec, rendered = job.benchmark, render_prompts(job)
        name = rendered.benchmark.name
        keys = [(item_id, sample) for item_id in rendered.items for sample in range(spec.samples)]
        journaled = read_responses(
            job.responses, lambda text: _report(progress, event="damaged_line", message=text)
        )
        responses = {key: journaled[key] for key in keys if key in journaled}
        num_resumed = len(responses)
        missing = [key for key in keys if key not in responses]
        start_seconds = self._load(Path(job.model), progress) if missing else 0.0

        report = _every_percent(progress, job.label, name, len(keys))
        grades: dict[tuple[str, int], Future[Grade]] = {}

        def add(response: Response) -> None:
            responses[response.key] = response
            if response.finish_reason != "prompt_too_long":
                grader = self._grader(rendered.grader(response.id))
                grades[response.key] = grader.submit(asdict(response))

        for response in list(responses.values()):
            add(response)
        report(len(responses))
        requests = [
            rendered.request(item_id, request_seed(spec.seed, name, item_id, sample))
            for item_id, sample in missing
        ]
        with ResponseJournal(job.responses) as journal:
            for index, generation in self._generate(requests, rendered.decoding(spec)):
                item_id, sample = missing[index]
                response = rendered.response(item_id, sample, generation)
                journal.append(response)
                add(response)
                report(len(responses))

        results = {key: future.result() for key, future in grades.items()}
        _require_grades(rendered, results, responses)
        not_asked = Grade(Verdict.no_answer)
        predictions = [
            rendered.prediction(responses[key], results.get(key, not_asked)) for key in keys
        ]
        write_predictions(predictions, job.predictions, rendered.conditions(job))
        return JobResult(
            metrics=summarize_predictions(
                predictions,
                rendered.benchmark.metrics,
                several_sources=rendered.benchmark.several_sources,
            ),
            prompt=rendered.record(),
            num_generated=len(missing),
            num_resumed=num_resumed,
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


def _require_grades(
    rendered: BenchmarkPrompts,
    grades: Mapping[tuple[str, int], Grade],
    responses: Mapping[tuple[str, int], Response],
) -> None:
    """Raise ValueError if a grader of the benchmark failed on all of its responses."""
    keys_of_grader: dict[str, list[tuple[str, int]]] = {}
    for key in grades:
        keys_of_grader.setdefault(rendered.grader(key[0]), []).append(key)
    for grader, keys in keys_of_grader.items():
        failed = [key for key in keys if grades[key].verdict is Verdict.grader_error]
        record = asdict(responses[keys[0]])
        require_some_grade(rendered.benchmark.name, grader, len(failed), len(keys), record)


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
