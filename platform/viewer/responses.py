"""Responses of several models on the same items, gathered from the tables of runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

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


@dataclass(frozen=True)
class ShownModel:
    """One model on the page."""

    name: str
    """Of its run, or of the model before training."""
    run: Path
    label: Literal["base", "eval"]
    """What the run calls it."""
    result: ModelResult


def shown_models(runs: Sequence[Path]) -> list[ShownModel]:
    """Return the models that runs have trained and, once each, those that they start from.

    Raises:
        UserError: an evaluation has not finished.
    """
    results = {run: require_manifest(run, EvaluateManifest).models for run in runs}
    trained = [
        ShownModel(run.resolve().name, run, "eval", models["eval"])
        for run, models in results.items()
    ]
    before: dict[str, ShownModel] = {}
    for run, models in results.items():
        if base := models.get("base"):
            name = f"base: {Path(base.directory).name}"
            before.setdefault(base.directory, ShownModel(name, run, "base", base))
    return [*trained, *before.values()]


def gather_responses(models: Sequence[ShownModel]) -> Responses:
    """Read the predictions of models."""
    gathered = Responses([model.name for model in models])
    for number, model in enumerate(models):
        for benchmark, result in model.result.benchmarks.items():
            _add_table(gathered.items, number, benchmark, model.run / result.predictions)
    return gathered


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
