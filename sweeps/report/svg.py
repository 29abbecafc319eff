"""Matplotlib figures as self-contained SVG inside a page, in the color of the page's text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from io import BytesIO, StringIO
from typing import TYPE_CHECKING, Any

from deft.objectives.figure_style import INK

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

PAGE_REM = 63.0
"""Width of the page's text in rem, as the page's style sheet has it."""

_STYLE: dict[Any, Any] = {
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "hatch.color": "white",
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": "medium",
    "axes.titlelocation": "left",
    "axes.linewidth": 0.7,
    "font.size": 9.5,
    "grid.color": INK,
    "grid.alpha": 0.12,
    "grid.linewidth": 0.7,
    "hatch.linewidth": 0.9,
    "svg.fonttype": "none",  # text stays text: it can be read aloud, searched and restyled
}
PANEL_MARGIN = 5.0
"""Points around a panel that stands alone: the page's font may be wider than Matplotlib's."""
PIXELS_PER_POINT = 4 / 3
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


@contextmanager
def figure_style(**changes: float | str) -> Iterator[None]:
    """Draw and save within the block; ``changes`` are settings of Matplotlib, dots as `__`."""
    from matplotlib import rc_context

    settings: dict[Any, Any] = {key.replace("__", "."): value for key, value in changes.items()}
    with rc_context({**_STYLE, **settings}):
        yield


def to_png(figure: Figure) -> bytes:
    """Render a PNG on white, for viewers without SVG."""
    file = BytesIO()
    figure.savefig(file, format="png", dpi=144, facecolor="white")
    return file.getvalue()


def to_pdf(figure: Figure) -> bytes:
    """Render a PDF on white, its text in a font that journals take."""
    from matplotlib import rc_context

    file = BytesIO()
    undated = {"CreationDate": None}
    with rc_context({"pdf.fonttype": 42}):
        figure.savefig(file, format="pdf", dpi=300, facecolor="white", metadata=undated)
    return file.getvalue()


def to_svg(figure: Figure, name: str, description: str, page_inches: float) -> str:
    """Render an `<svg>` element without background that takes the color of the page's text.

    Args:
        figure: drawn within `figure_style`.
        name: unique in the page; the element's ids begin with it.
        description: text for screen readers.
        page_inches: width of a figure that fills the page; narrower ones take their share of it.
    """
    from matplotlib import rc_context

    file = StringIO()
    with rc_context({"svg.hashsalt": name}):
        figure.savefig(file, format="svg", facecolor="none", metadata=_NO_METADATA)
    text = file.getvalue()
    text = text[text.index("<svg") :].strip()
    # A style sheet in an inline SVG would be the whole page's; the page has these rules itself.
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, count=1, flags=re.DOTALL)
    text = text.replace(INK, "currentColor")
    text = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>{name}-", text)
    # The page decides how large it is; the view box keeps its proportions.
    text = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', r"\1", text, count=1)
    share = min(1.0, float(figure.get_size_inches()[0]) / page_inches)
    width = f'style="max-width: {share * PAGE_REM:.1f}rem"'
    opening = f'<svg role="img" aria-labelledby="{name}-title" {width}'
    title = f'<title id="{name}-title">{escape(description)}</title>'
    head, rest = text[len("<svg") :].split(">", 1)
    return f"{opening}{head}>{title}{rest}"


def to_panels(figure: Figure, name: str) -> str:
    """Render a column of `<svg>` elements, one for each panel and legend, for narrow pages.

    They show parts of the element that `to_svg` returns for the same figure and name. A panel that
    shares its y axis with the first of its row has that one's labels.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    height, scale = 72 * float(figure.get_size_inches()[1]), 72 / figure.dpi
    boxes = {
        axis: Bbox(scale * box.get_points())
        for axis in figure.axes
        if (box := axis.get_tightbbox(renderer)) is not None
    }
    panels = []
    for axis, box in boxes.items():
        parts = [box.padded(PANEL_MARGIN)]
        neighbors = [
            other
            for other in boxes
            if axis.get_shared_y_axes().joined(axis, other)
            and abs(other.get_position().y0 - axis.get_position().y0) < 0.01
        ]
        first = min(neighbors, key=lambda other: other.get_position().x0, default=axis)
        if first is not axis:
            # Down to the axis: below it there are labels of the first panel's other axis.
            inside = Bbox(scale * first.get_window_extent(renderer).get_points())
            corner = boxes[first].x0 - PANEL_MARGIN, inside.y0 - PANEL_MARGIN
            parts.insert(0, Bbox([corner, (inside.x0, parts[0].y1)]))
        panels.append(_panel(name, parts, height))
    for legend in figure.legends:
        box = Bbox(scale * legend.get_window_extent(renderer).get_points())
        panels.append(_panel(name, [box.padded(PANEL_MARGIN)], height))
    return "".join(panels)


def _panel(name: str, parts: Sequence[Bbox], height: float) -> str:
    """Set parts of a figure of ``height`` points beside each other; their tops are one line."""
    top = height - parts[-1].y1
    shown, width = [], 0.0
    for part in parts:
        size = f"{part.width:.1f} {part.height:.1f}"
        shown.append(
            f'<svg x="{width:.1f}" width="{part.width:.1f}" height="{part.height:.1f}" '
            f'viewBox="{part.x0:.1f} {top:.1f} {size}">'
            f'<use href="#{name}-figure_1"/></svg>'
        )
        width += part.width
    return (
        f'<svg aria-hidden="true" viewBox="0 0 {width:.1f} {parts[-1].height:.1f}" '
        f'style="max-width: {PIXELS_PER_POINT * width:.0f}px">{"".join(shown)}</svg>'
    )
