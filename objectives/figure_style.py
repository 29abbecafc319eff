"""Colors of objectives in figures; dash, marker and hatch tell them apart in gray print."""

from __future__ import annotations

from typing import NamedTuple

INK = "#010203"
"""Near-black that no other artist uses, so that a dark theme can replace it."""
# Okabe and Ito's palette, which common kinds of color blindness leave distinct.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", INK)
NUM_COLORS = len(_COLOURS)
"""Objectives that differ in color."""
_DASHES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_HATCHES = ("", "///", "...", "xxx", "\\\\\\", "---", "+++", "ooo")


class PlotStyle(NamedTuple):
    """Matplotlib's style arguments for one objective."""

    color: str
    linestyle: str
    marker: str
    hatch: str


def style_for(index: int) -> PlotStyle:
    """Return the style of the objective at ``index``; the first 28 differ."""
    return PlotStyle(
        _COLOURS[index % len(_COLOURS)],
        _DASHES[index % len(_DASHES)],
        _MARKERS[index % len(_MARKERS)],
        _HATCHES[index % len(_HATCHES)],
    )


BASELINE_STYLE = PlotStyle(INK, "-", "*", "")
"""Style of the objective that all others are compared with."""
