"""Scores of a sweep's objectives, item by item.

Shapes: R runs of one objective that differ in their seed, I items of a benchmark.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deft.evaluators.scores import statistics
from deft.evaluators.scores.comparison import ItemScores, read_heldout, read_predictions
from deft.evaluators.scores.statistics import Floats, Interval
from deft.evaluators.spec import GENERAL_BENCHMARK, HELDOUT, heldout_table
from deft.platform.records.manifests import EvaluateManifest, ModelResult
from deft.sweeps.report.read_sweep import CellResult


class Measure(NamedTuple):
    """A number that objectives are compared by."""

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
    """Whether each value is one right or wrong response."""
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
        """Value of each run, [R]."""
        return np.asarray((self.values * self.weights).sum(1) / self.weights.sum())

    @property
    def mean(self) -> float:
        """Mean over runs."""
        return float(self.by_run.mean())

    def interval(self) -> Interval:
        """Compute the 95 % interval of `mean` over runs and items."""
        return statistics.mean_interval(self.values, weights=self.weights, groups=self.groups)


Column = dict[Measure, Scores]
"""Scores of one model by measure."""


def read_column(cells: Sequence[CellResult], label: str) -> Column:
    """Read the scores of the models of ``cells`` called ``label`` (``base`` or ``eval``).

    Tables of predictions are read one at a time, and only values are kept.

    Raises:
        FileNotFoundError: a table is gone.
    """
    runs: dict[Measure, list[tuple[int, str, ItemScores]]] = {}
    for cell in cells:
        model = cell.require_manifest(EvaluateManifest).models.get(label)
        if model is not None:
            for measure, scores in _read_scores(cell.directory, label, model):
                runs.setdefault(measure, []).append((cell.seed, model.directory, scores))
    column = {measure: _stack(measure, scores) for measure, scores in runs.items()}
    domain = [measure for measure in column if measure in domain_measures(column)]
    if len(domain) > 1:
        title = f"mean over {len(domain)} benchmarks"
        column[Measure(MEAN, title)] = pool_benchmarks([column[m] for m in domain])
    return column


def _read_scores(run: Path, label: str, model: ModelResult) -> Iterator[tuple[Measure, ItemScores]]:
    """Read the tables of one model, held-out examples first."""
    if model.heldout:
        measure = Measure(HELDOUT, "held out, bits per byte", higher_is_better=False)
        yield measure, read_heldout(run / heldout_table(label))
    for name, result in model.benchmarks.items():
        scores = read_predictions(run / result.predictions, result.primary_metric)
        yield Measure(name, f"{name}, {result.primary_metric_name}"), scores


def domain_measures(measures: Iterable[Measure]) -> list[Measure]:
    """Select the benchmarks of the domain: all but `general`, unless it is the only one."""
    benchmarks = [m for m in measures if m.benchmark not in (HELDOUT, MEAN)]
    return [m for m in benchmarks if m.benchmark != GENERAL_BENCHMARK] or benchmarks


def in_order(measures: Iterable[Measure]) -> list[Measure]:
    """Sort measures, the primary one first: the mean, or the only benchmark, or held-out loss."""
    distinct = dict.fromkeys(measures)
    domain = domain_measures(distinct)
    means = [m for m in distinct if m.benchmark == MEAN]
    rest = [m for m in distinct if m not in (*means, *domain)]
    return [*means, *domain, *sorted(rest, key=lambda m: m.benchmark == HELDOUT)]


def _stack(measure: Measure, runs: Sequence[tuple[int, str, ItemScores]]) -> Scores:
    """Stack runs on the same items to one array [R, I].

    Held-out rows are drawn by the seed: where they differ they are pooled, [1, I], as each seed has
    items of its own. A base model that all seeds share counts once.
    """
    seeds = tuple(seed for seed, _, _ in runs)
    tables = [scores for _, _, scores in runs]
    rates = {
        name: float(np.mean([scores.rates[name] for scores in tables])) for name in tables[0].rates
    }
    same_items = all(scores.ids == tables[0].ids for scores in tables)
    if measure.benchmark == HELDOUT and not same_items:
        return Scores(
            seeds=(),
            ids=tuple(f"{seed}/{item}" for seed, _, scores in runs for item in scores.ids),
            values=np.concatenate([scores.values for scores in tables])[None],
            weights=np.concatenate([scores.weights for scores in tables]),
            single=False,
            rates=rates,
            groups=np.repeat(np.arange(len(runs)), [len(scores.ids) for _, _, scores in runs]),
        )
    if len({model for _, model, _ in runs}) == 1 and same_items and len(runs) > 1:
        seeds, tables = (), tables[:1]
    shared = set(tables[0].ids).intersection(*(scores.ids for scores in tables))
    ids = tuple(item for item in tables[0].ids if item in shared)
    rows = [[{item: i for i, item in enumerate(t.ids)}[item] for item in ids] for t in tables]
    return Scores(
        seeds=seeds,
        ids=ids,
        values=np.stack([t.values[row] for t, row in zip(tables, rows, strict=True)]),
        weights=tables[0].weights[rows[0]],
        single=all(scores.single is not None for scores in tables),
        rates=rates,
    )


def pool_benchmarks(parts: Sequence[Scores]) -> Scores:
    """Combine benchmarks to one set of items whose mean is the plain mean over benchmarks.

    Every benchmark weighs the same, however many items it has. Values are moved so that the mean of
    each benchmark is the overall one: how far benchmarks are apart is no error of the mean, as its
    part in it is fixed. The mean of every run stays what it is.
    """
    means = [part.mean for part in parts]
    overall = float(np.mean(means))
    num_runs = max(len(part.values) for part in parts)
    return Scores(
        seeds=next((part.seeds for part in parts if part.seeds), ()),
        ids=tuple(f"{number}/{item}" for number, part in enumerate(parts) for item in part.ids),
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
