"""Figures over the settings of a sweep, each with its numbers: how objectives act on each prior.

A setting here is a base model on a dataset, with whatever else the sweep varies. Those that know
their task best come first, by the score before training.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from deft.objectives.figure_style import PlotStyle, style_for
from deft.sweeps.report.curves import Curve
from deft.sweeps.report.read_sweep import Setting
from deft.sweeps.report.report_data import SweepReportData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from deft.objectives.diagnostics import TokenLandscape

PANEL_INCHES = 2.6
LEGEND_INCHES = 1.7
FOCUS = {"train/mean_focus": "mean focus α", "train/mean_p": "mean target probability p"}
ENTROPY = "train/mean_entropy"
DODGE = 0.008
"""Distance of objectives' points at one prior, in the unit of the score."""

Rows = list[list[str]]
"""Numbers of a figure as text, the first row their names."""


@dataclass(frozen=True)
class RegimeFigure:
    """A figure and its numbers."""

    figure: Figure
    rows: Rows


def by_prior(report: SweepReportData) -> list[Setting]:
    """Return the settings, those with the highest score before training first."""

    def strength(setting: Setting) -> float:
        results = report.results[setting]
        measure = results.primary
        if measure is None or measure not in results.base:
            return float("-inf")
        score = results.base[measure].mean
        return score if measure.higher_is_better else -score

    return sorted(report.results, key=strength, reverse=True)


def short_titles(settings: Sequence[Setting]) -> dict[Setting, str]:
    """Name settings by what differs between them."""
    parts = {
        setting: [setting.dataset, setting.model, *(f"{axis} = {v}" for axis, v in setting.others)]
        for setting in settings
    }
    common = set.intersection(*(set(each) for each in parts.values())) if len(parts) > 1 else set()
    return {
        setting: " · ".join(part for part in each if part not in common) or setting.title
        for setting, each in parts.items()
    }


def draw_focus(report: SweepReportData) -> RegimeFigure | None:
    """Draw mean focus and mean p over the course of training, a line for each setting.

    There is a row of panels for each objective that has a focus; None if none has one.
    """
    settings = by_prior(report)
    names = [
        name
        for name in report.styles
        if any("train/mean_focus" in report.curves[s].get(name, {}) for s in settings)
    ]
    if not names:
        return None
    size = (1.35 * PANEL_INCHES * len(FOCUS) + LEGEND_INCHES, PANEL_INCHES * len(names))
    figure, grid = _panels(len(names), len(FOCUS), size, sharey=True)
    rows: Rows = [["objective", "setting", "share of training", *FOCUS]]
    labels = short_titles(settings)
    for axes, name in zip(grid, names, strict=True):
        for axis, (metric, label) in zip(axes, FOCUS.items(), strict=True):
            for index, setting in enumerate(settings):
                curve = report.curves[setting].get(name, {}).get(metric)
                if curve is not None:
                    _draw_curve(axis, curve, style_for(index), labels[setting], shares=True)
            axis.set_title(f"{name}: {label}", parse_math=False, loc="left", fontsize="medium")
            axis.set_xlabel("share of training")
            axis.set_xlim(0, 1)
            axis.grid()
        rows += _focus_rows(report, settings, name)
    _legend(figure, [axis for axes in grid for axis in axes])
    return RegimeFigure(figure, rows)


def _focus_rows(report: SweepReportData, settings: Sequence[Setting], name: str) -> Rows:
    rows = []
    for setting in settings:
        curves = report.curves[setting].get(name, {})
        columns = [curves[metric] for metric in FOCUS if metric in curves]
        if len(columns) == len(FOCUS):
            last = columns[0].steps[-1]
            rows += [
                [name, setting.title, f"{step / last:.4f}", *(f"{v:.6g}" for v in values)]
                for step, *values in zip(columns[0].steps, *(c.mean for c in columns), strict=False)
            ]
    return rows


def draw_entropy(report: SweepReportData) -> RegimeFigure | None:
    """Draw mean entropy over training, a panel for each setting and a line for each objective."""
    settings = [s for s in by_prior(report) if any(ENTROPY in c for c in report.curves[s].values())]
    if not settings:
        return None
    columns = min(3, len(settings))
    count = -(-len(settings) // columns)
    size = (1.2 * PANEL_INCHES * columns + LEGEND_INCHES, PANEL_INCHES * count)
    figure, grid = _panels(count, columns, size, sharey=True)
    axes = [axis for row in grid for axis in row]
    rows: Rows = [["setting", "objective", "step", "mean entropy in nats"]]
    titles = short_titles(settings)
    for axis, setting in zip(axes, settings, strict=False):
        for name, curves in report.curves[setting].items():
            if ENTROPY in curves:
                curve = curves[ENTROPY]
                _draw_curve(axis, curve, report.styles[name], name, shares=False)
                rows += [
                    [setting.title, name, f"{step:g}", f"{value:.6g}"]
                    for step, value in zip(curve.steps, curve.mean, strict=True)
                ]
        axis.set_title(titles[setting], parse_math=False, loc="left", fontsize="medium")
        axis.set_xlabel("optimizer step")
        axis.grid()
    for row in grid:
        row[0].set_ylabel("mean entropy (nats)")
    for axis in axes[len(settings) :]:
        axis.remove()
    _legend(figure, axes[: len(settings)])
    return RegimeFigure(figure, rows)


def draw_continuum(report: SweepReportData) -> RegimeFigure | None:
    """Draw the gain over the base model against the base model's score, a line an objective.

    There is a panel for each combination of the axes beside the model; None with one model only.
    """
    weakest_first = by_prior(report)[::-1]
    groups = {
        (each.dataset, each.others): [
            other
            for other in weakest_first
            if (other.dataset, other.others) == (each.dataset, each.others)
        ]
        for each in report.results
    }
    drawn = {key: points for key, points in groups.items() if len(points) > 1}
    if not drawn:
        return None
    size = (1.5 * PANEL_INCHES * len(drawn) + LEGEND_INCHES, 1.25 * PANEL_INCHES)
    figure, (axes,) = _panels(1, len(drawn), size, sharey=True)
    rows: Rows = [["setting", "objective", "before training", "gain", "low", "high"]]
    for axis, ((dataset, others), settings) in zip(axes, drawn.items(), strict=True):
        titles = (dataset, *(f"{axis_name} = {value}" for axis_name, value in others))
        axis.set_title(" · ".join(titles), parse_math=False, loc="left", fontsize="medium")
        for drawn_so_far, (name, style) in enumerate(report.styles.items()):
            points = _gains(report, settings, name)
            rows += [[s.title, name, *(f"{x:.6g}" for x in numbers)] for s, numbers in points]
            if points:
                x, y, low, high = np.array([numbers for _, numbers in points]).T
                # A percentile interval need not hold the value itself.
                arms = np.maximum([y - low, high - y], 0)
                line: dict[str, Any] = {"color": style.color, "marker": style.marker}
                line |= {"linestyle": style.linestyle, "capsize": 2, "markersize": 5}
                # Side by side, so that intervals at one prior stay apart.
                aside = (drawn_so_far - (len(report.styles) - 1) / 2) * DODGE
                axis.errorbar(x + aside, y, yerr=arms, label=name, **line)
        axis.axhline(0, color="black", linewidth=0.7, linestyle=(0, (4, 3)))
        axis.set_xlabel("score before training (prior strength)")
        axis.grid()
    axes[0].set_ylabel("gain over the base model")
    _legend(figure, axes)
    return RegimeFigure(figure, rows)


def _gains(
    report: SweepReportData, settings: Sequence[Setting], name: str
) -> list[tuple[Setting, tuple[float, float, float, float]]]:
    """Return score before, gain and its interval of one objective in each setting."""
    points = []
    for setting in settings:
        results = report.results[setting]
        measure = results.primary
        gain = None if measure is None else results.gains.get((name, measure))
        if measure is None or gain is None or measure not in results.base:
            continue
        interval = gain.interval
        numbers = (results.base[measure].mean, gain.difference, interval.low, interval.high)
        points.append((setting, numbers))
    return points


def draw_landscapes_by_regime(
    regimes: Mapping[str, Mapping[str, TokenLandscape]],
) -> RegimeFigure | None:
    """Draw target probability against entropy, a row for each regime, a column for each objective.

    Every panel has a scale of its own, from nothing to its hardest pulled token: what is compared
    is where an objective pulls, not how hard.
    """
    objectives = list(dict.fromkeys(name for panels in regimes.values() for name in panels))
    if not regimes or not objectives:
        return None
    size = (PANEL_INCHES * len(objectives) + 0.9, PANEL_INCHES * len(regimes))
    figure, grid = _panels(len(regimes), len(objectives), size, sharex=True, sharey=True)
    rows: Rows = [["regime", "objective", "p", "entropy", "share of the panel's largest gradient"]]
    highest = max(
        float(panel.entropy.max()) if len(panel.entropy) else 0.0
        for panels in regimes.values()
        for panel in panels.values()
    )
    for axes, (regime, panels) in zip(grid, regimes.items(), strict=True):
        for axis, name in zip(axes, objectives, strict=True):
            panel = panels[name]
            largest = float(panel.gradient_norm.max()) if len(panel.p) else 0.0
            share = (panel.gradient_norm / (largest or 1.0)).numpy()
            order = np.argsort(share)
            p, entropy = panel.p.numpy(), panel.entropy.numpy()
            dots = axis.scatter(
                p[order],
                entropy[order],
                c=share[order],
                vmin=0,
                vmax=1,
                cmap="cividis_r",
                s=7,
                linewidths=0,
                rasterized=True,
            )
            axis.set_xlim(-0.02, 1.02)
            axis.set_ylim(-0.03 * highest, 1.06 * highest)
            rows += [
                [regime, name, f"{a:.6g}", f"{b:.6g}", f"{c:.6g}"]
                for a, b, c in zip(p, entropy, share, strict=True)
            ]
        axes[0].set_ylabel(f"{_own_part(regime, regimes)}\nentropy (nats)", parse_math=False)
    for axis, name in zip(grid[0], objectives, strict=True):
        axis.set_title(name, parse_math=False)
    for axis in grid[-1]:
        axis.set_xlabel("target probability p")
    figure.colorbar(
        dots,
        ax=[axis for axes in grid for axis in axes],
        label="gradient, share of the largest",
        fraction=0.02,
        aspect=40,
        pad=0.01,
    )
    return RegimeFigure(figure, rows)


def _own_part(title: str, titles: Iterable[str]) -> str:
    """Return the parts of a title, between dots, that not all others have as well."""
    shared = set.intersection(*(set(each.split(" · ")) for each in titles))
    return " · ".join(part for part in title.split(" · ") if part not in shared) or title


def _panels(
    rows: int,
    columns: int,
    size: tuple[float, float],
    *,
    sharex: bool = False,
    sharey: bool = False,
) -> tuple[Figure, list[list[Axes]]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=sharey)
    return figure, [list(axes) for axes in grid]


def _draw_curve(axis: Axes, curve: Curve, style: PlotStyle, label: str, *, shares: bool) -> None:
    x = curve.steps / curve.steps[-1] if shares else curve.steps
    line: dict[str, Any] = {"color": style.color, "linestyle": style.linestyle, "linewidth": 1.4}
    axis.fill_between(x, curve.low, curve.high, color=style.color, alpha=0.15, linewidth=0)
    every = max(1, len(x) // 6)
    axis.plot(
        x, curve.mean, label=label, marker=style.marker, markevery=every, markersize=4, **line
    )


def _legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """Name every line once, right of the panels."""
    handles: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside right center",
        fontsize="small",
        frameon=False,
    )
