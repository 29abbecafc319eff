"""What the objectives of a sweep score, item by item, and which differences are more than noise.

Shapes: R runs of one objective that differ in their seed, I items of a benchmark.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from deft.evaluators import statistics
from deft.evaluators.comparison import LEVEL, Measured, read_heldout, read_predictions
from deft.evaluators.spec import GENERAL, HELDOUT
from deft.evaluators.statistics import Floats, Interval
from deft.sweeps.results import Cell, Setting, heldout_table

Verdict = Literal["better", "worse", "not distinguishable"]


class Measure(NamedTuple):
    """One number that objectives are compared by."""

    benchmark: str
    title: str
    """With the metric, as in `deft compare`."""
    higher_is_better: bool = True


MEAN = "mean"
"""The benchmark name of the mean over benchmarks."""


@dataclass(frozen=True)
class Scores:
    """Values of one measure over seeds and items."""

    seeds: tuple[int, ...]
    """Of the runs; empty if the values belong to no seed or to several."""
    ids: tuple[str, ...]
    """Of the items."""
    values: Floats
    """[R, I]."""
    weights: Floats
    """Of the items, [I]."""
    single: bool
    """Whether a value says of one response that it is right or wrong."""
    rates: Mapping[str, float]
    """Shares of responses, means over runs: truncated, no EOS, no answer, grader error."""

    @property
    def by_run(self) -> Floats:
        """The value of each run, [R]."""
        return np.asarray((self.values * self.weights).sum(1) / self.weights.sum())

    @property
    def mean(self) -> float:
        return float(self.by_run.mean())

    def interval(self) -> Interval:
        return statistics.bootstrap_interval(self.values, weights=self.weights)


Column = dict[Measure, Scores]
"""What one model scores, by measure."""


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


def read_column(cells: Sequence[Cell], label: str) -> Column:
    """What the models of ``cells`` called ``label`` (``base`` or ``eval``) score, over seeds.

    Only values are kept of the tables of predictions, one table at a time.

    Raises:
        FileNotFoundError: a table is gone.
    """
    runs: dict[Measure, list[tuple[int, str, Measured]]] = {}
    for cell in cells:
        manifest = cell.manifest("evaluate")
        for name in manifest["results"].get(label, {}):
            path, measure, headline = _table(manifest, label, name)
            file = cell.directory / path
            found = read_heldout(file) if name == HELDOUT else read_predictions(file, headline)
            runs.setdefault(measure, []).append((cell.seed, manifest["models"][label], found))
    column = {measure: _stack(measure, found) for measure, found in runs.items()}
    domain = [measure for measure in column if measure in domain_measures(column)]
    if len(domain) > 1:
        title = f"mean over {len(domain)} benchmarks"
        column[Measure(MEAN, title)] = mean_over_benchmarks([column[m] for m in domain])
    return column


def _table(
    manifest: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float | str]]]],
    label: str,
    name: str,
) -> tuple[str, Measure, str]:
    if name == HELDOUT:
        measure = Measure(HELDOUT, "held out, bits per byte", higher_is_better=False)
        return heldout_table(label), measure, ""
    table = manifest["tables"][label][name]
    headline = str(table["headline"])
    samples = int(manifest["results"][label][name]["num_samples"])
    metric = f"avg@{samples}" if headline == "avg" else headline
    return str(table["path"]), Measure(name, f"{name}, {metric}"), headline


def domain_measures(measures: Iterable[Measure]) -> list[Measure]:
    """The benchmarks that were named; `general` stands beside them, unless it is the only one."""
    found = [m for m in measures if m.benchmark not in (HELDOUT, MEAN)]
    return [m for m in found if m.benchmark != GENERAL] or found


def in_order(measures: Iterable[Measure]) -> list[Measure]:
    """The primary measure first: the mean over benchmarks, or the only one, or held-out loss."""
    found = dict.fromkeys(measures)
    domain = domain_measures(found)
    means = [m for m in found if m.benchmark == MEAN]
    rest = [m for m in found if m not in (*means, *domain)]
    return [*means, *domain, *sorted(rest, key=lambda m: m.benchmark == HELDOUT)]


def _stack(measure: Measure, runs: Sequence[tuple[int, str, Measured]]) -> Scores:
    """Runs on the same items as one array [R, I].

    Held-out rows are drawn by the seed: where they differ they are pooled, [1, I], as each seed has
    items of its own. A base model that all seeds share counts once.
    """
    seeds = tuple(seed for seed, _, _ in runs)
    found = [measured for _, _, measured in runs]
    rates = {
        name: float(np.mean([measured.rates[name] for measured in found]))
        for name in found[0].rates
    }
    same_items = all(measured.ids == found[0].ids for measured in found)
    if measure.benchmark == HELDOUT and not same_items:
        return Scores(
            seeds=(),
            ids=tuple(f"{seed}/{id}" for seed, _, measured in runs for id in measured.ids),
            values=np.concatenate([measured.values for measured in found])[None],
            weights=np.concatenate([measured.weights for measured in found]),
            single=False,
            rates=rates,
        )
    if len({model for _, model, _ in runs}) == 1 and same_items and len(runs) > 1:
        seeds, found = (), found[:1]
    shared = set(found[0].ids).intersection(*(measured.ids for measured in found))
    ids = tuple(id for id in found[0].ids if id in shared)
    rows = [[{id: i for i, id in enumerate(m.ids)}[id] for id in ids] for m in found]
    return Scores(
        seeds=seeds,
        ids=ids,
        values=np.stack([m.values[row] for m, row in zip(found, rows, strict=True)]),
        weights=found[0].weights[rows[0]],
        single=all(measured.single is not None for measured in found),
        rates=rates,
    )


def mean_over_benchmarks(parts: Sequence[Scores]) -> Scores:
    """The plain mean over benchmarks as one set of items, so that it is resampled like one.

    Every benchmark weighs the same, however many items it has. Values are moved so that the mean of
    each benchmark is the overall one: how often a benchmark is drawn must not move the mean, as its
    part in it is fixed. The mean of every run stays what it is.
    """
    means = [part.mean for part in parts]
    overall = float(np.mean(means))
    num_runs = max(len(part.values) for part in parts)
    return Scores(
        seeds=next((part.seeds for part in parts if part.seeds), ()),
        ids=tuple(f"{number}/{id}" for number, part in enumerate(parts) for id in part.ids),
        values=np.concatenate(
            [
                np.broadcast_to(part.values - mean + overall, (num_runs, len(part.ids)))
                for part, mean in zip(parts, means, strict=True)
            ],
            axis=1,
        ),
        weights=np.concatenate([part.weights / part.weights.sum() for part in parts]),
        single=False,
        rates={},
    )


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
