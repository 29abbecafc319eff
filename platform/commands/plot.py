"""`deft plot`: figures for a paper, each as PDF and PNG with its numbers as CSV beside."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from deft.platform.console import RunConsole
from deft.workers.common.files import atomic_file, write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 300
"""Resolution of the PNG."""


def plot_gates(objectives: Sequence[str], out: Path, console: RunConsole) -> None:
    """Draw gate and focus of objectives over the target's probability; needs no model.

    Raises:
        ValueError: an objective is not known, or not described by its gate.
    """
    from deft.objectives import get_objective
    from deft.objectives.gate_curves import curve_rows, draw_gate_curves, gate_curves

    curves = gate_curves([get_objective(name) for name in objectives])
    save_figure(draw_gate_curves(curves), curve_rows(curves), out, console)


def save_figure(
    figure: Figure, rows: Sequence[Sequence[str]], out: Path, console: RunConsole
) -> None:
    """Write ``out`` with the endings .pdf, .png and .csv."""
    from matplotlib import rc_context

    stem = out.with_suffix("") if out.suffix in (".pdf", ".png", ".csv") else out
    with rc_context({"pdf.fonttype": 42}):  # text stays text, in a font that journals take
        for ending in (".pdf", ".png"):
            with atomic_file(stem.with_name(stem.name + ending)) as file:
                figure.savefig(file, format=ending[1:], dpi=DPI, facecolor="white")
    write_atomic(stem.with_name(f"{stem.name}.csv"), to_csv(rows))
    console.print(f"{stem}.pdf, .png and .csv")


def to_csv(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as CSV."""
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
