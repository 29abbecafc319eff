"""What a model answered: the record of one item, the table of all, and the metrics over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deft.workers.storage import atomic_file


@dataclass(frozen=True)
class Prediction:
    """One item, answered and scored."""

    id: str
    prompt: str
    """The text the model saw, special tokens included."""
    response: str
    """The text it answered, special tokens left out."""
    gold: str
    finish_reason: str
    """``stop`` (EOS), ``length`` (cut off) or ``prompt_too_long`` (never asked)."""
    n_tokens: int
    """Generated tokens, EOS included."""
    scores: dict[str, float]


def summarize(predictions: Sequence[Prediction]) -> dict[str, float]:
    """Mean and standard error of each score, and the share of each way to fail.

    Every figure is over all items, so that a model gains nothing by failing: an item that was
    cut off, left empty or never asked counts with the scores of its response. The standard
    error ``<score>_stderr`` is the sample standard deviation over √n, NaN for a single item.

    Raises:
        ValueError: there are no predictions.
    """
    if not predictions:
        raise ValueError("no predictions to summarize")
    n = len(predictions)
    metrics: dict[str, float] = {"num_items": float(n)}
    for name in predictions[0].scores:
        values = np.array([prediction.scores[name] for prediction in predictions])
        metrics[name] = float(values.mean())
        metrics[f"{name}_stderr"] = float(values.std(ddof=1) / n**0.5) if n > 1 else float("nan")
    reasons = [prediction.finish_reason for prediction in predictions]
    metrics["truncated_rate"] = reasons.count("length") / n
    metrics["prompt_too_long_rate"] = reasons.count("prompt_too_long") / n
    metrics["empty_rate"] = (
        sum(
            not prediction.response.strip() and prediction.finish_reason != "prompt_too_long"
            for prediction in predictions
        )
        / n
    )
    return metrics


def write_predictions(predictions: Sequence[Prediction], path: Path) -> None:
    """Write a Parquet table with one row per item and one column per field and score.

    The file appears whole or not at all; directories are made as needed.
    """
    rows = []
    for prediction in predictions:
        row = asdict(prediction)
        rows.append(row | row.pop("scores"))
    with atomic_file(path) as file:
        pq.write_table(pa.Table.from_pylist(rows), file)
