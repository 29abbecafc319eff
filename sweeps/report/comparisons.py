"""Which differences between the objectives of a sweep are more than noise.

Shapes as in `deft.sweeps.report.scores`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
    )


def _seeds(scores: Scores, seeds: Sequence[int]) -> Scores:
    rows = [scores.seeds.index(seed) for seed in seeds]
    return replace(scores, seeds=tuple(seeds), values=scores.values[rows])


def _averaged(scores: Scores) -> Scores:
    return replace(scores, seeds=(), values=scores.values.mean(0, keepdims=True), single=False)


def _spread(scores: Scores, rows: int) -> Scores:
    return replace(scores, values=np.broadcast_to(scores.values, (rows, len(scores.ids))))


def contrast(
    first: Scores, second: Scores, *, higher_is_better: bool, resamples: int
) -> Contrast | None:
    """``second`` − ``first`` over what both have; None if they share no item.

    The interval and the p-value are those of the hierarchical bootstrap over seeds and items; with
    one seed and one right or wrong response an item, p is that of McNemar's exact test. The minimum
    detectable effect adds the variances over items and over seeds.
    """
    first, second = paired(first, second)
    if not first.ids:
        return None
    found = statistics.paired_difference(
        first.values, second.values, weights=first.weights, resamples=resamples
    )
    p_value, detectable = found.p_value, found.detectable
    num_runs = len(first.values)
    if num_runs == 1 and first.single and second.single:
        p_value = statistics.mcnemar(first.values[0] > 0.5, second.values[0] > 0.5)
    if num_runs > 1:
        over_seeds = statistics.detectable_effect(second.by_run - first.by_run)
        detectable = math.hypot(detectable, over_seeds)
    return Contrast(
        difference=found.mean,
        interval=found.interval,
        p_value=p_value,
        detectable=detectable,
        num_seeds=num_runs,
        num_items=found.num_items,
        better=(found.mean > 0) == higher_is_better,
    )


Columns = Mapping[Setting, Mapping[str, Column]]
"""What every objective scores in every setting."""
Contrasts = dict[tuple[Setting, str, Measure], Contrast]


def shape(scores: Scores) -> tuple[int, int]:
    """Numbers of items and runs: the bootstrap is fastest if equal ones follow each other."""
    return scores.values.shape[::-1]


def compare_all(columns: Columns, baseline: str) -> Contrasts:
    """Every objective against the baseline on every measure, with p corrected for all of them."""
    pairs = [
        (setting, name, measure, found[baseline][measure], scores)
        for setting, found in columns.items()
        for name, column in found.items()
        for measure, scores in column.items()
        if name != baseline and measure in found.get(baseline, {})
    ]
    resamples = num_resamples(len(pairs))
    tested = {
        (setting, name, measure): found
        for setting, name, measure, first, second in sorted(pairs, key=lambda p: shape(p[4]))
        if (
            found := contrast(
                first, second, higher_is_better=measure.higher_is_better, resamples=resamples
            )
        )
        is not None
    }
    adjusted = statistics.holm([found.p_value for found in tested.values()])
    return {
        key: replace(found, adjusted_p=p)
        for (key, found), p in zip(tested.items(), adjusted, strict=True)
    }


def num_resamples(num_comparisons: int) -> int:
    """Enough for the smallest p, 1 / (resamples + 1), to survive Holm's correction with room."""
    return max(statistics.RESAMPLES, round(2 * num_comparisons / LEVEL))


def gains_over_base(columns: Columns, bases: Mapping[Setting, Column]) -> Contrasts:
    """Every objective against the base model on every measure; nothing is tested."""
    pairs = [
        (setting, name, measure, bases[setting][measure], scores)
        for setting, found in columns.items()
        for name, column in found.items()
        for measure, scores in column.items()
        if measure in bases[setting]
    ]
    return {
        (setting, name, measure): found
        for setting, name, measure, first, second in sorted(pairs, key=lambda p: shape(p[4]))
        if (
            found := contrast(
                first,
                second,
                higher_is_better=measure.higher_is_better,
                resamples=statistics.RESAMPLES,
            )
        )
        is not None
    }


def all_intervals(
    columns: Mapping[Setting, Mapping[str, Column]],
) -> dict[tuple[Setting, str, Measure], Interval]:
    """The 95 % interval of every model on every measure."""
    found = [
        (setting, name, measure, scores)
        for setting, models in columns.items()
        for name, column in models.items()
        for measure, scores in column.items()
    ]
    return {
        (setting, name, measure): scores.interval()
        for setting, name, measure, scores in sorted(found, key=lambda item: shape(item[3]))
    }
