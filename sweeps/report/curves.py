"""Curves over training: means over seeds with the band from the lowest seed to the highest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deft.sweeps.report.read_sweep import CellResult

MOST_POINTS = 60
"""Longer curves become means over as many equal stretches of steps."""


@dataclass(frozen=True)
class Curve:
    """One metric of one objective, float64 [T] all."""

    steps: NDArray[np.float64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    """Lowest of the seeds."""
    high: NDArray[np.float64]

    def at(self, part: float) -> float:
        """Return the mean at the point that is nearest to ``part`` of the last step."""
        return float(self.mean[np.abs(self.steps - part * self.steps[-1]).argmin()])


def read_curves(cells: Sequence[CellResult], names: Iterable[str]) -> dict[str, Curve]:
    """Read curves of event metrics by name, over the steps that all cells logged."""
    names = tuple(names)
    runs: dict[str, list[NDArray[np.float64]]] = {}
    for cell in cells:
        for name, series in cell.series(names).items():
            runs.setdefault(name, []).append(_thin(series))
    curves = {name: _over_seeds(runs[name]) for name in names if name in runs}
    return {name: curve for name, curve in curves.items() if len(curve.steps)}


def _thin(series: NDArray[np.float64]) -> NDArray[np.float64]:
    """Reduce to at most `MOST_POINTS` points: mean step and mean value of each stretch."""
    parts = np.array_split(series, min(series.shape[1], MOST_POINTS), axis=1)
    return np.stack([part.mean(1) for part in parts], axis=1)


def _over_seeds(runs: Sequence[NDArray[np.float64]]) -> Curve:
    steps = np.array(sorted(set(runs[0][0]).intersection(*(run[0] for run in runs))))
    values = np.stack([run[1, np.isin(run[0], steps)] for run in runs])
    return Curve(steps, values.mean(0), values.min(0), values.max(0))
