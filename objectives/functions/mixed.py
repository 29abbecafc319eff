"""Objectives with a second distribution T: logit gradient gate · (P − e_y) + mix · (P − T).

`stats.divergence` is the D(T, P) whose logit gradient is P − T; see `Target`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deft.objectives.base import ObjectiveOutput, Target, TokenStats, objective


@objective(target=lambda epsilon: Target("uniform"))
def label_smoothing(stats: TokenStats, *, epsilon: float) -> ObjectiveOutput:
    """(1 − ε)·(−ℓ) + ε·mean_v(−log P_v); gate 1 − ε, mix ε, T uniform. Every target token.

    Szegedy et al., arXiv 1512.00567, section 7.
    """
    return _anchored(stats, torch.full_like(stats.p, 1 - epsilon), mix=epsilon)


@objective(target=lambda beta: Target("tempered", temperature=beta))
def gem(stats: TokenStats, *, beta: float) -> ObjectiveOutput:
    """−Σ_v q_v·(ℓ − log P_v); gate 1, mix −1, T = q = sg softmax(z/β). Every target token.

    GEM with linear h (arXiv 2408.16673; code liziniu/GEM): the logit gradient is q − e_y, so
    probability is taken from the alternatives that the sharpened model prefers.
    """
    return _anchored(stats, torch.ones_like(stats.p), mix=-1.0)


@objective(target=lambda lam: Target("reference"))
def asft(stats: TokenStats, *, lam: float) -> ObjectiveOutput:
    """−sg(p)·ℓ + λ·KL[R ‖ P]; gate sg(p), mix λ, T = R, the frozen model. Every target token.

    DFT anchored by the forward KL divergence over the whole vocabulary: arXiv 2509.23753, as in its
    code.
    """
    return _anchored(stats, stats.p, mix=lam)


@objective(target=lambda lam: Target("reference_reverse"))
def asft_reverse(stats: TokenStats, *, lam: float) -> ObjectiveOutput:
    """−sg(p)·ℓ + λ·KL[P ‖ R]; gate sg(p), mix λ. Every target token.

    DFT anchored by the reverse KL divergence, over the whole vocabulary, which arXiv 2509.23753 has
    the other way round; λ does not carry over from `ASFT`.
    """
    return _anchored(stats, stats.p, mix=lam)


@objective(target=lambda lam: Target("reference"))
def sft_kl(stats: TokenStats, *, lam: float) -> ObjectiveOutput:
    """−ℓ + λ·KL[R ‖ P]; gate 1, mix λ, T = R, the frozen model. Every target token.

    The baseline of that name in the code of arXiv 2509.23753.
    """
    return _anchored(stats, torch.ones_like(stats.p), mix=lam)


@objective(target=lambda lam: Target("reference_reverse"))
def sft_kl_reverse(stats: TokenStats, *, lam: float) -> ObjectiveOutput:
    """−ℓ + λ·KL[P ‖ R]; gate 1, mix λ. Every target token.

    `SFT_KL` with the divergence turned round.
    """
    return _anchored(stats, torch.ones_like(stats.p), mix=lam)


def _anchored(stats: TokenStats, weight: Tensor, *, mix: float) -> ObjectiveOutput:
    """Combine to sg(weight)·(−ℓ) + mix·D(T, P)."""
    return ObjectiveOutput(
        value=-weight * stats.logp + mix * stats.require("divergence"),
        gate=weight,
        mix=torch.full_like(stats.p, mix),
    )
