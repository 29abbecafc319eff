"""Which differences between the objectives of a sweep are more than noise.

Shapes as in `deft.sweeps.report.scores`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from deft.evaluators.scores import statistics
from deft.evaluators.scores.comparison import LEVEL
from deft.evaluators.scores.statistics import Interval
from deft.sweeps.report.read_sweep import Setting
from deft.sweeps.report.scores import Column, Measure, Scores

Verdict = Literal["better", "worse", "not distinguishable"]


@dataclass(frozen=True)
class Contrast:
    """How two models differ on a measure, paired over what both have."""

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
    """Whether the difference is in the direction that is wanted."""

    @property
    def verdict(self) -> Verdict:
        if not self.adjusted_p < LEVEL:
            return "not distinguishable"
        return "better" if self.better else "worse"


@dataclass(frozen=True)
class Results:
    """Everything measured in one setting."""

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
    contrasts: Mapping[tuple[str, Measure], Contrast]
    """Objectives against the baseline, see `compare_all`."""
    gains: Mapping[tuple[str, Measure], Contrast]
    """Objectives against the base model, not tested."""

    @property
    def primary(self) -> Measure | None:
        return self.measures[0] if self.measures else None

    def ranking(self, measure: Measure) -> list[str]:
        """Objectives from best to worst."""
        found = [name for name, column in self.objectives.items() if measure in column]
        sign = -1 if measure.higher_is_better else 1
        return sorted(found, key=lambda name: sign * self.objectives[name][measure].mean)


def paired(first: Scores, second: Scores) -> tuple[Scores, Scores]:
    """What both have: the same items, and the same seeds if they share any.

    What belongs to no seed, such as a base model, stands beside every seed of the other. Without a
    common seed, means over seeds are compared.
    """
    place = {id: i for i, id in enumerate(second.ids)}
    mine = [i for i, id in enumerate(first.ids) if id in place]
    theirs = [place[first.ids[i]] for i in mine]
    first, second = _items(first, mine), _items(second, theirs)
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


def contrast(first: Scores, second: Scores, *, higher_is_better: bool) -> Contrast | None:
    """Compare ``second`` with ``first`` over what both have; None if they share no item.

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
    return Contrast(
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
"""What every objective scores in every setting."""
Contrasts = dict[tuple[Setting, str, Measure], Contrast]


def compare_all(columns: Columns, baseline: str) -> Contrasts:
    """Every objective against the baseline on every measure, with p corrected for all of them."""
    tested = _contrasts(
        (setting, name, measure, models[baseline][measure], scores)
        for setting, models in columns.items()
        for name, column in models.items()
        for measure, scores in column.items()
        if name != baseline and measure in models.get(baseline, {})
    )
    adjusted = statistics.holm([found.p_value for found in tested.values()])
    return {
        key: replace(found, adjusted_p=p)
        for (key, found), p in zip(tested.items(), adjusted, strict=True)
    }


def gains_over_base(columns: Columns, bases: Mapping[Setting, Column]) -> Contrasts:
    """Every objective against the base model on every measure; nothing is tested."""
    return _contrasts(
        (setting, name, measure, bases[setting][measure], scores)
        for setting, models in columns.items()
        for name, column in models.items()
        for measure, scores in column.items()
        if measure in bases[setting]
    )


def _contrasts(pairs: Iterable[tuple[Setting, str, Measure, Scores, Scores]]) -> Contrasts:
    """Compare the last two of each tuple; pairs that share no item are left out."""
    contrasts = {
        (setting, name, measure): contrast(first, second, higher_is_better=measure.higher_is_better)
        for setting, name, measure, first, second in pairs
    }
    return {key: found for key, found in contrasts.items() if found is not None}


def all_intervals(
    columns: Mapping[Setting, Mapping[str, Column]],
) -> dict[tuple[Setting, str, Measure], Interval]:
    """The 95 % interval of every model on every measure."""
    return {
        (setting, name, measure): scores.interval()
        for setting, models in columns.items()
        for name, column in models.items()
        for measure, scores in column.items()
    }
