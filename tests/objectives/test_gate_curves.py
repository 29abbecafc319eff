"""Gate and focus over the target's probability, and what of them is drawn and written."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from deft.objectives import CATALOG, get_objective
from deft.objectives.gate_curves import (
    ALTERNATIVES,
    CONFLICT,
    OPEN,
    GateCurve,
    curve_rows,
    draw_gate_curves,
    gate_curves,
)
from deft.platform.commands.plot import save_figure
from deft.platform.console import RunConsole


def curve(name: str, rest: str) -> GateCurve:
    return next(each for each in gate_curves([get_objective(name)]) if each.rest == rest)


def test_curves_are_the_gates_of_the_catalog() -> None:
    for rest in (CONFLICT, OPEN):
        general = curve("GeneralFamily-2", rest)
        assert_close(general.gate, general.p**2)
        assert_close(curve("original", rest).gate, torch.ones_like(general.p))
    conflict, spread = curve("DEFT", CONFLICT), curve("DEFT", OPEN)
    p = conflict.p
    assert conflict.focus is not None
    assert spread.focus is not None
    assert_close(conflict.focus, p**2 + (1 - p) ** 2)
    assert_close(spread.focus, p**2 + (1 - p) ** 2 / ALTERNATIVES)
    # A confident conflict is damped, an open question is learned.
    assert float(conflict.gate[20]) < 0.2 < 0.8 < float(spread.gate[20])
    binary = -(p * p.log() + torch.xlogy(1 - p, 1 - p))
    assert_close(curve("EAFT_axolotl", CONFLICT).gate, binary)
    even = (p - 1 / (ALTERNATIVES + 1)).abs().argmin()
    top20 = curve("EAFT_axolotl", OPEN).gate[even]
    assert float(top20) == pytest.approx(math.log(20), abs=1e-3)


def test_every_objective_is_drawn_or_refused(tmp_path: Path) -> None:
    drawn = []
    for info in CATALOG.values():
        objective = get_objective(info.example)
        if objective.target is None and not objective.context:
            drawn.append(objective)
        else:
            with pytest.raises(ValueError, match="not described by its gate over p alone"):
                gate_curves([objective])
    curves = gate_curves(drawn)
    assert all(bool(each.gate.isfinite().all()) for each in curves)
    save_figure(draw_gate_curves(curves), curve_rows(curves), tmp_path / "gate.png", RunConsole())
    assert (tmp_path / "gate.pdf").read_bytes().startswith(b"%PDF")
    assert (tmp_path / "gate.png").stat().st_size > 10_000
    with (tmp_path / "gate.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(each.p) for each in curves)
    assert {row["objective"] for row in rows} == {str(each.spec) for each in drawn}
