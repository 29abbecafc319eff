"""Everything that a report of a sweep is written from, gathered once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from deft.objectives.figure_style import Look
from deft.sweeps.report.comparisons import Results, all_intervals, compare_all, gains_over_base
from deft.sweeps.report.curves import Curve, read_curves
from deft.sweeps.report.plots import looks
from deft.sweeps.report.read_sweep import Cell, Setting, Sweep
from deft.sweeps.report.scores import Column, Measure, in_order, read_column

Value = TypeVar("Value")

CURVES = (
    "validation/nll",
    "validation/bits_per_byte",
    "train/nll",
    "train/mean_gate",
    "train/mean_focus",
    "train/mean_p",
)


@dataclass(frozen=True)
class Findings:
    """A sweep and what its finished cells say."""

    sweep: Sweep
    results: Mapping[Setting, Results]
    curves: Mapping[Setting, Mapping[str, Mapping[str, Curve]]]
    """Setting → objective → metric → curve."""
    styles: Mapping[str, Look]
    """How each objective is drawn."""

    @property
    def num_comparisons(self) -> int:
        return sum(len(results.contrasts) for results in self.results.values())

    @property
    def baseline(self) -> str:
        return self.sweep.baseline

    def heading(self, what: str, setting: Setting) -> str:
        """A caption that names the setting where there are several."""
        return f"{what}: {setting.title}" if len(self.sweep.settings) > 1 else what


def gather(sweep: Sweep) -> Findings:
    """Read the chosen cells one objective after the other, and compare what they say."""
    columns: dict[Setting, dict[str, Column]] = {}
    bases: dict[Setting, Column] = {}
    curves: dict[Setting, dict[str, dict[str, Curve]]] = {}
    for setting in sweep.settings:
        columns[setting], curves[setting] = {}, {}
        by_seed: dict[int, Cell] = {}
        for objective in sweep.objectives:
            if cells := sweep.chosen(setting, objective):
                columns[setting][objective] = read_column(cells, "eval")
                curves[setting][objective] = read_curves(cells, CURVES)
                by_seed |= {cell.seed: cell for cell in cells if cell.seed not in by_seed}
        # Any objective's cell will do: they start from the same model.
        bases[setting] = read_column([by_seed[seed] for seed in sorted(by_seed)], "base")
    contrasts = compare_all(columns, sweep.baseline)
    gains = gains_over_base(columns, bases)
    intervals = all_intervals(columns)
    base_intervals = all_intervals({setting: {"": base} for setting, base in bases.items()})
    results = {
        setting: Results(
            setting=setting,
            measures=in_order(measure for column in found.values() for measure in column),
            objectives=found,
            base=bases[setting],
            intervals=_within(setting, intervals),
            base_intervals={m: x for (_, m), x in _within(setting, base_intervals).items()},
            contrasts=_within(setting, contrasts),
            gains=_within(setting, gains),
        )
        for setting, found in columns.items()
    }
    return Findings(sweep, results, curves, looks(sweep.objectives, sweep.baseline))


def _within(
    setting: Setting, found: Mapping[tuple[Setting, str, Measure], Value]
) -> dict[tuple[str, Measure], Value]:
    return {(name, m): value for (where, name, m), value in found.items() if where == setting}
