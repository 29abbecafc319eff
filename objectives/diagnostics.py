"""Numbers and figures that show what an objective does to a model's tokens.

Everything is read off the statistics of the head's first pass. Figures use one color map of rising
lightness and lines that differ in dash and marker, so they survive color blindness and gray print.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deft.objectives.base import Objective, TokenStats
from deft.objectives.figure_style import style_for

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
LANDSCAPE_STATISTICS = frozenset({"concentration", "entropy"})

_PANEL_INCHES = 3.2
_PANELS_IN_A_ROW = 4


@dataclass(frozen=True)
class TokenLandscape:
    """Where tokens lie and how hard an objective pulls at them; float32 [N] on the CPU."""

    p: Tensor
    """Target probability."""
    entropy: Tensor
    """Shannon entropy of the prediction, in nats."""
    gradient_norm: Tensor
    """Norm of the token's logit gradient before normalization: |gate| · ‖P − e_y‖."""


def token_landscape(stats: TokenStats, gate: Tensor) -> TokenLandscape:
    """Measure the landscape of all tokens under the mask.

    ‖P − e_y‖² = Σ_v P_v² − 2p + 1, so the norm needs no logits. A second error that an objective
    mixes in (label smoothing, GEM, a reference model) is not part of it.

    Args:
        stats: with concentration and entropy.
        gate: [N].
    """
    error = (stats.require("concentration") - 2 * stats.p + 1).clamp(min=0).sqrt()
    mask = stats.mask
    return TokenLandscape(
        p=stats.p[mask].float().cpu(),
        entropy=stats.require("entropy")[mask].float().cpu(),
        gradient_norm=(gate.abs() * error)[mask].float().cpu(),
    )


def landscapes(stats: TokenStats, objectives: Sequence[Objective]) -> dict[str, TokenLandscape]:
    """Measure the landscape of the same tokens under each objective, by its canonical name.

    One pass through the model with the statistics that all objectives need serves them all.
    """
    panels = {}
    for objective in objectives:
        output = objective(stats)
        gate = output.gate if output.keep is None else output.gate * output.keep
        panels[str(objective.spec)] = token_landscape(stats, gate)
    return panels


def summarize_tokens(
    stats: TokenStats, *, gate: Tensor, kept: Tensor, focus: Tensor | None = None
) -> dict[str, float]:
    """Compute means and quantiles over the tokens of a step; empty without a target.

    Over several ranks the means are exact if the ranks' tensors are put together first. Statistics
    that were not computed are left out.

    Args:
        stats: [N], all micro-batches and ranks of the step.
        gate: [N], zero where not kept.
        kept: bool [N].
        focus: [N].
    """
    mask = stats.mask
    if not bool(mask.any()):
        return {}
    columns = {
        "nll": -stats.logp,
        "p": stats.p,
        "gate": gate,
        "concentration": stats.concentration,
        "entropy": stats.entropy,
    }
    summary = {name: _mean(column[mask]) for name, column in columns.items() if column is not None}
    if focus is not None and bool(kept.any()):
        summary["focus"] = _mean(focus[kept])
    summary["kept_share"] = _mean(kept[mask])
    for name, column in (("p", stats.p), ("gate", gate)):
        for quantile, value in zip(QUANTILES, _quantiles(column[mask]), strict=True):
            summary[f"{name}_q{round(100 * quantile):02d}"] = value
    return summary


def draw_landscapes(panels: Mapping[str, TokenLandscape]) -> Figure:
    """Draw p against entropy, colored by the norm of the logit gradient, a panel per objective.

    All panels share one logarithmic color scale; there are four in a row.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    if not panels:
        raise ValueError("no landscape to draw; give at least one objective")
    norms = torch.cat([panel.gradient_norm for panel in panels.values()])
    largest = float(norms.max()) if len(norms) and float(norms.max()) > 0 else 1.0
    entropies = torch.cat([panel.entropy for panel in panels.values()])
    highest = float(entropies.max()) if len(entropies) and float(entropies.max()) > 0 else 1.0
    scale = LogNorm(vmin=1e-3 * largest, vmax=largest, clip=True)
    columns = min(len(panels), _PANELS_IN_A_ROW)
    rows = -(-len(panels) // columns)
    size = (_PANEL_INCHES * columns + 1, _PANEL_INCHES * rows)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axis in grid.flat[len(panels) :]:
        axis.remove()
    axes = grid.flat[: len(panels)]
    for index, (axis, (name, panel)) in enumerate(zip(axes, panels.items(), strict=True)):
        # Tokens with large gradients are few, so they are drawn last, on top of the others.
        order = panel.gradient_norm.argsort()
        dots = axis.scatter(
            panel.p[order].numpy(),
            panel.entropy[order].numpy(),
            c=panel.gradient_norm[order].numpy(),
            norm=scale,
            cmap="cividis_r",
            s=6,
            linewidths=0,
            rasterized=True,
        )
        axis.set_title(name, parse_math=False)
        axis.set_xlim(-0.02, 1.02)
        axis.set_ylim(-0.03 * highest, 1.06 * highest)
        if index + columns >= len(panels):
            axis.set_xlabel("target probability p")
            axis.tick_params(labelbottom=True)
    for axis in grid[:, 0]:
        axis.set_ylabel("entropy (nats)")
    figure.colorbar(dots, ax=list(axes), label="norm of the logit gradient", extend="min")
    return figure


def draw_gate_dynamics(histories: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Draw step means of gate, focus and target probability, one line per objective.

    Args:
        histories: objective → {`step`, `gate`, `p` and optionally `focus`}, equally long; a focus
            is drawn only for objectives that have one.
    """
    from matplotlib.figure import Figure

    if not histories:
        raise ValueError("no history to draw; give at least one objective")
    quantities = [
        (key, label)
        for key, label in (("gate", "mean gate"), ("focus", "mean focus α"), ("p", "mean p"))
        if any(key in history for history in histories.values())
    ]
    figure = Figure(
        figsize=(1.3 * _PANEL_INCHES * len(quantities), _PANEL_INCHES), layout="constrained"
    )
    axes = figure.subplots(1, len(quantities), squeeze=False)[0]
    for axis, (key, label) in zip(axes, quantities, strict=True):
        for index, (name, history) in enumerate(histories.items()):
            if key in history:
                _draw_line(axis, index, name, history["step"], history[key])
        axis.set_xlabel("optimizer step")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize="small")
    return figure


def _draw_line(
    axis: Axes, index: int, name: str, steps: Sequence[float], values: Sequence[float]
) -> None:
    style = style_for(index)
    axis.plot(
        steps,
        values,
        label=name,
        color=style.color,
        linestyle=style.linestyle,
        marker=style.marker,
        markevery=max(1, len(steps) // 8),
        markersize=4,
    )


def _mean(column: Tensor) -> float:
    return float(column.double().mean())


def _quantiles(column: Tensor) -> list[float]:
    """Compute nearest-rank quantiles; `torch.quantile` refuses more than 16 million values."""
    ordered = column.float().sort().values
    return [float(ordered[round(quantile * (len(ordered) - 1))]) for quantile in QUANTILES]
