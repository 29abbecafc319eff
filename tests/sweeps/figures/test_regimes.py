"""Figures over the settings of a sweep: what is drawn, in which order, and its numbers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from deft.evaluators.scores.statistics import Interval
from deft.objectives.diagnostics import TokenLandscape
from deft.sweeps.figures.regimes import (
    by_prior,
    draw_continuum,
    draw_entropy,
    draw_focus,
    draw_landscapes_by_regime,
)
from deft.sweeps.report.curves import Curve
from deft.sweeps.report.plots import styles_for
from deft.sweeps.report.read_sweep import Setting
from deft.sweeps.report.report_data import SweepReportData
from deft.sweeps.report.scores import Measure

BASES = {"weak": 0.1, "strong": 0.7, "medium": 0.4}
OBJECTIVES = ("original", "p", "Cayley_Trans", "DEFT")
MEASURE = Measure("chain_sum", "avg_at_1")


def curve(start: float, end: float) -> Curve:
    steps = np.linspace(1, 100, 40)
    mean = start + (end - start) * (steps / 100) ** 0.5
    return Curve(steps, mean, mean - 0.02, mean + 0.02)


def make_report(noises: tuple[str, ...] = ("0", "0.3")) -> SweepReportData:
    """Make the results of three priors, on clean and on noisy data."""
    results: dict[Setting, Any] = {}
    curves: dict[Setting, Any] = {}
    for noise in noises:
        for model, base in BASES.items():
            setting = Setting("chain_sum", model, (("dataset.noise", noise),))
            results[setting] = SimpleNamespace(
                primary=MEASURE,
                base={MEASURE: SimpleNamespace(mean=base)},
                gains={
                    (name, MEASURE): SimpleNamespace(
                        difference=gain, interval=Interval(gain - 0.05, gain + 0.05)
                    )
                    for index, name in enumerate(OBJECTIVES)
                    for gain in [0.3 - 0.2 * base - 0.04 * index * (1 - base)]
                },
            )
            curves[setting] = {
                name: {"train/mean_entropy": curve(1.6 - base, 0.2 + 0.05 * index)}
                for index, name in enumerate(OBJECTIVES)
            }
            for name in ("Cayley_Trans", "DEFT"):
                curves[setting][name] |= {
                    "train/mean_focus": curve(0.2 + base, 0.95),
                    "train/mean_p": curve(0.1 + base, 0.9),
                }
    return SweepReportData(
        cast(Any, None), results, curves, styles_for(list(OBJECTIVES), "original")
    )


def test_settings_are_ordered_by_their_score_before_training() -> None:
    assert [setting.model for setting in by_prior(make_report(("0",)))] == [
        "strong",
        "medium",
        "weak",
    ]


def test_focus_has_a_line_for_each_prior() -> None:
    drawing = draw_focus(make_report(("0",)))
    assert drawing is not None
    titles = [axis.get_title("left") for axis in drawing.figure.axes]
    assert titles[0] == "Cayley_Trans: mean focus α"
    assert all(len(axis.get_lines()) == 3 for axis in drawing.figure.axes)
    x = drawing.figure.axes[0].get_lines()[0].get_xdata()
    assert float(np.asarray(x)[-1]) == 1
    assert len(drawing.rows) == 1 + 2 * 3 * 40
    assert drawing.rows[1][:2] == ["Cayley_Trans", "chain_sum · strong · dataset.noise = 0"]


def test_entropy_has_a_panel_for_each_setting() -> None:
    drawing = draw_entropy(make_report())
    assert drawing is not None
    assert len(drawing.figure.axes) == 6
    assert len(drawing.rows) == 1 + 6 * 4 * 40


def test_continuum_orders_priors_and_keeps_noise_apart() -> None:
    drawing = draw_continuum(make_report())
    assert drawing is not None
    assert [axis.get_title("left") for axis in drawing.figure.axes] == [
        "chain_sum · dataset.noise = 0",
        "chain_sum · dataset.noise = 0.3",
    ]
    row = drawing.rows[1]
    assert row[:3] == ["chain_sum · weak · dataset.noise = 0", "original", "0.1"]
    assert [float(number) for number in row[3:]] == pytest.approx([0.28, 0.23, 0.33])


def test_nothing_is_drawn_of_what_a_sweep_does_not_have() -> None:
    report = make_report()
    one = next(iter(report.results))
    alone = SweepReportData(
        report.sweep, {one: report.results[one]}, {one: {"original": {}}}, report.styles
    )
    assert draw_focus(alone) is None
    assert draw_entropy(alone) is None
    assert draw_continuum(alone) is None
    assert draw_landscapes_by_regime({}) is None


def landscape(seed: int, gate: float) -> TokenLandscape:
    generator = torch.Generator().manual_seed(seed)
    p = torch.rand(300, generator=generator)
    entropy = 3 * torch.rand(300, generator=generator) * (1 - p)
    return TokenLandscape(p, entropy, gate * (1 - p) * p**gate)


def test_landscapes_are_scaled_panel_by_panel() -> None:
    regimes = {
        regime: {name: landscape(row, 0.1 + 0.5 * column) for column, name in enumerate(OBJECTIVES)}
        for row, regime in enumerate(("strong", "medium", "weak"))
    }
    drawing = draw_landscapes_by_regime(regimes)
    assert drawing is not None
    assert len(drawing.figure.axes) == 3 * 4 + 1  # and the color bar
    shares = [float(row[4]) for row in drawing.rows[1:] if row[:2] == ["weak", "DEFT"]]
    assert max(shares) == 1
    assert len(drawing.rows) == 1 + 3 * 4 * 300
