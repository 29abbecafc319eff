"""The deformed-log family: value (1 − p^α)/α, gate p^α, focus α.

α → 0 is the negative log-likelihood (cover what is unknown), α = 1 is 1 − p (sharpen what is
known). GeneralFamily fixes α; Cayley_Trans and DEFT read it off the prediction, token by token.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deft.objectives.base import ObjectiveOutput, TokenStats, objective

_LEAST_ALPHA = 1e-30
"""Least size of α that float32 can divide by; there the family is its limit to all digits."""


@objective()
def original(stats: TokenStats) -> ObjectiveOutput:
    """−ℓ; gate 1. Every target token, all alike: standard SFT."""
    return ObjectiveOutput(value=-stats.logp, gate=torch.ones_like(stats.logp))


@objective()
def probability(stats: TokenStats) -> ObjectiveOutput:
    """1 − p; gate p. Every target token, in proportion to its probability (arXiv 2510.00526)."""
    return ObjectiveOutput(value=-torch.expm1(stats.logp), gate=stats.p)


@objective()
def general_family(stats: TokenStats, *, alpha: float) -> ObjectiveOutput:
    """(1 − p^α)/α; gate p^α. Every target token (arXiv 2510.00526).

    A negative α weighs improbable tokens up instead of down.
    """
    focus = torch.full_like(stats.logp, math.copysign(max(abs(alpha), _LEAST_ALPHA), alpha))
    return _deformed_log(stats.logp, focus, epsilon=0.0)


@objective(token_local=False)
def cayley(stats: TokenStats) -> ObjectiveOutput:
    """−(exp(αℓ) − 1)/(α + 1e-8); gate α/(α + 1e-8) · p^α. Every target token (arXiv 2602.11424).

    α = sg(clamp(f + (1 − f)·a, 0.001, 1)), where a = (1 − d)/(1 + d + 1e-8) is the Cayley transform
    of the token's surprise d = 1 − p + 1e-8, and f is half the mean p of the micro-batch's target
    tokens, or of the whole step where `step_mean_p` is given.
    """
    floor = 0.5 * (_mean_p(stats) if stats.step_mean_p is None else stats.step_mean_p)
    distance = 1 - stats.p + 1e-8
    transform = (1 - distance) / (1 + distance + 1e-8)
    focus = (floor + (1 - floor) * transform).clamp(0.001, 1)
    return _deformed_log(stats.logp, focus, epsilon=1e-8)


@objective(needs={"concentration"})
def deft(stats: TokenStats) -> ObjectiveOutput:
    """−(exp(αℓ) − 1)/(α + 1e-6); gate α/(α + 1e-6) · p^α. Every target token (arXiv 2602.11424).

    α = sg(Σ_v P_v²). At a nearly uniform prediction over a large vocabulary α is of the order of
    1e-6 itself and the gate falls short of p^α; DEFT_exact is the same without that constant.
    """
    return _deformed_log(stats.logp, stats.require("concentration"), epsilon=1e-6)


@objective(needs={"concentration"})
def deft_exact(stats: TokenStats) -> ObjectiveOutput:
    """(1 − p^α)/α; gate p^α, with α = sg(Σ_v P_v²). Every target token.

    DEFT (arXiv 2602.11424) without its 1e-6, which at a uniform prediction over 152k tokens takes
    13 % off the gate.
    """
    return _deformed_log(stats.logp, stats.require("concentration"), epsilon=0.0)


def _deformed_log(logp: Tensor, focus: Tensor, *, epsilon: float) -> ObjectiveOutput:
    # expm1 keeps the digits that exp(x) − 1 loses where α or ℓ is small.
    exponent = focus * logp
    value = -torch.expm1(exponent) / (focus + epsilon)
    gate = focus / (focus + epsilon) * exponent.exp()
    return ObjectiveOutput(value=value, gate=gate, focus=focus)


def _mean_p(stats: TokenStats) -> Tensor:
    return (stats.p * stats.mask).sum() / stats.mask.sum().clamp(min=1)
