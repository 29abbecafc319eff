"""Comparisons of a sweep's objectives with the baseline and with the base model.

Shapes as in `deft.sweeps.report.scores`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from deft.evaluators.scores import statistics
from deft.evaluators.scores.comparison import LEVEL
from deft.evaluators.scores.statistics import Interval
from deft.sweeps.report.read_sweep import Setting
from deft.sweeps.report.scores import Column, Measure, Scores

Conclusion = Literal["better", "worse", "not distinguishable"]


@dataclass(frozen=True)
class PairedComparison:
    """The difference of two models on a measure, paired over shared items and seeds."""

    difference: float
    interval: Interval
    p_value: float
    detectable: float
    """Smallest true difference that a comparison of this size finds with 80 % power at 5 %."""
    num_seeds: int
    num_items: int
    over_seeds: bool
    """Whether interval and p-value cover the choice of seeds, not only that of items."""
    adjusted_p: float = math.nan
    """Holm's, over all comparisons of the report; NaN for what is not tested."""
    better: bool = False
    """Whether the second model scores better."""

    @property
    def conclusion(self) -> Conclusion:
        """The direction of the difference, if it is significant."""
        if not self.adjusted_p < LEVEL:
            return "not distinguishable"
        return "better" if self.better else "worse"


@dataclass(frozen=True)
class SettingResults:
    """All scores and comparisons of one setting."""

    setting: Setting
    measures: Sequence[Measure]
    """The primary one first."""
    objectives: Mapping[str, Column]
    """Those with finished cells, in the order of the sweep."""
    base: Column
    """The model that was trained from."""
    intervals: Mapping[tuple[str, Measure], Interval]
    """95 % intervals of objectives."""
    base_intervals: Mapping[Measure, Interval]
    comparisons: Mapping[tuple[str, Measure], PairedComparison]
    """Objectives against the baseline, see `compare_all`."""
    gains: Mapping[tuple[str, Measure], PairedComparison]
    """Objectives against the base model, not tested."""

    @property
    def primary(self) -> Measure | None:
        """The measure that the answer is about; None if no cell has finished."""
        return self.measures[0] if self.measures else None

    def ranking(self, measure: Measure) -> list[str]:
        """Return objectives from best to worst."""
        names = [name for name, column in self.objectives.items() if measure in column]
        sign = -1 if measure.higher_is_better else 1
        return sorted(names, key=lambda name: sign * self.objectives[name][measure].mean)


def paired(first: Scores, second: Scores) -> tuple[Scores, Scores]:
    """Restrict both to the items that they share, and to common seeds if there are any.

    Scores without seeds, such as a base model's, are paired with every seed of the other. Without
    a common seed, means over seeds are paired.
    """
    row_in_second = {item: row for row, item in enumerate(second.ids)}
    first_rows = [row for row, item in enumerate(first.ids) if item in row_in_second]
    second_rows = [row_in_second[first.ids[row]] for row in first_rows]
    first, second = _items(first, first_rows), _items(second, second_rows)
    if not first.seeds or not second.seeds:
        rows = max(len(first.values), len(second.values))
        return _spread(first, rows), _spread(second, rows)
    common = [seed for seed in first.seeds if seed in second.seeds]
    if not common:
        return _averaged(first), _averaged(second)
    return _seeds(first, common), _seeds(second, common)


def _items(scores: Scores, rows: Sequence[int]) -> Scores:
    return replace(
        scores,
        ids=tuple(scores.ids[i] for i in rows),
        values=scores.values[:, rows],
        weights=scores.weights[rows],
        groups=None
        if scores.groups is None
        else np.unique(scores.groups[rows], return_inverse=True)[1],
    )


def _seeds(scores: Scores, seeds: Sequence[int]) -> Scores:
    rows = [scores.seeds.index(seed) for seed in seeds]
    return replace(scores, seeds=tuple(seeds), values=scores.values[rows])


def _averaged(scores: Scores) -> Scores:
    return replace(scores, seeds=(), values=scores.values.mean(0, keepdims=True), single=False)


def _spread(scores: Scores, rows: int) -> Scores:
    return replace(scores, values=np.broadcast_to(scores.values, (rows, len(scores.ids))))


def compare_pair(
    first: Scores, second: Scores, *, higher_is_better: bool
) -> PairedComparison | None:
    """Compare ``second`` with ``first`` over shared items; return None if they share none.

    Interval and p-value are those of `statistics.paired_difference`; with one seed and one right or
    wrong response an item, p is that of McNemar's exact test.
    """
    first, second = paired(first, second)
    if not first.ids:
        return None
    difference = statistics.paired_difference(
        first.values, second.values, weights=first.weights, groups=first.groups
    )
    p_value = difference.p_value
    num_runs = len(first.values)
    if num_runs == 1 and first.single and second.single:
        p_value = statistics.mcnemar(first.values[0] > 0.5, second.values[0] > 0.5)
    return PairedComparison(
        difference=difference.mean,
        interval=difference.interval,
        p_value=p_value,
        detectable=difference.detectable,
        num_seeds=first.num_seeds,
        num_items=difference.num_items,
        over_seeds=difference.over_runs,
        better=(difference.mean > 0) == higher_is_better,
    )


Columns = Mapping[Setting, Mapping[str, Column]]
"""Setting → objective → scores."""
Comparisons = dict[tuple[Setting, str, Measure], PairedComparison]
"""By setting, objective and measure."""


class _Pair(NamedTuple):
    """Scores of an objective and what they are compared with."""

    setting: Setting
    objective: str
    measure: Measure
    reference: Scores
    scores: Scores

    @property
    def key(self) -> tuple[Setting, str, Measure]:
        return self.setting, self.objective, self.measure


def _compare_pairs(pairs: Iterable[_Pair]) -> Comparisons:
    """Compare each pair; those that share no item are left out."""
    comparisons = {
        pair.key: compare_pair(
            pair.reference, pair.scores, higher_is_better=pair.measure.higher_is_better
        )
        for pair in pairs
    }
    return {key: comparison for key, comparison in comparisons.items() if comparison is not None}


def compare_all(columns: Columns, baseline: str) -> Comparisons:
    """Compare every objective with the baseline on every measure, and correct p for all pairs."""
    pairs = [
        _Pair(setting, name, measure, models[baseline][measure], scores)
        for setting, models in columns.items()
        for name, column in models.items()
        for measure, scores in column.items()
        if name != baseline and measure in models.get(baseline, {})
    ]
    comparisons = _compare_pairs(pairs)
    adjusted = statistics.holm([comparison.p_value for comparison in comparisons.values()])
    return {
        key: replace(comparison, adjusted_p=p)
        for (key, comparison), p in zip(comparisons.items(), adjusted, strict=True)
    }


def gains_over_base(columns: Columns, bases: Mapping[Setting, Column]) -> Comparisons:
    """Compare every objective with the base model on every measure; nothing is tested."""
    pairs = [
        _Pair(setting, name, measure, bases[setting][measure], scores)
        for setting, models in columns.items()
        for name, column in models.items()
        for measure, scores in column.items()
        if measure in bases[setting]
    ]
    return _compare_pairs(pairs)


def all_intervals(
    columns: Mapping[Setting, Mapping[str, Column]],
) -> dict[tuple[Setting, str, Measure], Interval]:
    """Compute the 95 % interval of every model on every measure."""
    return {
        (setting, name, measure): scores.interval()
        for setting, models in columns.items()
        for name, column in models.items()
        for measure, scores in column.items()
    }
