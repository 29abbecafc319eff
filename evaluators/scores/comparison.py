"""Compare runs on the same items: which differences are more than noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deft.evaluators.scores import statistics
from deft.evaluators.scores.heldout_table import read_losses, text_bits
from deft.evaluators.scores.predictions import read_conditions, read_rows
from deft.evaluators.scores.statistics import Difference, Floats, Interval

LEVEL = 0.05
"""Familywise error rate of a whole comparison."""


@dataclass(frozen=True)
class ItemScores:
    """The scores of one run on the items of a benchmark."""

    ids: Sequence[str]
    values: Floats
    """The value of the primary metric of each item, mean over its samples, [I]."""
    weights: Floats
    """Of the items, [I]: bytes for a rate per byte, ones otherwise."""
    single: NDArray[np.bool_] | None
    """Whether the one sample of an item is correct, [I]; None with several or for other scores."""
    rates: Mapping[str, float]
    """Shares of responses: truncated, no answer, grader error, prompt too long."""
    digests: Sequence[str] = ()
    """Digest of each item's question, gold and options, [I]; empty for held-out rows."""
    conditions: Mapping[str, str] = field(default_factory=dict)
    """Conditions under which responses were generated and graded, by name."""

    def mean(self) -> float:
        """Compute the weighted mean over items."""
        return float((self.values * self.weights).sum() / self.weights.sum())

    def interval(self) -> Interval:
        """Compute the 95 % interval of `mean` over items."""
        return statistics.mean_interval(self.values, weights=self.weights)


@dataclass(frozen=True)
class Comparison:
    """One run against the first on one benchmark."""

    benchmark: str
    run: str
    difference: Difference
    p_value: float
    """McNemar's exact where both runs have one right or wrong response an item, else that of the
    paired t test."""
    adjusted_p: float
    """Holm's, over all comparisons that are made together."""

    @property
    def distinguishable(self) -> bool:
        """Tell whether the difference is significant at `LEVEL`."""
        return self.adjusted_p < LEVEL


def read_predictions(path: Path, primary_metric: str) -> ItemScores:
    """Read the items of a predictions table; ``primary_metric`` as in `Benchmark`."""
    columns = ["id", "item_digest", "sample", "verdict", "finish_reason", "scores"]
    rows = read_rows(path, columns)
    values: dict[str, list[float]] = {}
    for row in rows:
        score = dict(row["scores"] or []).get(primary_metric, 0.0)
        value = float(row["verdict"] == "correct") if primary_metric == "avg" else score
        values.setdefault(row["id"], []).append(value)
    reasons = [row["finish_reason"] for row in rows]
    verdicts = [row["verdict"] for row in rows if row["finish_reason"] != "prompt_too_long"]
    counts = {
        "truncated": reasons.count("length"),
        "no answer": verdicts.count("no_answer"),
        "grader error": verdicts.count("grader_error"),
        "prompt too long": reasons.count("prompt_too_long"),
    }
    means = np.array([np.mean(samples) for samples in values.values()])
    _require_finite(path, list(values), means)
    one_each = primary_metric == "avg" and len(rows) == len(values)
    return ItemScores(
        ids=list(values),
        values=means,
        weights=np.ones(len(means)),
        single=means.astype(bool) if one_each else None,
        rates={name: count / len(rows) for name, count in counts.items()},
        digests=list({row["id"]: row["item_digest"] for row in rows}.values()),
        conditions=read_conditions(path),
    )


def read_heldout(path: Path) -> ItemScores:
    """Read the rows of a table of losses, in bits per byte."""
    losses = read_losses(path)
    bits, sizes = text_bits(losses)
    ids = [f"{loss.row}/{loss.n_bytes}" for loss in losses]
    _require_finite(path, ids, bits)
    return ItemScores(ids=ids, values=bits / sizes, weights=sizes, single=None, rates={})


def compare(
    measured: Mapping[str, Mapping[str, ItemScores]], first: str
) -> dict[tuple[str, str], Comparison]:
    """Compare every run with the run ``first`` on every benchmark that both have.

    Args:
        measured: benchmark → run → what was measured.
        first: the run to compare with.

    Returns:
        (benchmark, run) → comparison, over the items that both runs have; where they share none
        there is no entry.

    Raises:
        ValueError: two runs mean different questions or golds by the same ids, or a value is NaN
            or infinite.
    """
    differences: list[tuple[str, str, Difference, float]] = []
    for benchmark, runs in measured.items():
        if first not in runs:
            continue
        for name, run in runs.items():
            if name == first:
                continue
            base = runs[first]
            base_rows, run_rows = _common_rows(base.ids, run.ids)
            if not base_rows:
                continue
            if base.digests and run.digests:
                _require_same_items(
                    f"{benchmark}: {first} and {name}",
                    [base.ids[row] for row in base_rows],
                    [base.digests[row] for row in base_rows],
                    [run.digests[row] for row in run_rows],
                )
            difference = statistics.paired_difference(
                base.values[base_rows], run.values[run_rows], weights=base.weights[base_rows]
            )
            p_value = difference.p_value
            if base.single is not None and run.single is not None:
                p_value = statistics.mcnemar(base.single[base_rows], run.single[run_rows])
            differences.append((benchmark, name, difference, p_value))
    adjusted = statistics.holm([p_value for *_, p_value in differences])
    return {
        (benchmark, name): Comparison(benchmark, name, difference, p_value, corrected)
        for (benchmark, name, difference, p_value), corrected in zip(
            differences, adjusted, strict=True
        )
    }


def _require_finite(path: Path, ids: Sequence[str], values: Floats) -> None:
    """Raise ValueError if a value cannot be compared."""
    for item_id, value in zip(ids, values.tolist(), strict=True):
        if not math.isfinite(value):
            raise ValueError(f"{path}: the value of item {item_id} is {value}, not a number")


def different_conditions(first: Mapping[str, str], second: Mapping[str, str]) -> list[str]:
    """Describe what differs between the conditions of two runs, with both values."""
    return [
        f"{name} ({first.get(name, 'none')} / {second.get(name, 'none')})"
        for name in dict.fromkeys([*first, *second])
        if first.get(name) != second.get(name)
    ]


def _require_same_items(
    title: str, ids: Sequence[str], first: Sequence[str], second: Sequence[str]
) -> None:
    """Raise ValueError if two runs have different digests of the items ``ids``."""
    different = [i for i, a, b in zip(ids, first, second, strict=True) if a != b]
    if different:
        raise ValueError(
            f"{title} have different questions or golds for {len(different)} of {len(ids)} items "
            f"of the same id, the first is {different[0]!r}; evaluate both on the same data"
        )


def _common_rows(first: Sequence[str], second: Sequence[str]) -> tuple[list[int], list[int]]:
    """Return the rows of the ids that both sequences have, in the order of ``first``."""
    row_in_second = {item_id: row for row, item_id in enumerate(second)}
    shared = [(row, row_in_second[i]) for row, i in enumerate(first) if i in row_in_second]
    return [row for row, _ in shared], [row for _, row in shared]
