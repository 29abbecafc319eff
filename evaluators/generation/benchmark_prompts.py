"""A benchmark rendered for one model: prompts in, responses and predictions out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deft.evaluators.benchmarks.base import Benchmark, Item
from deft.evaluators.benchmarks.catalog import get_benchmark
from deft.evaluators.benchmarks.definition import definition_in
from deft.evaluators.benchmarks.items import read_items
from deft.evaluators.generation.engine import Decoding, Generation, Request
from deft.evaluators.generation.job import EvaluationJob, PromptRecord
from deft.evaluators.generation.journal import Response
from deft.evaluators.generation.model_dir import read_stop_token_ids
from deft.evaluators.generation.prompts import (
    Stops,
    answer_tokens,
    cut_at,
    describe_format,
    dropped_tokens,
    encode_item,
    resolve_stops,
    resolve_style,
    stop_check,
    turn_header,
)
from deft.evaluators.grading.verdicts import Grade
from deft.evaluators.scores.predictions import Prediction
from deft.evaluators.spec import BenchmarkSpec
from deft.workers.data.chat import count_bos
from deft.workers.modeling.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

THOUGHT_OPENINGS = ("<think>", "[THINK]")
"""Texts that generation prompts of thinking models end in."""
LONGEST_OPENING = 8
"""Number of tokens at the end of a prompt that may spell one of the `THOUGHT_OPENINGS`."""


@dataclass(frozen=True)
class BenchmarkPrompts:
    """A benchmark's items and their prompts for one model."""

    benchmark: Benchmark
    tokenizer: PreTrainedTokenizerBase
    style: str
    """Name of the prompt style."""
    stops: Stops
    items: dict[str, Item]
    """Item id → item, in the benchmark's order."""
    prompts: dict[str, list[int]]
    """Item id → token ids of its prompt."""
    dropped: frozenset[int]
    """Control tokens that are left out of responses, see `dropped_tokens`."""
    header: list[int]
    """Token ids that the model writes by itself before an answer, see `turn_header`."""

    def request(self, item_id: str, seed: int) -> Request:
        """Return the request for one response to an item."""
        allowed: tuple[int, ...] = ()
        if self.benchmark.by_likelihood:
            allowed = letter_ids(self.tokenizer, self.items[item_id].options or {})
        return Request(self.prompts[item_id], seed, allowed)

    def decoding(self, spec: BenchmarkSpec) -> Decoding:
        """Return the sampling parameters for the engine."""
        return Decoding(
            max_tokens=spec.max_tokens,
            temperature=spec.temperature,
            top_p=spec.top_p,
            stop_token_ids=self.stops.token_ids,
            reached_stop=stop_check(self.tokenizer, self.stops.strings),
        )

    def grader(self, item_id: str) -> str:
        """Return the name of the grader of an item."""
        return self.items[item_id].grader or self.benchmark.grader

    def response(self, item_id: str, sample: int, generation: Generation) -> Response:
        """Decode what was generated, as text up to where the response ends."""
        token_ids = generation.token_ids
        # A model may stop at a token that its tokenizer does not count among the special ones.
        if token_ids and token_ids[-1] in self.stops.token_ids:
            token_ids = token_ids[:-1]
        answer = answer_tokens(token_ids, self.header)
        kept = [token_id for token_id in answer if token_id not in self.dropped]
        text = str(self.tokenizer.decode(kept))
        item = self.items[item_id]
        return Response(
            id=item_id,
            sample=sample,
            response=cut_at(text, self.stops.strings),
            gold=item.gold,
            options=None if item.options is None else dict(item.options),
            # A letter is all that there can be.
            finish_reason="stop"
            if self.benchmark.by_likelihood and generation.token_ids
            else generation.finish_reason,
            n_tokens=len(generation.token_ids),
            question=item.question,
            opens_thought=self.opens_thought(item_id),
        )

    def opens_thought(self, item_id: str) -> bool:
        """Tell whether the prompt of an item ends within a thought."""
        end = str(self.tokenizer.decode(self.prompts[item_id][-LONGEST_OPENING:]))
        return end.rstrip().endswith(THOUGHT_OPENINGS)

    def prediction(
        self, response: Response, grade: Grade, second_opinion: Grade | None
    ) -> Prediction:
        """Join a response and its grades to a row of the predictions table."""
        prompt = self.prompts[response.id]
        return Prediction(
            id=response.id,
            item_digest=self.items[response.id].digest,
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
            second_verdict=None if second_opinion is None else str(second_opinion.verdict),
            scores=dict(grade.scores),
        )

    def conditions(self, job: EvaluationJob) -> dict[str, str]:
        """Describe what responses and grades depend on beside model, items and seed."""
        spec = job.benchmark
        return {
            "samples": str(spec.samples),
            "max_tokens": str(spec.max_tokens),
            "temperature": f"{spec.temperature:g}",
            "top_p": f"{spec.top_p:g}",
            "stop": " ".join(map(repr, spec.stop)) or "none",
            "prompt style": self.style,
            "definition": definition_in(job.items),
        }

    def record(self) -> PromptRecord:
        """Describe how prompts were rendered and what ended responses."""
        prompt = next(iter(self.prompts.values()))
        rendered = describe_format(self.tokenizer, self.benchmark, self.style, prompt)
        return PromptRecord(**asdict(rendered), stop=self.stops)


def letter_ids(tokenizer: PreTrainedTokenizerBase, options: Iterable[str]) -> tuple[int, ...]:
    """Return the token ids of the letters of options.

    Raises:
        ValueError: there are none, or one is not a single token of the model.
    """
    letters = list(options)
    encoded = [tokenizer.encode(letter, add_special_tokens=False) for letter in letters]
    if not letters or any(len(token_ids) != 1 for token_ids in encoded):
        raise ValueError(
            f"options {', '.join(letters) or 'are missing'}: their likelihood can be compared only "
            "if there are options and each letter is one token of the model"
        )
    return tuple(token_ids[0] for token_ids in encoded)


def render_prompts(job: EvaluationJob) -> BenchmarkPrompts:
    """Render the prompts of ``job``, those of its shard only.

    Raises:
        FileNotFoundError: the model is no directory with a configuration.
        ValueError: it has no readable tokenizer, or the prompt style does not fit it.
    """
    spec, benchmark = job.benchmark, get_benchmark(job.benchmark.name)
    tokenizer = load_tokenizer(Path(job.model))
    style = resolve_style(spec, benchmark, tokenizer, job.trained_style)
    shard = read_items(Path(job.items))[job.shard :: job.num_shards]
    items = {item.id: item for item in shard}
    prompts = {
        item_id: encode_item(tokenizer, item, benchmark, style) for item_id, item in items.items()
    }
    declared = read_stop_token_ids(Path(job.model), tokenizer.eos_token_id)
    stops = resolve_stops(tokenizer, style, declared, spec.stop)
    if benchmark.by_likelihood:
        for item in items.values():
            letter_ids(tokenizer, item.options or {})
    header = turn_header(tokenizer, style)
    dropped = dropped_tokens(tokenizer)
    return BenchmarkPrompts(benchmark, tokenizer, style, stops, items, prompts, dropped, header)
