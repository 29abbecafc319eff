"""Objectives that weigh each token's NLL by what the model believes there.

Where the weight is detached, sg(w)·(−ℓ), the gate is the weight itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deft.objectives.base import ObjectiveOutput, TokenStats, objective


@objective()
def dft(stats: TokenStats) -> ObjectiveOutput:
    """−sg(p)·ℓ; gate sg(p). Every target token (arXiv 2508.05629).

    Its gradient is that of `p`; only the logged value differs.
    """
    return weighted_nll(stats, stats.p)


@objective()
def dft_floor(stats: TokenStats, *, floor: float) -> ObjectiveOutput:
    """−sg(max(p, floor))·ℓ; gate sg(max(p, floor)). Every target token.

    The DFT author's suggestion for data that the model does not know yet
    (github.com/yongliang-wu/DFT/issues/1).
    """
    return weighted_nll(stats, stats.p.clamp(min=floor))


@objective(needs={"entropy_top"})
def eaft(stats: TokenStats, *, a: float) -> ObjectiveOutput:
    """−sg(H̃^a)·ℓ; gate sg(H̃^a). Every target token, open questions most (arXiv 2601.02151).

    H̃ is the entropy in nats of the 20 largest logits renormalized among themselves, divided by
    3.0 (about ln 20), as in LLaMA-Factory.
    """
    return weighted_nll(stats, (stats.require("entropy_top") / 3.0).clamp(min=0) ** a)


@objective(needs={"entropy_top"}, top_k=lambda a, k: k)
def eaft_unscaled(stats: TokenStats, *, a: float, k: int) -> ObjectiveOutput:
    """−sg(H^a)·ℓ; gate sg(H^a). Every target token, open questions most.

    EAFT (arXiv 2601.02151) as Axolotl has it: the entropy of the top k (its `eaft_k`) is not
    divided, which at a = 1 and k = 20 makes every gate three times that of `EAFT`.
    """
    return weighted_nll(stats, stats.require("entropy_top").clamp(min=0) ** a)


@objective(needs={"entropy"})
def idft(stats: TokenStats, *, beta: float, gamma_min: float, gamma_max: float) -> ObjectiveOutput:
    """−p^γ·ℓ; gate p^γ·(1 + γ·ℓ). Every target token, what the model might have said most.

    IDFT (arXiv 2602.12222): γ = sg(clamp(exp(−(ℓ + H)/β), γ_min, γ_max)) from the centered
    log-likelihood. As in its code γ alone is detached, so a token of p < exp(−1/γ) is pushed down;
    its warm-up, which mixes γ = 1 in at first, is left out.
    """
    centered = stats.logp.detach() + stats.require("entropy")
    gamma = torch.exp(-centered / beta).clamp(gamma_min, gamma_max)
    power = torch.exp(gamma * stats.logp)
    return ObjectiveOutput(value=-power * stats.logp, gate=power * (1 + gamma * stats.logp))


@objective()
def chord_phi(stats: TokenStats) -> ObjectiveOutput:
    """−sg(p(1 − p))·ℓ; gate p(1 − p). Every target token, the undecided most (arXiv 2508.11408).

    The weight φ of the paper's SFT term, detached; the paper runs it beside an RL term.
    """
    return weighted_nll(stats, stats.p * -torch.expm1(stats.logp))


@objective()
def focal(stats: TokenStats, *, gamma: float) -> ObjectiveOutput:
    """−(1 − p)^γ·ℓ; gate (1 − p)^γ − γ·p·(1 − p)^(γ−1)·ℓ. Every target token, the hard ones most.

    Focal loss (arXiv 1708.02002, equation 4), not detached: the weight has its own gradient.
    """
    q = -torch.expm1(stats.logp)
    # ℓ·(1 − p)^(γ−1) has a limit at p → 1 that ℓ / (1 − p) → −1 gives without dividing by 0.
    ratio = torch.where(q > 0, stats.logp / q, -torch.ones_like(q))
    weight = q**gamma
    return ObjectiveOutput(
        value=-weight * stats.logp, gate=weight - gamma * stats.p * weight * ratio
    )


def weighted_nll(stats: TokenStats, weight: Tensor) -> ObjectiveOutput:
    """Weigh the NLL by sg(weight)."""
    weight = weight.detach()
    return ObjectiveOutput(value=-weight * stats.logp, gate=weight)
