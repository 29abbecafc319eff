"""`deft compare`: runs side by side, with the significance of their differences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from deft.evaluators.scores.comparison import (
    Comparison,
    ItemScores,
    compare,
    different_conditions,
    read_heldout,
    read_predictions,
)
from deft.evaluators.spec import HELDOUT, heldout_table
from deft.platform.errors import UserError
from deft.platform.records.manifests import (
    EvaluateManifest,
    ModelResult,
    require_manifest,
)
from deft.platform.records.results import Row, to_table

if TYPE_CHECKING:
    import pyarrow as pa

RATES = ("truncated", "no answer", "grader error", "prompt too long")
"""Shares of responses, by the names of `ItemScores.rates`."""

Conclusion = Literal["higher", "lower", "not distinguishable"]


class ComparedModel(Row):
    """One model on one benchmark, compared with the first run."""

    benchmark: str
    metric: str
    """The one that models are compared by on this benchmark."""
    run: str
    """Name of the run; ``base: NAME`` for a model that a run started from."""
    num_items: int
    """Items that the model was asked."""
    value: float
    ci_low: float
    """Lower end of the 95 % interval over items."""
    ci_high: float
    difference: float | None = None
    """To the first run, over the items that both have; None for the first run itself."""
    difference_ci_low: float | None = None
    difference_ci_high: float | None = None
    p_value: float | None = None
    """McNemar's exact test for one right or wrong response an item, else the paired t test."""
    adjusted_p: float | None = None
    """Corrected for all comparisons (Holm)."""
    conclusion: Conclusion | None = None
    """Than the first run, at a corrected p below 0.05."""
    detectable: float | None = None
    """The true difference that is found with a chance of 80 %."""
    truncated: float | None = None
    """Share of responses that met the length limit."""
    no_answer: float | None = None
    grader_error: float | None = None
    prompt_too_long: float | None = None


class RunComparison(Row):
    """Runs and the models before them, benchmark by benchmark."""

    first: str
    """The run that others are compared with."""
    num_comparisons: int
    """Comparisons that p is corrected for."""
    rows: list[ComparedModel]
    """By benchmark; in it the runs as they were given, then the models before."""
    warnings: list[str]
    """What differed between evaluations, a sentence each."""

    def table(self) -> pa.Table:
        """Return the rows as a table; `to_pandas` makes a data frame of it."""
        return to_table([row.model_dump() for row in self.rows])


def compare_runs(runs: Sequence[Path]) -> RunComparison:
    """Compare runs with the first one on each benchmark that it has.

    Raises:
        UserError: fewer than two models are to be compared.
        ValueError: they were asked other questions, or a value is no number.
    """
    measured: dict[tuple[str, str], dict[str, ItemScores]] = {}
    bases: set[str] = set()
    labels: list[str] = []
    for run in runs:
        results = require_manifest(run, EvaluateManifest).models
        name = run.resolve().name
        _add(measured, run, "eval", name, results["eval"])
        labels.append(name)
        base = results.get("base")
        if base is not None and base.directory not in bases:
            bases.add(base.directory)
            _add(measured, run, "base", f"base: {Path(base.directory).name}", base)
    everyone = {name for models in measured.values() for name in models}
    if len(everyone) < 2:
        raise UserError(
            f"give at least two runs to compare; {', '.join(everyone) or 'none'} has results"
        )
    first = labels[0]
    titles = {f"{benchmark}, {metric}": (benchmark, metric) for benchmark, metric in measured}
    comparisons = compare({title: measured[key] for title, key in titles.items()}, first)
    order = [*dict.fromkeys(labels), *sorted(everyone - set(labels))]
    return RunComparison(
        first=first,
        num_comparisons=len(comparisons),
        rows=[
            _row(
                benchmark, metric, name, measured[benchmark, metric], comparisons.get((title, name))
            )
            for title, (benchmark, metric) in titles.items()
            if first in measured[benchmark, metric]
            for name in order
            if name in measured[benchmark, metric]
        ],
        warnings=[
            f"{title}: {first} and {name} differ in {', '.join(different)}"
            for title, name in comparisons
            if (
                different := different_conditions(
                    measured[titles[title]][first].conditions,
                    measured[titles[title]][name].conditions,
                )
            )
        ],
    )


def _add(
    measured: dict[tuple[str, str], dict[str, ItemScores]],
    run: Path,
    label: str,
    name: str,
    model: ModelResult,
) -> None:
    if model.heldout:
        scores = read_heldout(run / heldout_table(label))
        measured.setdefault((HELDOUT, "bits per byte"), {})[name] = scores
    for benchmark, result in model.benchmarks.items():
        scores = read_predictions(run / result.predictions, result.primary_metric)
        measured.setdefault((benchmark, result.primary_metric_name), {})[name] = scores


def _row(
    benchmark: str,
    metric: str,
    name: str,
    models: dict[str, ItemScores],
    comparison: Comparison | None,
) -> ComparedModel:
    scores = models[name]
    interval = scores.interval()
    row = ComparedModel(
        benchmark=benchmark,
        metric=metric,
        run=name,
        num_items=len(scores.ids),
        value=scores.mean(),
        ci_low=interval.low,
        ci_high=interval.high,
        truncated=scores.rates.get("truncated"),
        no_answer=scores.rates.get("no answer"),
        grader_error=scores.rates.get("grader error"),
        prompt_too_long=scores.rates.get("prompt too long"),
    )
    if comparison is None:
        return row
    difference = comparison.difference
    direction: Conclusion = "higher" if difference.mean > 0 else "lower"
    return row.model_copy(
        update={
            "difference": difference.mean,
            "difference_ci_low": difference.interval.low,
            "difference_ci_high": difference.interval.high,
            "p_value": comparison.p_value,
            "adjusted_p": comparison.adjusted_p,
            "conclusion": direction if comparison.distinguishable else "not distinguishable",
            "detectable": difference.detectable,
        }
    )
