"""`deft compare`: runs side by side, with the significance of their differences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deft.evaluators.scores.comparison import (
    LEVEL,
    Comparison,
    ItemScores,
    compare,
    different_conditions,
    read_heldout,
    read_predictions,
)
from deft.evaluators.scores.statistics import MIN_RUNS
from deft.evaluators.spec import HELDOUT, heldout_table
from deft.platform.console import RunConsole
from deft.platform.errors import UserError
from deft.platform.records.manifests import (
    EvaluateManifest,
    ModelResult,
    require_manifest,
)

COLUMNS = ("run", "value", "95 %", "− first", "95 %", "p (Holm)", "", "found from")
RATES = ("truncated", "no answer", "grader error", "prompt too long")


def compare_runs(runs: Sequence[Path], console: RunConsole) -> None:
    """Print a table for each benchmark that the first run has, a line for each run.

    The models that were trained from come last, one line each.

    Raises:
        UserError: fewer than two models are to be compared.
        ValueError: they were asked other questions, or a value is no number.
    """
    measured: dict[str, dict[str, ItemScores]] = {}
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
        raise UserError("give at least two runs to compare")
    comparisons = compare(measured, labels[0])
    order = [*dict.fromkeys(labels), *sorted(everyone - set(labels))]
    for benchmark, models in measured.items():
        if labels[0] in models:
            names = [name for name in order if name in models]
            _show(benchmark, names, models, comparisons, console)
    console.print(
        f"differences to {labels[0]} over the items that both have; p from McNemar's exact test "
        "for one right or wrong response an item, else from the paired t test; corrected for "
        f"{len(comparisons)} comparisons (Holm); told from noise below {LEVEL}; "
        "'found from': the true difference that is found with a chance of 80 %"
    )
    for benchmark, name in comparisons:
        first, second = measured[benchmark][labels[0]], measured[benchmark][name]
        if different := different_conditions(first.conditions, second.conditions):
            console.print(
                f"warning: {benchmark}: {labels[0]} and {name} differ in {', '.join(different)}"
            )
    console.print(
        "seeds are ignored: intervals and p are over items only, so a difference is one between "
        "these models, be it from the objective or from the seed; `deft report` of a sweep with "
        f"{MIN_RUNS} seeds or more tells them apart"
    )


def _add(
    measured: dict[str, dict[str, ItemScores]],
    run: Path,
    label: str,
    name: str,
    model: ModelResult,
) -> None:
    if model.heldout:
        scores = read_heldout(run / heldout_table(label))
        measured.setdefault(f"{HELDOUT}, bits per byte", {})[name] = scores
    for benchmark, result in model.benchmarks.items():
        title = f"{benchmark}, {result.primary_metric_name}"
        scores = read_predictions(run / result.predictions, result.primary_metric)
        measured.setdefault(title, {})[name] = scores


def _show(
    benchmark: str,
    names: Sequence[str],
    measured: dict[str, ItemScores],
    comparisons: dict[tuple[str, str], Comparison],
    console: RunConsole,
) -> None:
    rates = [rate for rate in RATES if any(measured[name].rates for name in names)]
    rows = []
    for name in names:
        run = measured[name]
        row = [name, f"{run.mean():.3f}", _interval(*run.interval())]
        row += _difference(comparisons.get((benchmark, name)))
        rows.append([*row, *(f"{run.rates[rate]:.3f}" for rate in rates)])
    items = len(measured[names[0]].ids)
    console.table(f"{benchmark} ({items} items)", [*COLUMNS, *rates], rows)


def _difference(comparison: Comparison | None) -> list[str]:
    if comparison is None:
        return [""] * 5
    difference = comparison.difference
    conclusion = "not distinguishable"
    if comparison.distinguishable:
        conclusion = "higher" if difference.mean > 0 else "lower"
    return [
        f"{difference.mean:+.3f}",
        _interval(*difference.interval),
        "< 0.0001" if comparison.adjusted_p < 1e-4 else f"{comparison.adjusted_p:.4f}",
        conclusion,
        f"{difference.detectable:.3f}",
    ]


def _interval(low: float, high: float) -> str:
    return f"{low:.3f} … {high:.3f}"
