"""The tables of `deft compare`, which fit a terminal of 80 columns."""

from __future__ import annotations

import math
from itertools import groupby

from deft.evaluators.scores.comparison import LEVEL
from deft.evaluators.scores.statistics import MIN_RUNS
from deft.platform.commands.compare import RATES, ComparedModel, RunComparison
from deft.platform.console import RunConsole

MAX_DECIMALS = 8


def show_comparison(comparison: RunComparison, console: RunConsole) -> None:
    """Print a table for each benchmark, two lines for each model, and how to read them."""
    for (benchmark, metric), group in groupby(
        comparison.rows, key=lambda row: (row.benchmark, row.metric)
    ):
        rows = list(group)
        console.table(
            f"{benchmark}, {metric} ({rows[0].num_items} items)",
            ["", f"{metric}\n95 %", "− first\n95 %", "p (Holm)\nfound from"],
            [_entries(row) for row in rows],
        )
        rates = [name for name in RATES if any(_rate(row, name) for row in rows)]
        if rates:
            console.table(
                f"{benchmark}: share of responses",
                ["", *rates],
                [[row.run, *(_share(_rate(row, name)) for name in rates)] for row in rows],
            )
    console.print(
        f"differences to {comparison.first} over the items that both have; p from McNemar's exact "
        "test for one right or wrong response an item, else from the paired t test; corrected for "
        f"{comparison.num_comparisons} comparisons (Holm); told from noise below {LEVEL}, "
        "≈ not distinguishable; "
        "'found from': the true difference that is found with a chance of 80 %"
    )
    for warning in comparison.warnings:
        console.print(f"warning: {warning}")
    console.print(
        "seeds are ignored: intervals and p are over items only, so a difference is one between "
        "these models, be it from the objective or from the seed; `deft report` of a sweep with "
        f"{MIN_RUNS} seeds or more tells them apart"
    )


def _entries(row: ComparedModel) -> list[str]:
    digits = decimals(row.ci_high - row.ci_low)
    score = f"{row.value:.{digits}f}\n[{row.ci_low:.{digits}f}, {row.ci_high:.{digits}f}]"
    if row.difference is None:
        return [row.run, score, "", ""]
    low, high = row.difference_ci_low, row.difference_ci_high
    assert low is not None
    assert high is not None
    assert row.adjusted_p is not None
    assert row.detectable is not None
    digits = decimals(high - low, row.difference)
    conclusion = "≈" if row.conclusion == "not distinguishable" else row.conclusion
    p = "< 0.0001" if row.adjusted_p < 1e-4 else f"{row.adjusted_p:.4f}"
    return [
        row.run,
        score,
        f"{row.difference:+.{digits}f}\n[{low:+.{digits}f}, {high:+.{digits}f}]",
        f"{p} {conclusion}\n{row.detectable:.{digits}f}",
    ]


def decimals(width: float, value: float = 0.0) -> int:
    """Return how many decimals to print of a value with an interval of this width: 3, or more.

    The interval gets two significant digits; a value without one gets two of its own.
    """
    scale = width if width > 0 else abs(value)
    if not 0 < scale < math.inf:
        return 3
    return min(max(3, 1 - math.floor(math.log10(scale))), MAX_DECIMALS)


def _rate(row: ComparedModel, name: str) -> float | None:
    rate: float | None = getattr(row, name.replace(" ", "_"))
    return rate


def _share(rate: float | None) -> str:
    return "" if rate is None else f"{rate:.3f}"
