"""Gate and focus of objectives over the target's probability: what they do, without a model.

Some objectives read more than p. Two predictions bracket what the rest of the vocabulary may look
like: its mass on one other token, a confident conflict, or spread evenly over nineteen others, an
open question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from deft.objectives.base import Objective, TokenStats
from deft.objectives.figure_style import NUM_COLORS, style_for

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS = 401
"""Probabilities that a curve is drawn through."""
LEAST_P = 1e-4
"""The smallest of them."""
ALTERNATIVES = 19
"""Other tokens that an open question is spread over; with the target as many as EAFT looks at."""
MEAN_P = 0.5
"""Mean probability of the batch, for objectives that read it."""

CONFLICT, OPEN = "one other token", f"{ALTERNATIVES} other tokens"
"""Where the probability lies that the target does not have."""

_PANEL_INCHES, _LEGEND_INCHES = 3.2, 1.6


@dataclass(frozen=True)
class GateCurve:
    """Gate and focus of one objective over p, float64 [P] each."""

    objective: str
    rest: str
    """Where the rest of the probability lies."""
    p: Tensor
    gate: Tensor
    focus: Tensor | None
    """None for an objective that has none."""


def gate_curves(objectives: Sequence[Objective]) -> list[GateCurve]:
    """Compute the curves of objectives that a gate describes, two for each.

    Raises:
        ValueError: an objective mixes in another distribution, or reads other models or examples.
    """
    curves = []
    for objective in objectives:
        if not objective.is_described_by_gate:
            raise ValueError(
                f"{objective.spec} is not described by its gate over p alone; leave it out"
            )
        for rest in (CONFLICT, OPEN):
            p = torch.linspace(LEAST_P, 1, POINTS, dtype=torch.float64)
            stats = statistics_at(objective, p, rest)
            output = objective(stats)
            gate = output.gate if output.keep is None else output.gate * output.keep
            curves.append(GateCurve(str(objective.spec), rest, stats.p, gate, output.focus))
    return curves


def statistics_at(objective: Objective, p: Tensor, rest: str) -> TokenStats:
    """Make the statistics of predictions that give the target the probabilities ``p`` [P]."""
    others = 1 if rest == CONFLICT else ALTERNATIVES
    each = (1 - p) / others
    # The largest logits of all: the target is among them where the others are not larger.
    top = min(objective.top_k, others + 1)
    has_target = (p >= each) | (others < top)
    largest_others = top - has_target.to(p.dtype)
    mass = p * has_target + each * largest_others
    entropy_top = (_plogp(p) * has_target + _plogp(each) * largest_others) / mass + mass.log()
    columns = {
        "concentration": p.square() + others * each.square(),
        "entropy": _plogp(p) + others * _plogp(each),
        "entropy_top": entropy_top.clamp(min=0),
        "top_logp": torch.maximum(p, each).log(),
    }
    return TokenStats(
        logp=p.log(),
        p=p,
        mask=torch.ones_like(p, dtype=torch.bool),
        step_mean_p=p.new_tensor(MEAN_P),
        **{name: column for name, column in columns.items() if name in objective.needs},
    )


def _plogp(p: Tensor) -> Tensor:
    return -torch.xlogy(p, p)


def draw_gate_curves(curves: Sequence[GateCurve]) -> Figure:
    """Draw gate over p, and focus over p where an objective has one; a color an objective.

    Where an objective reads p alone its two curves are one. Where they differ, the dashed one is
    that of a confident conflict.
    """
    from matplotlib.figure import Figure

    if not curves:
        raise ValueError("no curve to draw; give at least one objective")
    by_name: dict[str, list[GateCurve]] = {}
    for curve in curves:
        by_name.setdefault(curve.objective, []).append(curve)
    has_focus = any(curve.focus is not None for curve in curves)
    columns = 2 if has_focus else 1
    width = 1.2 * _PANEL_INCHES * columns + _LEGEND_INCHES
    figure = Figure(figsize=(width, _PANEL_INCHES), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for index, (name, pair) in enumerate(by_name.items()):
        _draw_pair(axes[0], index, name, {curve.rest: (curve.p, curve.gate) for curve in pair})
        focused = {c.rest: (c.p, c.focus) for c in pair if c.focus is not None}
        if has_focus and focused:
            _draw_pair(axes[1], index, name, focused)
    for axis, label in zip(axes, ("gate", "focus α*"), strict=False):
        axis.set_xlabel("target probability p")
        axis.set_ylabel(label)
        axis.set_xlim(0, 1)
        axis.grid(alpha=0.25)
    gates = torch.stack([curve.gate for curve in curves])
    if float(gates.max()) > 3 * float(gates.median(0).values.max()):
        axes[0].set_yscale("symlog", linthresh=1)
    differ = any(not torch.equal(a.gate, b.gate) for a, b in by_name.values())
    title = f"rest of the mass\n— {OPEN}\n- - {CONFLICT}" if differ else None
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        loc="outside right center",
        fontsize="small",
        title_fontsize="small",
        frameon=False,
        title=title,
        alignment="left",
    )
    return figure


def _draw_pair(
    axis: Axes, index: int, name: str, by_rest: Mapping[str, tuple[Tensor, Tensor]]
) -> None:
    (p, conflict), (_, spread) = by_rest[CONFLICT], by_rest[OPEN]
    style = style_for(index)
    line: dict[str, Any] = {"color": style.color, "linewidth": 1.5, "markersize": 4.5}
    # Markers of neighbors stand apart, so that lines on top of each other are told apart.
    # The eighth line has the color of the first, and another marker.
    marker = style_for(index + index // NUM_COLORS).marker
    line |= {"marker": marker, "markevery": (7 * index % 50, 50)}
    axis.plot(p.numpy(), spread.numpy(), label=name, **line)
    if not torch.equal(conflict, spread):
        axis.plot(p.numpy(), conflict.numpy(), linestyle=(0, (4, 2)), **line)


def curve_rows(curves: Sequence[GateCurve]) -> list[list[str]]:
    """Tabulate the numbers of the figure, the first row their names."""
    rows = [["objective", "rest of the probability", "p", "gate", "focus"]]
    for curve in curves:
        focus = [""] * len(curve.p) if curve.focus is None else [f"{x:.6g}" for x in curve.focus]
        rows += [
            [curve.objective, curve.rest, f"{p:.6g}", f"{gate:.6g}", alpha]
            for p, gate, alpha in zip(curve.p, curve.gate, focus, strict=True)
        ]
    return rows
