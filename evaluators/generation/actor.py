"""The Ray actor that evaluates: one engine, one benchmark at a time, any number of models."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.util.queue import Queue

from deft.evaluators.benchmarks.base import Benchmark, Item
from deft.evaluators.benchmarks.catalog import get_benchmark
from deft.evaluators.benchmarks.items import read_items
from deft.evaluators.generation.engine import Decoding, Engine, Generation, Request
from deft.evaluators.generation.engines import create_engine
from deft.evaluators.generation.journal import Response, ResponseJournal, read_responses
from deft.evaluators.generation.model_dir import fingerprint, read_architecture, read_stop_token_ids
from deft.evaluators.generation.prompts import (
    Stops,
    answer_tokens,
    cut_at,
    describe_format,
    encode_item,
    request_seed,
    resolve_stops,
    resolve_style,
    stop_check,
    turn_header,
)
from deft.evaluators.grading.sandbox.pool import GraderPool
from deft.evaluators.grading.verdicts import Grade, Verdict
from deft.evaluators.scores.predictions import Prediction, summarize, write_predictions
from deft.evaluators.spec import BenchmarkSpec, EngineSpec
from deft.workers.data.chat import count_bos

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GRADING_WORKERS = 2
"""Grading processes beside each engine."""


@dataclass(frozen=True)
class Job:
    """One benchmark for one model."""

    label: str
    """What the model is called in progress events and results."""
    model: str
    """Its directory."""
    benchmark: BenchmarkSpec
    items: str
    """File of the benchmark's items, see `prepare_items`."""
    trained_style: str
    """Prompt style the model was trained with."""
    out: str
    """Folder of the results: `responses/` while they come, `predictions/` at the end."""

    @property
    def name(self) -> str:
        """What the benchmark is called."""
        return get_benchmark(self.benchmark.name).name

    @property
    def predictions(self) -> Path:
        """The Parquet table at the end."""
        return Path(self.out, "predictions", f"{self.label}-{_file_name(self.name)}.parquet")

    @property
    def responses(self) -> Path:
        """The journal of responses.

        Its name holds a hash of everything that they depend on, so that none is ever taken for
        another's. Grading and engine are not part of that.
        """
        parts = [self.benchmark.model_dump_json(), Path(self.items).name, self.trained_style]
        digest = hashlib.sha256("\0".join([*parts, fingerprint(Path(self.model))]).encode())
        name = f"{self.label}-{_file_name(self.name)}-{digest.hexdigest()[:8]}.jsonl"
        return Path(self.out, "responses", name)


@dataclass(frozen=True)
class Asked:
    """A benchmark as one model is asked it."""

    benchmark: Benchmark
    tokenizer: PreTrainedTokenizerBase
    style: str
    stops: Stops
    items: dict[str, Item]
    """By id, in their order."""
    prompts: dict[str, list[int]]
    """Token ids, by the item's id."""
    header: list[int]
    """What the model writes by itself before an answer, see `turn_header`."""

    def decoding(self, spec: BenchmarkSpec) -> Decoding:
        """How to sample."""
        return Decoding(
            max_tokens=spec.max_tokens,
            temperature=spec.temperature,
            top_p=spec.top_p,
            stop_token_ids=self.stops.token_ids,
            reached_stop=stop_check(self.tokenizer, self.stops.strings),
        )

    def grader(self, id: str) -> str:
        """The grader of an item."""
        return self.items[id].grader or self.benchmark.grader

    def response(self, id: str, sample: int, generation: Generation) -> Response:
        """What was generated, as text up to where it is over."""
        tokens = generation.token_ids
        # A model may stop at a token that its tokenizer does not count among the special ones.
        if tokens and tokens[-1] in self.stops.token_ids:
            tokens = tokens[:-1]
        answer = answer_tokens(tokens, self.header)
        text = str(self.tokenizer.decode(answer, skip_special_tokens=True))
        options = self.items[id].options
        return Response(
            id=id,
            sample=sample,
            response=cut_at(text, self.stops.strings),
            gold=self.items[id].gold,
            options=None if options is None else dict(options),
            finish_reason=generation.finish_reason,
            n_tokens=len(generation.token_ids),
        )

    def prediction(self, response: Response, grade: Grade) -> Prediction:
        """A row of the table at the end."""
        prompt = self.prompts[response.id]
        return Prediction(
            id=response.id,
            sample=response.sample,
            source=self.items[response.id].source or self.benchmark.name,
            prompt=str(self.tokenizer.decode(prompt)),
            num_bos=count_bos(self.tokenizer, prompt),
            response=response.response,
            gold=response.gold,
            finish_reason=response.finish_reason,
            n_tokens=response.n_tokens,
            verdict=str(grade.verdict),
            extracted=grade.extracted,
            scores=dict(grade.scores),
        )

    def format(self) -> dict[str, Any]:
        """How prompts were rendered and what ended responses."""
        prompt = next(iter(self.prompts.values()))
        described = describe_format(self.tokenizer, self.benchmark, self.style, prompt)
        return {**asdict(described), "stop": asdict(self.stops)}


def read_asked(job: Job) -> Asked:
    """What ``job`` asks; see `Evaluator.run` for what is raised."""
    spec, benchmark = job.benchmark, get_benchmark(job.benchmark.name)
    tokenizer = load_tokenizer(Path(job.model))
    style = resolve_style(spec, benchmark, tokenizer, job.trained_style)
    items = {item.id: item for item in read_items(Path(job.items))}
    prompts = {id: encode_item(tokenizer, item, benchmark, style) for id, item in items.items()}
    declared = read_stop_token_ids(Path(job.model), tokenizer.eos_token_id)
    stops = resolve_stops(tokenizer, style, declared, spec.stop)
    header = turn_header(tokenizer, style)
    return Asked(benchmark, tokenizer, style, stops, items, prompts, header)


class Evaluator:
    """Evaluates one model after the other on a warm engine.

    ``progress``, where given, receives one small dictionary per event. While a model is loaded:
    ``{"event": "engine_start", "model": path, "pid": id}`` and ``{"event": "engine_ready",
    "model": path, "how": "started" | "swapped", "seconds": s}``. For each benchmark about a hundred
    ``{"event": "eval_progress", "model": label, "benchmark": name, "done": i, "total": n}``, which
    count responses.
    """

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        self._engine: Engine | None = None
        self._loaded = ""
        self._graders: dict[str, GraderPool] = {}

    def run(self, job: Job, progress: Queue | None = None) -> dict[str, Any]:
        """Ask the model every item that has no response yet, and grade all responses.

        Returns:
            ``metrics`` (see `summarize`), ``prompt`` (see `PromptFormat`) with what ends a
            response, ``num_generated`` and ``num_resumed`` responses, ``start_seconds`` until the
            engine served the model, and ``work_seconds`` for everything else.

        Raises:
            FileNotFoundError: the model is no directory with safetensors weights.
            ValueError: it has no readable tokenizer, or the prompt style does not fit it.
            RuntimeError: the engine could not load the model.
        """
        began = time.monotonic()
        spec, asked = job.benchmark, read_asked(job)
        name = asked.benchmark.name
        wanted = [(id, sample) for id in asked.items for sample in range(spec.samples)]
        responses = read_responses(job.responses)
        num_resumed = len(responses)
        missing = [key for key in wanted if key not in responses]
        start_seconds = self._load(Path(job.model), progress) if missing else 0.0

        report = _every_percent(progress, job.label, name, len(wanted))
        grades: dict[tuple[str, int], Future[Grade]] = {}

        def add(response: Response) -> None:
            responses[response.key] = response
            if response.finish_reason != "prompt_too_long":
                grader = self._grader(asked.grader(response.id))
                grades[response.key] = grader.submit(asdict(response))

        for response in list(responses.values()):
            add(response)
        report(len(responses))
        requests = [
            Request(asked.prompts[id], request_seed(spec.seed, name, id, sample))
            for id, sample in missing
        ]
        with ResponseJournal(job.responses) as journal:
            for index, generation in self._generate(requests, asked.decoding(spec)):
                id, sample = missing[index]
                response = asked.response(id, sample, generation)
                journal.append(response)
                add(response)
                report(len(responses))

        never_asked = Grade(Verdict.no_answer)
        predictions = [
            asked.prediction(responses[key], grades[key].result() if key in grades else never_asked)
            for key in wanted
        ]
        write_predictions(predictions, job.predictions)
        return {
            "metrics": summarize(predictions, asked.benchmark),
            "prompt": asked.format(),
            "num_generated": len(missing),
            "num_resumed": num_resumed,
            "start_seconds": start_seconds,
            "work_seconds": time.monotonic() - began - start_seconds,
        }

    def _generate(
        self, requests: Sequence[Request], decoding: Decoding
    ) -> Iterator[tuple[int, Generation]]:
        if requests:
            assert self._engine is not None
            yield from self._engine.generate(requests, decoding)

    def _grader(self, name: str) -> GraderPool:
        """The grading processes of ``name``: they end with this one, and take seconds to start."""
        if name not in self._graders:
            self._graders[name] = GraderPool(name, workers=GRADING_WORKERS).__enter__()
        return self._graders[name]

    def _load(self, model: Path, progress: Queue | None) -> float:
        """Have the engine serve ``model``; returns the seconds that took."""
        identity = f"{model}\0{fingerprint(model)}"
        if identity == self._loaded:
            return 0.0
        began = time.monotonic()
        self._loaded = ""
        architecture = read_architecture(model)
        _report(progress, event="engine_start", model=str(model), pid=os.getpid())
        if self._engine is None:
            self._engine = create_engine(self._spec)
        how = self._engine.load(model, architecture)
        self._loaded = identity
        seconds = time.monotonic() - began
        _report(progress, event="engine_ready", model=str(model), how=how, seconds=seconds)
        return seconds


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a model directory.

    Raises:
        FileNotFoundError: there is no such model directory.
        ValueError: its tokenizer cannot be read.
    """
    from transformers import AutoTokenizer

    if not (path / "config.json").is_file():
        raise FileNotFoundError(f"{path} is no model directory: it has no config.json")
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"the tokenizer in {path} cannot be read: {error}") from error
    return tokenizer


def _file_name(benchmark: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in benchmark)


def _report(progress: Queue | None, **event: Any) -> None:
    if progress is not None:
        progress.put(event)


def _every_percent(
    progress: Queue | None, label: str, benchmark: str, total: int
) -> Callable[[int], None]:
    """A callback that reports the first count, the last, and one per percent between them."""
    reported = -1

    def report(done: int) -> None:
        nonlocal reported
        if reported < 0 or done == total or done - reported >= max(1, total // 100):
            reported = done
            _report(
                progress,
                event="eval_progress",
                model=label,
                benchmark=benchmark,
                done=done,
                total=total,
            )

    return report
