"""`deft compare`: runs side by side, and which of their differences are more than noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deft.evaluators.scores.comparison import (
    LEVEL,
    Comparison,
    Measured,
    compare,
    different_conditions,
    read_heldout,
    read_predictions,
)
from deft.evaluators.scores.statistics import MIN_RUNS
from deft.evaluators.spec import HELDOUT, heldout_table
from deft.platform.console import RunConsole
from deft.platform.errors import UserError
from deft.platform.records.run_directory import manifest_file, read_manifest

COLUMNS = ("run", "value", "95 %", "− first", "95 %", "p (Holm)", "", "found from")
RATES = ("truncated", "no answer", "grader error", "prompt too long")


def find_run(name: str, root: Path) -> Path:
    """The directory of a run: a path, its name in ``root``, or the beginning of that name.

    Raises:
        UserError: there is no such run, or its evaluation is not finished.
    """
    starting = sorted(path for path in root.glob(f"{name}*") if path.is_dir()) if name else []
    found = [path for path in (Path(name), root / name) if (path / "spec.json").is_file()]
    if not found and len(starting) > 1:
        raise UserError(f"{name}: several runs start so: {', '.join(p.name for p in starting)}")
    found = found or [path for path in starting if (path / "spec.json").is_file()]
    if not found:
        raise UserError(f"{name}: there is no such run, neither here nor in {root}")
    if not manifest_file(found[0], "evaluate").is_file():
        raise UserError(f"{name}: its evaluation is not finished")
    return found[0]


def compare_runs(runs: Sequence[Path], console: RunConsole) -> None:
    """Print a table for each benchmark that the first run has, a line for each run.

    The models that were trained from come last, one line each.

    Raises:
        UserError: fewer than two models are to be compared.
        ValueError: they were asked other questions, or a value is no number.
    """
    measured: dict[str, dict[str, Measured]] = {}
    bases: set[str] = set()
    labels: list[str] = []
    for run in runs:
        manifest = read_manifest(run, "evaluate")
        assert manifest is not None
        name = run.resolve().name
        _add(measured, run, "eval", name, manifest)
        labels.append(name)
        base = manifest["models"].get("base")
        if base is not None and base not in bases:
            bases.add(base)
            _add(measured, run, "base", f"base: {Path(base).name}", manifest)
    everyone = {name for found in measured.values() for name in found}
    if len(everyone) < 2:
        raise UserError("give at least two runs to compare")
    comparisons = compare(measured, labels[0])
    order = [*dict.fromkeys(labels), *sorted(everyone - set(labels))]
    for benchmark, found in measured.items():
        if labels[0] in found:
            names = [name for name in order if name in found]
            _show(benchmark, names, found, comparisons, console)
    console.say(
        f"differences to {labels[0]} over the items that both have; p from McNemar's exact test "
        "for one right or wrong response an item, else from the paired t test; corrected for "
        f"{len(comparisons)} comparisons (Holm); told from noise below {LEVEL}; "
        "'found from': the true difference that is found with a chance of 80 %"
    )
    for benchmark, name in comparisons:
        first, second = measured[benchmark][labels[0]], measured[benchmark][name]
        if different := different_conditions(first.conditions, second.conditions):
            console.say(
                f"warning: {benchmark}: {labels[0]} and {name} differ in {', '.join(different)}"
            )
    console.say(
        "seeds are ignored: intervals and p are over items only, so a difference is one between "
        "these models, be it from the objective or from the seed; `deft report` of a sweep with "
        f"{MIN_RUNS} seeds or more tells them apart"
    )


def headline_metric(manifest: Mapping[str, Any], label: str, benchmark: str) -> str:
    """What a model is compared by on a benchmark: ``avg@n`` or the name of a score.

    Args:
        manifest: of a finished evaluation.
        label: of the model.
        benchmark: its name.
    """
    headline = str(manifest["tables"][label][benchmark]["headline"])
    samples = int(manifest["results"][label][benchmark]["num_samples"])
    return f"avg@{samples}" if headline == "avg" else headline


def _add(
    measured: dict[str, dict[str, Measured]],
    run: Path,
    label: str,
    name: str,
    manifest: dict[str, Any],
) -> None:
    for benchmark in manifest["results"].get(label, {}):
        if benchmark == HELDOUT:
            path = run / heldout_table(label)
            measured.setdefault(f"{benchmark}, bits per byte", {})[name] = read_heldout(path)
            continue
        table = manifest["tables"][label][benchmark]
        title = f"{benchmark}, {headline_metric(manifest, label, benchmark)}"
        found = read_predictions(run / table["path"], table["headline"])
        measured.setdefault(title, {})[name] = found


def _show(
    benchmark: str,
    names: Sequence[str],
    measured: dict[str, Measured],
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
    verdict = "not distinguishable"
    if comparison.distinguishable:
        verdict = "higher" if difference.mean > 0 else "lower"
    return [
        f"{difference.mean:+.3f}",
        _interval(*difference.interval),
        "< 0.0001" if comparison.adjusted_p < 1e-4 else f"{comparison.adjusted_p:.4f}",
        verdict,
        f"{difference.detectable:.3f}",
    ]


def _interval(low: float, high: float) -> str:
    return f"{low:.3f} … {high:.3f}"
