"""What the objectives of a sweep score, item by item.

Shapes: R runs of one objective that differ in their seed, I items of a benchmark.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deft.evaluators.scores import statistics
from deft.evaluators.scores.comparison import Measured, read_heldout, read_predictions
from deft.evaluators.scores.statistics import Floats, Interval
from deft.evaluators.spec import GENERAL, HELDOUT, heldout_table
from deft.platform.commands.compare import headline_metric
from deft.sweeps.report.read_sweep import Cell


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
    """Shares of responses, means over runs: truncated, no answer, grader error, prompt too long."""
    groups: NDArray[np.int64] | None = None
    """Number of each item's seed from 0, where each seed has items of its own, [I]."""

    @property
    def num_seeds(self) -> int:
        """Number of seeds that the values are of."""
        return len(self.values) if self.groups is None else len(np.unique(self.groups))

    @property
    def by_run(self) -> Floats:
        """The value of each run, [R]."""
        return np.asarray((self.values * self.weights).sum(1) / self.weights.sum())

    @property
    def mean(self) -> float:
        return float(self.by_run.mean())

    def interval(self) -> Interval:
        """Compute the 95 % interval of `mean` over runs and items."""
        return statistics.mean_interval(self.values, weights=self.weights, groups=self.groups)


Column = dict[Measure, Scores]
"""What one model scores, by measure."""


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
    metric = headline_metric(manifest, label, name)
    return str(table["path"]), Measure(name, f"{name}, {metric}"), str(table["headline"])


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
            groups=np.repeat(np.arange(len(runs)), [len(scores.ids) for _, _, scores in runs]),
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
    """The plain mean over benchmarks as one set of items, so that its error is that of one.

    Every benchmark weighs the same, however many items it has. Values are moved so that the mean of
    each benchmark is the overall one: how far benchmarks are apart is no error of the mean, as its
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
