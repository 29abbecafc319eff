"""Objectives that weigh a token by other models' log-probabilities, or by its example.

ℓ_R is the log-probability under the frozen reference, ℓ_0 under the model before training, ℓ_old
under the model at the last refresh; see `TokenStats`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deft.objectives.base import ObjectiveOutput, TokenStats, objective
from deft.objectives.functions.weighted import weighted_nll


@objective(needs={"reference_logp", "example"}, token_local=False)
def iw_sft(stats: TokenStats, *, temperature: float, high: float) -> ObjectiveOutput:
    """−sg(w)·ℓ; gate sg(w), w = clip(exp(T·mean(ℓ − ℓ_R)), 0, high). Every target token.

    Importance-weighted SFT (arXiv 2507.12856): the mean is over the target tokens of an example,
    all of which share its weight. T is 1 as its trainer runs; the published function has 2.
    """
    ratio = stats.logp.detach() - stats.require("reference_logp")
    weight = torch.exp((temperature * _by_example(ratio, stats)).clamp(max=math.log(high)))
    return weighted_nll(stats, weight)


@objective(needs={"reference_logp"})
def iw_sft_token(stats: TokenStats, *, low: float, high: float) -> ObjectiveOutput:
    """−sg(w)·ℓ; gate sg(w), w = clip(p/p_R, low, high). Every target token (arXiv 2507.12856)."""
    ratio = stats.logp.detach() - stats.require("reference_logp")
    return weighted_nll(stats, torch.exp(ratio.clamp(max=math.log(high))).clamp(min=low))


@objective(needs={"old_logp"})
def psft(stats: TokenStats, *, high: float) -> ObjectiveOutput:
    """−min(r, 1 + high); gate r·1[r ≤ 1 + high], r = p/p_old. Tokens near the old policy.

    Proximal SFT (arXiv 2508.17784): PPO's clipped surrogate with an advantage of 1, where its lower
    bound never binds.
    """
    bound = math.log1p(high)
    ratio = stats.logp - stats.require("old_logp")
    clipped = torch.exp(ratio.clamp(max=bound))
    return ObjectiveOutput(value=-clipped, gate=clipped.detach() * (ratio <= bound))


@objective(
    needs={"reference_logp", "initial_logp", "example"}, token_local=False, drops_tokens=True
)
def token_cleaning(stats: TokenStats, *, q: float) -> ObjectiveOutput:
    """−ℓ·1[s in its example's top share q]; s = ℓ_R − ℓ_0. Tokens worth learning.

    Token cleaning (arXiv 2502.01968) with a fixed pair of models, per sample: a token's score is
    how much better the reference predicts it than the model before training. An example keeps
    ⌊q · its tokens⌋, as in its code; ties with the last of them are kept too.
    """
    score = stats.require("reference_logp") - stats.require("initial_logp")
    example = stats.require("example")
    keep = torch.zeros_like(stats.mask)
    for number in torch.unique(example[stats.mask]).tolist():
        tokens = stats.mask & (example == number)
        # 12 digits suffice to keep 0.6 · 5 from counting as a bit less than 3.
        count = int(round(q * int(tokens.sum()), 12))
        if count:
            keep |= tokens & (score >= score[tokens].topk(count).values[-1])
    return ObjectiveOutput(value=-stats.logp * keep, gate=keep.to(stats.logp.dtype), keep=keep)


@objective(needs={"example"}, token_local=False)
def talr(stats: TokenStats, *, floor: float) -> ObjectiveOutput:
    """−sg(w)·ℓ; gate sg(w), w = max(p^(1/τ), floor). Every target token, hard ones least.

    Token-adaptive loss reweighting (arXiv 2509.20758): weights proportional to exp(−loss/τ), the
    temperature τ the median over the micro-batch's examples of their mean loss. Its authors
    published no code; the floor and the mean over all target tokens are others' re-implementation.
    """
    if not bool(stats.mask.any()):
        return weighted_nll(stats, torch.ones_like(stats.logp))
    logp, example = stats.logp.detach(), stats.require("example")
    # One value an example: its first token's.
    is_first = torch.cat([example.new_ones(1), example.diff()]) != 0
    # Of an even number the lower loss is the median, as `torch.median` has it.
    temperature = (-_by_example(logp, stats)[is_first]).median()
    return weighted_nll(stats, torch.exp(logp / temperature.clamp(min=1e-6)).clamp(min=floor))


def _by_example(column: Tensor, stats: TokenStats) -> Tensor:
    """Return at each token the mean of a column [N] over the target tokens of its example."""
    example = stats.require("example")
    if len(example) == 0:
        return column
    number = int(example.max()) + 1
    sums = column.new_zeros(number).index_add_(0, example, column * stats.mask)
    counts = column.new_zeros(number).index_add_(0, example, stats.mask.to(column.dtype))
    return (sums / counts.clamp(min=1))[example]
