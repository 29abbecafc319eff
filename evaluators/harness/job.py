"""A task of lm-evaluation-harness for one model: requests in, responses and predictions out."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance

from deft.evaluators.benchmarks.base import Item
from deft.evaluators.benchmarks.catalog import get_benchmark
from deft.evaluators.benchmarks.definition import definition_in
from deft.evaluators.benchmarks.items import read_items
from deft.evaluators.generation.engine import Engine
from deft.evaluators.generation.job import EvaluationJob, PromptRecord
from deft.evaluators.generation.journal import (
    Response,
    ResponseJournal,
    read_journals,
    write_journal,
)
from deft.evaluators.generation.prompts import Stops, request_seed
from deft.evaluators.grading.verdicts import Verdict
from deft.evaluators.harness.loading import choices_of, item_id, load_tasks, main_metrics
from deft.evaluators.harness.model import Answer, EngineModel
from deft.evaluators.scores.predictions import (
    Prediction,
    summarize_predictions,
    write_predictions,
)
from deft.evaluators.spec import CHAT_STYLE
from deft.workers.data.chat import count_bos, format_hash
from deft.workers.modeling.tokenizer import load_tokenizer

PLAIN_STYLE = "lm_eval"
"""Name of the library's prompts without a chat template, in records."""
NO_MATCH = "[invalid]"
"""What the library's filters make of a response in which they find no answer."""

Key = tuple[str, int]
"""Item id, and the number of a request of the item: an option, or a sample."""


class HarnessJob:
    """The requests of a job or of a shard of it, and what is known of their answers."""

    def __init__(self, job: EvaluationJob, on_damage: Callable[[str], None]) -> None:
        self._job, self.benchmark = job, get_benchmark(job.benchmark.name)
        self._style = job.benchmark.prompt_style or PLAIN_STYLE
        all_items = read_items(Path(job.items))
        self.items = {item.id: item for item in all_items[job.shard :: job.num_shards]}
        tokenizer = load_tokenizer(Path(job.model))
        self._model = EngineModel(tokenizer, Path(job.model), max_tokens=job.benchmark.max_tokens)
        limits = Counter(item.source for item in all_items)
        self.tasks = {}
        for name, task in load_tasks(self.benchmark, job.benchmark.num_fewshot).items():
            if limit := limits[name if self.benchmark.several_sources else ""]:
                self.tasks[name] = task
                self._render(name, task, limit)
        self._requests = dict(self._keyed())
        known = read_journals(job.journal, job.other_journals(), on_damage)
        self.responses = {key: known[key] for key in self._requests if key in known}
        self.num_resumed = len(self.responses)
        self.missing = [key for key in self._requests if key not in known]

    def _render(self, name: str, task: Any, limit: int) -> None:
        """Build the requests of a task, all of them: examples depend on the documents before."""
        chat = self._style == CHAT_STYLE
        task.build_all_requests(
            limit=limit,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
            chat_template=self._model.apply_chat_template if chat else None,
            tokenizer_name=self._model.tokenizer_name,
        )
        task.instances[:] = [
            each
            for each in task.instances
            if item_id(self.benchmark, name, each.doc_id) in self.items
        ]

    def _keyed(self) -> Iterator[tuple[Key, Instance]]:
        for name, task in self.tasks.items():
            for each in task.instances:
                for repeat in range(each.repeats):
                    number = each.idx * each.repeats + repeat
                    yield (item_id(self.benchmark, name, each.doc_id), number), each

    @property
    def num_requests(self) -> int:
        """Number of answers that the job is about."""
        return len(self._requests)

    def answer(self, engine: Engine, report: Callable[[int], None]) -> None:
        """Have the engine answer what is missing; each answer is in the journal at once.

        ``report`` is called with the number of answers that are known.
        """
        self._model.engine = engine
        kinds = dict.fromkeys(self._requests[key].request_type for key in self.missing)
        with ResponseJournal(self._job.journal) as journal:
            for kind in kinds:
                keys = [key for key in self.missing if self._requests[key].request_type == kind]

                def add(index: int, answer: Answer, keys: Sequence[Key] = keys) -> None:
                    response = self._response(keys[index], answer)
                    self.responses[response.key] = response
                    journal.append(response)
                    report(len(self.responses))

                def seed_of(index: int, keys: Sequence[Key] = keys) -> int:
                    return request_seed(self._job.benchmark.seed, self.benchmark.name, *keys[index])

                self._model.on_answer, self._model.seed_of = add, seed_of
                getattr(self._model, kind)([self._requests[key] for key in keys])

    def _response(self, key: Key, answer: Answer) -> Response:
        item, value = self.items[key[0]], answer.value
        return Response(
            id=key[0],
            sample=key[1],
            response=value if isinstance(value, str) else json.dumps(value),
            gold=item.gold,
            options=None if item.options is None else dict(item.options),
            finish_reason=answer.finish_reason,
            n_tokens=answer.n_tokens,
            question=item.question,
        )

    def finish(self) -> dict[str, float]:
        """Write the table of a whole task, and one journal of its shards'; returns its metrics."""
        spec, benchmark, rows = self._job.benchmark, self.benchmark, self._predictions()
        assert benchmark.harness is not None
        conditions = {
            "lm_eval": benchmark.harness.release,
            "task version": benchmark.harness.version,
            "num_fewshot": "the task's" if spec.num_fewshot is None else str(spec.num_fewshot),
            "max_tokens": str(spec.max_tokens),
            "prompt style": self._style,
            "definition": definition_in(self._job.items),
        }
        write_predictions(rows, self._job.predictions, conditions)
        if shards := self._job.other_journals():
            write_journal(self._job.responses, self.responses.values())
            for path in shards:
                path.unlink(missing_ok=True)
        return summarize_predictions(
            rows, benchmark.metrics, several_sources=benchmark.several_sources
        )

    def _predictions(self) -> list[Prediction]:
        """Grade all answers by the library, in the order of the items."""
        for key, request in self._requests.items():
            text = self.responses[key].response
            generated = request.request_type == "generate_until"
            request.resps.append(text if generated else _likelihood(json.loads(text)))
        rows = {}
        for name, task in self.tasks.items():
            by_doc: dict[int, list[Instance]] = {}
            for each in task.instances:
                by_doc.setdefault(each.doc_id, []).append(each)
            if by_doc:
                task.apply_filters()
            for doc_id, requests in by_doc.items():
                id_ = item_id(self.benchmark, name, doc_id)
                rows[id_] = self._prediction(self.items[id_], task, requests)
        return [rows[id_] for id_ in self.items]

    def _prediction(self, item: Item, task: Any, requests: list[Instance]) -> Prediction:
        requests.sort(key=lambda each: each.idx)
        scores: dict[str, float] = {}
        for number, name in enumerate(requests[0].filtered_resps):
            filtered = [each.filtered_resps[name] for each in requests]
            for metric, value in task.process_results(requests[0].doc, filtered).items():
                if isinstance(value, bool | int | float | np.generic):
                    scores[f"{metric}_{name}" if number else metric] = float(value)
        responses = [
            self.responses[item.id, number]
            for number in range(sum(each.repeats for each in requests))
        ]
        options = list(choices_of(task, requests[0].doc).items())
        response, extracted = responses[0].response, requests[0].filtered_resps
        answer = next(iter(extracted.values()))
        if options:
            logps = [json.loads(each.response)[0] for each in responses[: len(options)]]
            letter, response = options[logps.index(max(logps))]
            answer = letter
        prompt = str(requests[0].args[0])
        return Prediction(
            id=item.id,
            item_digest=item.digest,
            sample=0,
            source=item.source or self.benchmark.name,
            prompt=prompt,
            num_bos=self._num_bos(prompt),
            response=response,
            gold=item.gold,
            finish_reason=responses[0].finish_reason,
            n_tokens=sum(each.n_tokens for each in responses),
            verdict=str(_verdict(task, scores, responses[0].finish_reason, answer)),
            extracted=answer if isinstance(answer, str) else None,
            scores=scores,
        )

    def _num_bos(self, prompt: str) -> int:
        return count_bos(self._model.tokenizer, self._model.tok_encode(prompt))

    def record(self) -> PromptRecord:
        """Describe how prompts were rendered and what ended responses."""
        request = next(iter(self._requests.values()))
        generated = request.request_type == "generate_until"
        is_chat = self._style == CHAT_STYLE
        return PromptRecord(
            style=self._style,
            hash=format_hash(self._model.tokenizer, CHAT_STYLE) if is_chat else PLAIN_STYLE,
            num_bos=self._num_bos(str(request.args[0])),
            stop=self._model.stops(request.args[1]) if generated else Stops([], []),
        )


def _likelihood(value: Any) -> Any:
    """Return what JSON has made a list of as the library expects it."""
    return tuple(value) if isinstance(value, list) else value


def _verdict(task: Any, scores: dict[str, float], finish_reason: str, answer: Any) -> Verdict:
    """Call a response correct if the task's main metric is at its best, 1."""
    main = next((name for name in main_metrics(task) if name in scores), None)
    if main is None or not math.isfinite(scores[main]):
        raise ValueError(f"{task.task_name}: it gave no score to an item, only {scores}")
    if scores[main] == 1:
        return Verdict.correct
    if finish_reason == "length":
        return Verdict.truncated
    return Verdict.no_answer if answer == NO_MATCH else Verdict.wrong
