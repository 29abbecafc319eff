"""How objectives differ in figures: in colour, and for grey print in dash, marker and hatch."""

from __future__ import annotations

from typing import NamedTuple

INK = "#010203"
"""What is drawn in black; no other artist has just this colour, so that it can be replaced."""
# Okabe and Ito's colours that stay apart for every common colour vision.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", INK)
_DASHES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_HATCHES = ("", "///", "...", "xxx", "\\\\\\", "---", "+++", "ooo")


class PlotStyle(NamedTuple):
    """Matplotlib's names of what one objective is drawn with."""

    color: str
    linestyle: str
    marker: str
    hatch: str


def style_for(index: int) -> PlotStyle:
    """The look of the objective at ``index``; the first 28 differ."""
    return PlotStyle(
        _COLOURS[index % len(_COLOURS)],
        _DASHES[index % len(_DASHES)],
        _MARKERS[index % len(_MARKERS)],
        _HATCHES[index % len(_HATCHES)],
    )


BASELINE = PlotStyle(INK, "-", "*", "")
"""The look of what everything else is compared with."""
