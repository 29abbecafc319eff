"""The numbers and figures by which people understand an objective."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from deft.objectives import TokenStats, get_objective, linear_objective
from deft.objectives.diagnostics import (
    LANDSCAPE_STATISTICS,
    draw_gate_dynamics,
    draw_landscapes,
    landscapes,
    summarize_tokens,
)


@pytest.fixture
def head() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    labels = torch.randint(0, 30, (40,))
    labels[::5] = -100
    return torch.randn(40, 8), torch.randn(30, 8), labels


def test_the_landscape_has_the_norm_of_the_logit_gradient(
    head: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    hidden, weight, labels = head
    names = ["original", "DEFT", "OnlyTopP-0.1"]
    stats = linear_objective(hidden, weight, labels, "DEFT", statistics=LANDSCAPE_STATISTICS).stats
    panels = landscapes(stats, [get_objective(name) for name in names])
    assert list(panels) == names
    for name, panel in panels.items():
        # With the identity for a weight, the hidden states are the logits.
        logits = (hidden @ weight.T).requires_grad_()
        linear_objective(logits, torch.eye(30), labels, name, normalizer=1.0).loss.backward()
        assert logits.grad is not None
        assert_close(panel.gradient_norm, logits.grad[labels != -100].norm(dim=-1))


def test_the_summary_counts_targets_only() -> None:
    logp = torch.tensor([-0.1, -2.0, -1.0, 0.0])
    mask = torch.tensor([True, True, True, False])
    stats = TokenStats(logp=logp, p=logp.exp(), mask=mask, entropy=torch.tensor([1.0, 2, 3, 99]))
    summary = summarize_tokens(
        stats,
        gate=torch.tensor([1.0, 0.0, 0.5, 0.0]),
        kept=torch.tensor([True, False, True, False]),
        focus=torch.tensor([0.2, 0.0, 0.4, 0.0]),
    )
    assert summary["nll"] == pytest.approx(3.1 / 3)
    assert summary["entropy"] == pytest.approx(2)
    assert summary["gate"] == pytest.approx(0.5)
    assert summary["focus"] == pytest.approx(0.3)
    assert summary["kept_share"] == pytest.approx(2 / 3)
    assert summary["p_q50"] == pytest.approx(math.exp(-1), rel=1e-6)
    assert (summary["gate_q05"], summary["gate_q95"]) == (0.0, 1.0)
    assert "concentration" not in summary


def test_no_target_no_summary() -> None:
    nothing = torch.zeros(2)
    stats = TokenStats(logp=nothing, p=nothing, mask=nothing > 0)
    assert summarize_tokens(stats, gate=nothing, kept=nothing > 0) == {}


def test_figures_draw_every_objective(
    head: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    hidden, weight, labels = head
    stats = linear_objective(hidden, weight, labels, "DEFT", statistics=LANDSCAPE_STATISTICS).stats
    panels = landscapes(stats, [get_objective(name) for name in ("original", "DEFT")])
    figure = draw_landscapes(panels)
    figure.canvas.draw()
    assert [axis.get_title() for axis in figure.axes[:2]] == ["original", "DEFT"]
    assert all(np.shape(axis.collections[0].get_offsets())[0] == 32 for axis in figure.axes[:2])

    steps = [0.0, 1.0, 2.0]
    figure = draw_gate_dynamics(
        {
            "original": {"step": steps, "gate": [1.0, 1, 1], "p": [0.1, 0.2, 0.3]},
            "DEFT": {"step": steps, "gate": [0.5, 0.6, 0.7], "p": [0.1, 0.2, 0.3], "focus": steps},
        }
    )
    figure.canvas.draw()
    assert [len(axis.lines) for axis in figure.axes] == [2, 1, 2]
    looks = {(line.get_linestyle(), line.get_marker()) for line in figure.axes[0].lines}
    assert len(looks) == 2


def test_landscapes_wrap_after_four() -> None:
    panel = landscapes(
        TokenStats(
            logp=torch.tensor([-1.0]),
            p=torch.tensor([0.5]),
            mask=torch.tensor([True]),
            concentration=torch.tensor([0.4]),
            entropy=torch.tensor([1.0]),
        ),
        [get_objective("original")],
    )["original"]
    figure = draw_landscapes({f"objective {i} $x_{{": panel for i in range(6)})
    drawn = [axis for axis in figure.axes if axis.get_title().startswith("objective")]
    assert len(drawn) == 6
    low, high = drawn[0].get_ylim()
    assert low < 0 < 1 < high, "the one token, of entropy 1, lies within the frame"
    positions = [axis.get_subplotspec() for axis in drawn]
    assert [(p.rowspan.start, p.colspan.start) for p in positions if p is not None] == [
        (0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1),
    ]  # fmt: skip
    figure.draw_without_rendering()


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one objective"):
        draw_landscapes({})
    with pytest.raises(ValueError, match="at least one objective"):
        draw_gate_dynamics({})
