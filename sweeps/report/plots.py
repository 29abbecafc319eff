"""The report's figures. Every objective looks the same in all of them; see `figure_style`.

Color is never the only cue: bars are hatched, lines differ in dash and marker, and all of them
carry their names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from deft.evaluators.scores.statistics import Interval
from deft.objectives.figure_style import BASELINE_STYLE, INK, PlotStyle, style_for
from deft.sweeps.report.curves import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAGE_INCHES = 10.4
"""Width of a figure that fills the page."""
_PANEL_INCHES = 4.2
"""Width of a panel where few stand beside each other; one fills a narrow page."""
_LABEL_POINTS = 8.0
_CURVE_INCHES = 2.9
_POINT_INCHES = 3.6
_ROW_INCHES = 0.27
_START = 0.15
"""Share of the steps that a cropped panel leaves out."""
_FEWEST_POINTS = 4
"""A panel of fewer points is not cropped."""
_BASELINE_FILL = "#8b9098"
"""Fill of the baseline's bars: lighter than ink, so that whiskers stay visible on them."""


class BarPanel(NamedTuple):
    """One panel of bars."""

    title: str
    unit: str
    runs: Mapping[str, Sequence[float]]
    """Objective → the value of each seed."""
    base: float | None
    """The value before training."""


class CurvePanel(NamedTuple):
    """One panel of curves."""

    label: str
    """Title of the panel, for its y axis."""
    curves: Mapping[str, Curve]
    crop: bool = False
    """Whether the y axis leaves out the first steps."""


class Point(NamedTuple):
    """Position of one objective, with intervals."""

    x: float
    x_interval: Interval
    y: float
    y_interval: Interval


class PointPanel(NamedTuple):
    """One panel of points."""

    title: str
    points: Mapping[str, Point]


def styles_for(objectives: Sequence[str], baseline: str) -> dict[str, PlotStyle]:
    """Assign a style to each objective; the baseline is drawn in ink."""
    others = [name for name in objectives if name != baseline]
    return {baseline: BASELINE_STYLE} | {
        name: style_for(index) for index, name in enumerate(others)
    }


def draw_bars(panels: Sequence[BarPanel], styles: Mapping[str, PlotStyle]) -> Figure:
    """Draw means over seeds with the standard deviation over seeds, a dot for each seed."""
    names = [name for name in styles if any(name in panel.runs for panel in panels)]
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    height = rows * (_ROW_INCHES * len(names) + 0.75)
    figure, axes = _grid(
        len(panels), columns, (min(PAGE_INCHES, _PANEL_INCHES * columns), height), sharey=True
    )
    for axis, panel in zip(axes, panels, strict=True):
        for row, name in enumerate(names):
            if name in panel.runs:
                _draw_bar(axis, row, panel.runs[name], styles[name])
        if panel.base is not None:
            axis.axvline(panel.base, color=INK, linestyle=(0, (2, 2)), linewidth=1)
            axis.annotate(
                "base",
                (panel.base, -0.5),
                xytext=(2, 3),
                textcoords="offset points",
                va="bottom",
                fontsize=_LABEL_POINTS,
                annotation_clip=False,
            )
        axis.set_ylim(len(names) - 0.5, -1.0)
        axis.set_yticks(range(len(names)), names, parse_math=False)
        axis.tick_params(axis="y", length=0)
        axis.margins(x=0.16)
        axis.set_xlim(left=0)
        axis.set_title(panel.title, parse_math=False)
        axis.set_xlabel(panel.unit, parse_math=False)
    return figure


def _draw_bar(axis: Axes, row: int, values: Sequence[float], style: PlotStyle) -> None:
    mean = float(np.mean(values))
    color = _BASELINE_FILL if style.color == INK else style.color
    axis.barh(
        row, mean, height=0.62, color=color, hatch=style.hatch, edgecolor="white", linewidth=0
    )
    end = max(mean, *values)
    if len(values) > 1:
        spread = float(np.std(values, ddof=1))
        axis.errorbar(mean, row, xerr=spread, color=INK, capsize=3, linewidth=1.1)
        outline: dict[str, Any] = {"facecolor": "white", "edgecolor": INK, "linewidth": 0.8}
        axis.scatter(values, [row] * len(values), s=11, zorder=3, **outline)
        end = max(end, mean + spread)
    axis.annotate(
        f"{mean:.3f}",
        (end, row),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        fontsize=_LABEL_POINTS,
    )


def draw_curves(panels: Sequence[CurvePanel], styles: Mapping[str, PlotStyle]) -> Figure:
    """Draw a line for each objective's mean over seeds, a band from the lowest to the highest."""
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    size = (PAGE_INCHES * columns / 3, _CURVE_INCHES * rows)
    figure, axes = _grid(len(panels), columns, size)
    for axis, panel in zip(axes, panels, strict=True):
        for name, curve in panel.curves.items():
            style = styles[name]
            axis.fill_between(
                curve.steps, curve.low, curve.high, color=style.color, alpha=0.18, linewidth=0
            )
            axis.plot(
                curve.steps,
                curve.mean,
                color=style.color,
                linestyle=style.linestyle,
                marker=style.marker,
                markevery=max(1, len(curve.steps) // 6),
                markersize=3.5,
                linewidth=1.3,
            )
        axis.grid(axis="y")
        axis.set_title(panel.label)
        axis.set_xlabel("optimizer step")
        if panel.crop:
            _crop_start(axis, panel.curves.values())
        ends = {
            name: (float(curve.steps[-1]), float(curve.mean[-1]))
            for name, curve in panel.curves.items()
        }
        _name_points(axis, ends, styles, _CURVE_INCHES)
    return figure


def _crop_start(axis: Axes, curves: Iterable[Curve]) -> None:
    """Scale the y axis to what follows the first steps, whose values would flatten the rest."""
    late = [
        band[curve.steps > _START * curve.steps[-1]]
        for curve in curves
        for band in (curve.low, curve.high)
    ]
    if min(map(len, late)) < _FEWEST_POINTS:
        return
    low, high = float(min(map(np.min, late))), float(max(map(np.max, late)))
    margin = 0.06 * (high - low) or 0.05 * abs(high)
    axis.set_ylim(low - margin, high + margin)


def _name_points(
    axis: Axes,
    points: Mapping[str, tuple[float, float]],
    styles: Mapping[str, PlotStyle],
    inches: float,
) -> None:
    """Write names right of the axis, tied to their points, apart where they would touch.

    Args:
        axis: with its final limits.
        points: x and y.
        styles: of the ties.
        inches: height of the panel, axis labels and title included.
    """
    low, high = axis.get_ylim()
    line = 1.25 * _LABEL_POINTS / 72 / (inches - 0.95)
    shares = {name: (y - low) / (high - low) for name, (_, y) in points.items()}
    names = sorted(points, key=lambda name: shares[name])
    places = spread([shares[name] for name in names], line)
    axis.set_ylim(low, high)
    for name, place in zip(names, places, strict=True):
        axis.annotate(
            name,
            points[name],
            xytext=(1.06, place),
            textcoords="axes fraction",
            va="center",
            fontsize=_LABEL_POINTS,
            annotation_clip=False,
            parse_math=False,
            arrowprops={
                "arrowstyle": "-",
                "color": styles[name].color,
                "linewidth": 0.7,
                "linestyle": ":",
                "relpos": (0, 0.5),
                # To clip lines at texts would take a third of a large report's time.
                "patchA": None,
                "shrinkA": 0,
                "shrinkB": 0,
            },
        )


def spread(values: Sequence[float], distance: float) -> list[float]:
    """Move ascending ``values`` as little as needed to be at least ``distance`` apart.

    Those that would touch are laid out evenly around their mean, group by group; none below 0.
    """
    groups: list[list[float]] = []
    for value in values:
        groups.append([value])
        while len(groups) > 1 and _top(groups[-2], distance) + distance > _bottom(
            groups[-1], distance
        ):
            last = groups.pop()
            groups[-1] += last
    places = [
        _bottom(group, distance) + index * distance
        for group in groups
        for index in range(len(group))
    ]
    return [max(place, index * distance) for index, place in enumerate(places)]


def _bottom(group: Sequence[float], distance: float) -> float:
    return sum(group) / len(group) - (len(group) - 1) * distance / 2


def _top(group: Sequence[float], distance: float) -> float:
    return sum(group) / len(group) + (len(group) - 1) * distance / 2


def draw_points(
    panels: Sequence[PointPanel], styles: Mapping[str, PlotStyle], x_label: str, y_label: str
) -> Figure:
    """Draw a named point with intervals for each objective, and lines at no change."""
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = _grid(len(panels), columns, (_PANEL_INCHES * columns, _POINT_INCHES * rows))
    for axis, panel in zip(axes, panels, strict=True):
        for name, point in panel.points.items():
            style = styles[name]
            axis.errorbar(
                point.x,
                point.y,
                xerr=_arms(point.x, point.x_interval),
                yerr=_arms(point.y, point.y_interval),
                color=style.color,
                marker=style.marker,
                markersize=6,
                linewidth=0.8,
                capsize=2,
            )
        axis.axhline(0, color=INK, linewidth=0.7, linestyle=(0, (4, 3)))
        axis.axvline(0, color=INK, linewidth=0.7, linestyle=(0, (4, 3)))
        axis.grid()
        axis.set_title(panel.title, parse_math=False)
        axis.set_xlabel(x_label)
        axis.set_ylabel(y_label)
        places = {name: (point.x, point.y) for name, point in panel.points.items()}
        _name_points(axis, places, styles, _POINT_INCHES)
    return figure


def _arms(value: float, interval: Interval) -> list[list[float]]:
    # A percentile interval need not hold the value itself.
    return [[max(0.0, value - interval.low)], [max(0.0, interval.high - value)]]


def _grid(
    number: int, columns: int, size: tuple[float, float], *, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    rows = -(-number // columns)
    axes = figure.subplots(rows, columns, squeeze=False, sharey=sharey).flatten().tolist()
    for axis in axes[number:]:
        axis.remove()
    return figure, axes[:number]
