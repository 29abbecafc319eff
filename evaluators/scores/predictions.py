"""The table of a benchmark's predictions, and the metrics over it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deft.evaluators.scores.metrics import Metric, Outcomes, by_source
from deft.workers.common.files import atomic_file, reading

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("item_digest", pa.string()),
        ("sample", pa.int32()),
        ("source", pa.string()),
        ("prompt", pa.string()),
        ("num_bos", pa.int32()),
        ("response", pa.string()),
        ("gold", pa.string()),
        ("finish_reason", pa.string()),
        ("n_tokens", pa.int32()),
        ("verdict", pa.string()),
        ("extracted", pa.string()),
        ("second_verdict", pa.string()),
        ("scores", pa.map_(pa.string(), pa.float64())),
    ]
)
"""One row for each item and sample, items in their order and samples from 0."""
EVALUATE_AGAIN = (
    "delete it with stages/evaluate.json and stages/record.json of its run, and run the same "
    "command again"
)
"""What to do about a table that is damaged."""
CONDITIONS = "deft.conditions"
"""Key of the conditions in the metadata of a table's schema."""


@dataclass(frozen=True)
class Prediction:
    """One response, graded; the columns of `SCHEMA`."""

    id: str
    item_digest: str
    """Identifies question, gold and options, see `Item.digest`."""
    sample: int
    source: str
    prompt: str
    """The text the model saw, control tokens included."""
    num_bos: int
    """BOS tokens it starts with."""
    response: str
    """The text it answered; of control tokens, those of thoughts, channels and turns are left."""
    gold: str
    finish_reason: str
    """See `Response`."""
    n_tokens: int
    verdict: str
    extracted: str | None
    scores: dict[str, float]
    second_verdict: str | None = None
    """The verdict of another grader, see `SECOND_OPINIONS`; None where there is none."""


def write_predictions(
    predictions: Sequence[Prediction], path: Path, conditions: Mapping[str, str] | None = None
) -> None:
    """Write the Parquet table. It appears whole or not at all; directories are made as needed.

    Args:
        predictions: the rows.
        path: of the table.
        conditions: under which responses were generated and graded, by name; kept in the metadata
            of the table's schema.
    """
    schema = SCHEMA.with_metadata({CONDITIONS: json.dumps(dict(conditions or {}))})
    table = pa.Table.from_pylist([asdict(prediction) for prediction in predictions], schema)
    with atomic_file(path) as file:
        pq.write_table(table, file, write_page_checksum=True)


def read_all(path: Path) -> list[Prediction]:
    """Read what `write_predictions` has written."""
    rows = pq.read_table(path).to_pylist(maps_as_pydicts="strict")
    return [Prediction(**row) for row in rows]


def read_rows(path: Path, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Read columns of a table of predictions, all of them if none are named.

    Raises:
        DamagedFileError: the table is gone, or not what was written.
    """
    # A sweep's report reads thousands of small tables; `read_table` takes four times as long.
    with (
        reading(path, EVALUATE_AGAIN),
        pq.ParquetFile(path, page_checksum_verification=True) as table,
    ):
        rows: list[dict[str, Any]] = table.read(columns, use_threads=False).to_pylist()
    return rows


def read_conditions(path: Path) -> dict[str, str]:
    """Read the conditions that `write_predictions` has kept with a table."""
    with reading(path, EVALUATE_AGAIN):
        metadata = pq.read_schema(path).metadata or {}
        conditions: dict[str, str] = json.loads(metadata.get(CONDITIONS.encode(), b"{}"))
    return conditions


def summarize_predictions(
    predictions: Sequence[Prediction], metrics: Iterable[Metric], *, several_sources: bool = False
) -> dict[str, float]:
    """Compute the metrics of a benchmark, and the rates of responses without an answer.

    ``truncated_rate`` is the share of responses that met the length limit, with an answer or
    without, ``prompt_too_long_rate`` the share that was never asked for, ``no_answer_rate`` and
    ``grader_error_rate`` are the shares of these verdicts among all, without what was never asked.
    Where there are second opinions, ``disagreement_rate`` is the share of them that differ.

    Args:
        predictions: of one benchmark, items in their order and samples from 0.
        metrics: of the benchmark.
        several_sources: whether each source is reported on its own as well.

    Raises:
        ValueError: there are no predictions.
    """
    if not predictions:
        raise ValueError("no predictions to summarize")
    outcomes = to_outcomes(predictions)
    values = {"num_items": float(len(outcomes.ids)), "num_samples": float(outcomes.num_samples)}
    for metric in (*metrics, *([by_source] if several_sources else [])):
        values |= metric(outcomes)
    return values | rates(predictions)


def rates(predictions: Sequence[Prediction]) -> dict[str, float]:
    """Compute the shares of responses of each kind, see `summarize_predictions`."""
    n = len(predictions)
    reasons = [prediction.finish_reason for prediction in predictions]
    verdicts = [p.verdict for p in predictions if p.finish_reason != "prompt_too_long"]
    pairs = [(p.verdict, p.second_verdict) for p in predictions]
    compared = [differs(*pair) for pair in pairs if None not in pair]
    disagreement = {"disagreement_rate": sum(compared) / len(compared)} if compared else {}
    return {
        "mean_tokens": sum(prediction.n_tokens for prediction in predictions) / n,
        "truncated_rate": reasons.count("length") / n,
        "no_answer_rate": verdicts.count("no_answer") / n,
        "grader_error_rate": verdicts.count("grader_error") / n,
        "prompt_too_long_rate": reasons.count("prompt_too_long") / n,
        **disagreement,
    }


def differs(verdict: str, second_verdict: str | None) -> bool:
    """Check whether a second opinion contradicts a verdict: one of them is correct, one is not.

    Where one grader ran out of time or memory nothing is contradicted.
    """
    verdicts = (verdict, second_verdict)
    return verdicts.count("correct") == 1 and "grader_error" not in verdicts


def to_outcomes(predictions: Sequence[Prediction]) -> Outcomes:
    """Arrange predictions by item and sample; every item has the same number of samples.

    Raises:
        ValueError: a score is NaN or infinite.
    """
    num_samples = 1 + max(prediction.sample for prediction in predictions)
    rows = [predictions[i : i + num_samples] for i in range(0, len(predictions), num_samples)]
    names = sorted({name for prediction in predictions for name in prediction.scores})
    for prediction in predictions:
        for name, score in prediction.scores.items():
            if not math.isfinite(score):
                raise ValueError(
                    f"score {name} of item {prediction.id} is {score}; a grader must give numbers"
                )
    return Outcomes(
        ids=[row[0].id for row in rows],
        sources=[row[0].source for row in rows],
        verdicts=[[prediction.verdict for prediction in row] for row in rows],
        answers=[[prediction.extracted for prediction in row] for row in rows],
        scores={
            # What was never graded has no score, and counts as the worst.
            name: np.array([[p.scores.get(name, 0.0) for p in row] for row in rows])
            for name in names
        },
    )
