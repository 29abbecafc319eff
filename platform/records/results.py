"""Results as a long table: one row for each run, model, benchmark and metric."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TextIO

from pydantic import BaseModel, ConfigDict

from deft.platform.records.manifests import EvaluateManifest, ModelResult, require_manifest
from deft.workers.common.files import reading, write_atomic

if TYPE_CHECKING:
    import pyarrow as pa

MEAN = "mean"
"""The benchmark name of the means over benchmarks."""

Which = Literal["base", "trained"]

BOUNDS = ("stderr", "ci_low", "ci_high")
"""Suffixes of the metrics that say how exact another one is."""


class Row(BaseModel):
    """One row of a table; NaN and infinity become null in JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class MetricRow(Row):
    """What one model scored by one metric of one benchmark."""

    which: Which
    """The model that training started from, or the trained one; `deft evaluate` trains none."""
    benchmark: str
    """Its name; `heldout` for held-out examples, `mean` for the mean over benchmarks."""
    metric: str
    value: float
    stderr: float | None = None
    """Standard error over items."""
    ci_low: float | None = None
    """Lower end of the 95 % interval."""
    ci_high: float | None = None


class RunResults(Row):
    """What a finished run or evaluation measured."""

    run: str
    """Name of its directory."""
    directory: Path
    """Where everything of the run lies."""
    results: list[MetricRow]
    """A row for each model, benchmark and metric."""

    def table(self) -> pa.Table:
        """Return the results as a table; `to_pandas` makes a data frame of it."""
        return to_table([{"run": self.run, **row.model_dump()} for row in self.results])


class MainMetric(NamedTuple):
    """The metric that models are compared by on one benchmark, before and after training."""

    benchmark: str
    name: str
    """As people write it."""
    key: str
    """As ``before`` and ``after`` have it."""
    before: Mapping[str, float]
    """Metrics of the base model; empty if it was not evaluated."""
    after: Mapping[str, float]


def main_metrics(models: Mapping[str, ModelResult]) -> Iterator[MainMetric]:
    """Yield the main metric of every benchmark; ``models`` as in `EvaluateManifest`."""
    base = models.get("base")
    for name, result in models["eval"].benchmarks.items():
        before = base.benchmarks[name].metrics if base and name in base.benchmarks else {}
        metric, key = result.primary_metric_name, result.primary_key
        yield MainMetric(name, metric, key, before, result.metrics)


def metric_rows(models: Mapping[str, ModelResult]) -> list[MetricRow]:
    """List what every model of an evaluation scored; ``models`` as in `EvaluateManifest`."""
    rows: list[MetricRow] = []
    for label, model in models.items():
        which: Which = "base" if label == "base" else "trained"
        for benchmark, metrics in model.metrics.items():
            rows += _rows(which, benchmark, metrics)
        rows += _rows(which, MEAN, model.means)
    return rows


def results_of(run: Path) -> RunResults:
    """Read what the run or evaluation in directory ``run`` measured.

    Raises:
        UserError: its evaluation has not finished, or its result cannot be read.
    """
    models = require_manifest(run, EvaluateManifest).models
    return RunResults(run=run.resolve().name, directory=run, results=metric_rows(models))


def described_rows(run: Path) -> list[dict[str, Any]]:
    """List what a run measured, each row with its dataset, model, objective and seed.

    These are null for what `deft evaluate` does not have.

    Raises:
        UserError: its evaluation has not finished, or a file of it cannot be read.
    """
    results = results_of(run)
    with reading(run / "spec.json", "run the command of this run again"):
        spec = json.loads((run / "spec.json").read_text(encoding="utf-8"))
        about = {
            "run": results.run,
            "dataset": spec["dataset"]["name"] if "dataset" in spec else None,
            "model": spec["model"]["name"],
            "objective": spec.get("objective"),
            "seed": spec.get("seed"),
        }
    return [{**about, **row.model_dump()} for row in results.results]


def _rows(which: Which, benchmark: str, metrics: Mapping[str, float]) -> Iterator[MetricRow]:
    for name, value in metrics.items():
        if not is_bound(name):
            bounds = {suffix: metrics.get(f"{name}_{suffix}") for suffix in BOUNDS}
            yield MetricRow(which=which, benchmark=benchmark, metric=name, value=value, **bounds)


def is_bound(metric: str) -> bool:
    """Tell whether a metric says how exact another one is."""
    return metric.endswith(tuple(f"_{suffix}" for suffix in BOUNDS))


def write_csv(rows: Sequence[Mapping[str, Any]], file: TextIO) -> None:
    """Write rows under a line of their columns, the first row's before those of later ones."""
    writer = csv.DictWriter(file, columns_of(rows), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def save_csv(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows to a file, see `write_csv`; it appears whole or not at all."""
    text = StringIO(newline="")
    write_csv(rows, text)
    write_atomic(path, text.getvalue())


def to_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Make a table of rows; what a row lacks is null."""
    import pyarrow as pa

    return pa.table({name: [row.get(name) for row in rows] for name in columns_of(rows)})


def columns_of(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the columns that any of the rows has, in order of appearance."""
    return list(dict.fromkeys(column for row in rows for column in row))


def with_interval(metrics: Mapping[str, float], name: str) -> str:
    """Format a metric and its 95 % interval; empty if it was not measured."""
    if name not in metrics:
        return ""
    if name.startswith("num_"):
        return f"{metrics[name]:.0f}"
    low, high = metrics.get(f"{name}_ci_low"), metrics.get(f"{name}_ci_high")
    interval = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
    return f"{metrics[name]:.3f}{interval}"
