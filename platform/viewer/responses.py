"""Responses of several models on the same items, gathered from the tables of runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deft.evaluators.scores.predictions import read_rows
from deft.platform.records.manifests import EvaluateManifest, ModelResult, require_manifest

ItemKey = tuple[str, str, str, int]
"""Benchmark, id, digest of question and gold, and number of the sample."""


@dataclass(frozen=True)
class Answer:
    """What one model answered."""

    response: str
    verdict: str
    extracted: str | None
    num_tokens: int
    finish_reason: str
    scores: dict[str, float]


@dataclass
class AnsweredItem:
    """One question and what models answered, by their number in `Responses.models`."""

    benchmark: str
    id: str
    sample: int
    source: str
    prompt: str
    """As the first of the models saw it."""
    gold: str
    answers: dict[int, Answer] = field(default_factory=dict)


@dataclass
class Responses:
    """Everything on the page."""

    models: list[str] = field(default_factory=list)
    """Names of runs, and of the models that they start from."""
    items: dict[ItemKey, AnsweredItem] = field(default_factory=dict)


def gather_responses(runs: Sequence[Path]) -> Responses:
    """Read the predictions of runs and, once each, of the models that they start from.

    Raises:
        UserError: an evaluation has not finished.
    """
    gathered = Responses()
    trained = [(run, run.resolve().name, _models(run)["eval"]) for run in runs]
    bases = {base.directory: (run, base) for run in runs if (base := _models(run).get("base"))}
    before = [
        (run, f"base: {Path(directory).name}", base) for directory, (run, base) in bases.items()
    ]
    for number, (run, name, model) in enumerate([*trained, *before]):
        gathered.models.append(name)
        for benchmark, result in model.benchmarks.items():
            _add_table(gathered.items, number, benchmark, run / result.predictions)
    return gathered


def _models(run: Path) -> dict[str, ModelResult]:
    return require_manifest(run, EvaluateManifest).models


def _add_table(
    items: dict[ItemKey, AnsweredItem], number: int, benchmark: str, table: Path
) -> None:
    for row in read_rows(table):
        key = (benchmark, row["id"], row["item_digest"], row["sample"])
        if key not in items:
            items[key] = AnsweredItem(
                benchmark=benchmark,
                id=row["id"],
                sample=row["sample"],
                source=row["source"],
                prompt=row["prompt"],
                gold=row["gold"],
            )
        items[key].answers[number] = Answer(
            response=row["response"],
            verdict=row["verdict"],
            extracted=row["extracted"],
            num_tokens=row["n_tokens"],
            finish_reason=row["finish_reason"],
            scores=dict(row["scores"] or []),
        )


def as_json(responses: Responses) -> dict[str, Any]:
    """Return the data of the page; names are short, for there are thousands of items."""
    return {
        "models": responses.models,
        "items": [
            {
                "benchmark": item.benchmark,
                "id": item.id,
                "sample": item.sample,
                "source": item.source,
                "prompt": item.prompt,
                "gold": item.gold,
                "answers": {
                    number: [
                        answer.response,
                        answer.verdict,
                        answer.extracted,
                        answer.num_tokens,
                        answer.finish_reason,
                        {name: round(score, 4) for name, score in answer.scores.items()},
                    ]
                    for number, answer in item.answers.items()
                },
            }
            for item in responses.items.values()
        ],
    }
