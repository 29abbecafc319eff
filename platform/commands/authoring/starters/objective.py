"""An objective of one's own.

    deft check MODULE:doubt              # is the gate right, what does it do, what does it cost
    deft check "MODULE:doubt(floor=0.2)"  # the same with a parameter
    deft run --dataset figfont --model tiny --objective MODULE:doubt

An objective is a function from statistics of the model's prediction at each target token, tensors
of shape [N], to a value and a gate. The value is what is summed into the loss; the gate is its
derivative −∂value/∂log p, with everything held fixed that is not meant to have a gradient. The
gradient in the logits is then gate · (P − e_y): P the prediction, e_y the target.
"""

from __future__ import annotations

import torch

from deft.objectives import ObjectiveOutput, TokenStats, objective


# `needs` names what is read beside log p and p: entropy, concentration (Σ P²), top_logp,
# entropy_top. Only what is named is computed. See `TokenStats` in objectives/base.py for all.
# A function that takes means over tokens declares token_local=False, one that returns `keep`
# declares drops_tokens=True.
@objective(needs={"entropy"})
def doubt(stats: TokenStats, *, floor: float = 0.0) -> ObjectiveOutput:
    """−sg(w) · log p with w = max(1 − exp(−H), floor): certain predictions are left alone."""
    weight = (1 - torch.exp(-stats.require("entropy"))).clamp(min=floor)
    # The weight is read off statistics that are detached, so it is held fixed.
    return ObjectiveOutput(value=-weight * stats.logp, gate=weight)
