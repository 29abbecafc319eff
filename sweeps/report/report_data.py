"""The data that a report of a sweep is written from, gathered once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from deft.objectives.figure_style import PlotStyle
from deft.sweeps.report.comparisons import (
    SettingResults,
    all_intervals,
    compare_all,
    gains_over_base,
)
from deft.sweeps.report.curves import Curve, read_curves
from deft.sweeps.report.plots import styles_for
from deft.sweeps.report.read_sweep import CellResult, Setting, Sweep
from deft.sweeps.report.scores import Column, Measure, in_order, read_column

Value = TypeVar("Value")

CURVES = (
    "validation/nll",
    "validation/bits_per_byte",
    "train/nll",
    "train/mean_gate",
    "train/mean_focus",
    "train/mean_p",
    "train/mean_entropy",
)


@dataclass(frozen=True)
class SweepReportData:
    """A sweep and the results of its finished cells."""

    sweep: Sweep
    results: Mapping[Setting, SettingResults]
    curves: Mapping[Setting, Mapping[str, Mapping[str, Curve]]]
    """Setting → objective → metric → curve."""
    styles: Mapping[str, PlotStyle]
    """Objective → style of its lines and bars."""

    @property
    def num_comparisons(self) -> int:
        """Number of comparisons that p-values are corrected for."""
        return sum(len(results.comparisons) for results in self.results.values())

    @property
    def baseline(self) -> str:
        return self.sweep.baseline

    def heading(self, caption: str, setting: Setting) -> str:
        """Return ``caption``, with the setting's name where there are several settings."""
        return f"{caption}: {setting.title}" if len(self.sweep.settings) > 1 else caption


def gather_report_data(sweep: Sweep) -> SweepReportData:
    """Read the chosen cells, one objective after the other, and compare them."""
    columns: dict[Setting, dict[str, Column]] = {}
    bases: dict[Setting, Column] = {}
    curves: dict[Setting, dict[str, dict[str, Curve]]] = {}
    for setting in sweep.settings:
        columns[setting], curves[setting] = {}, {}
        by_seed: dict[int, CellResult] = {}
        for objective in sweep.objectives:
            if cells := sweep.chosen(setting, objective):
                columns[setting][objective] = read_column(cells, "eval")
                curves[setting][objective] = read_curves(cells, CURVES)
                by_seed |= {cell.seed: cell for cell in cells if cell.seed not in by_seed}
        # Any objective's cell will do: they start from the same model.
        bases[setting] = read_column([by_seed[seed] for seed in sorted(by_seed)], "base")
    comparisons = compare_all(columns, sweep.baseline)
    gains = gains_over_base(columns, bases)
    intervals = all_intervals(columns)
    base_intervals = all_intervals({setting: {"": base} for setting, base in bases.items()})
    results = {
        setting: SettingResults(
            setting=setting,
            measures=in_order(measure for column in models.values() for measure in column),
            objectives=models,
            base=bases[setting],
            intervals=_within(setting, intervals),
            base_intervals={m: x for (_, m), x in _within(setting, base_intervals).items()},
            comparisons=_within(setting, comparisons),
            gains=_within(setting, gains),
        )
        for setting, models in columns.items()
    }
    return SweepReportData(sweep, results, curves, styles_for(sweep.objectives, sweep.baseline))


def _within(
    setting: Setting, by_key: Mapping[tuple[Setting, str, Measure], Value]
) -> dict[tuple[str, Measure], Value]:
    """Select the values of one setting."""
    return {(name, m): value for (other, name, m), value in by_key.items() if other == setting}
