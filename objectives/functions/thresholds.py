"""Objectives that keep some tokens and drop the rest, by the target's probability.

A dropped token leaves the loss and its normalizer. `Only*` compares p with a fixed threshold
(arXiv 2510.00526); `*Quantile*` keeps a fixed share of the micro-batch's target tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deft.objectives.base import ObjectiveOutput, TokenStats, objective


@objective(drops_tokens=True)
def only_top_p(stats: TokenStats, *, q: float) -> ObjectiveOutput:
    """(1 − p)·1[p ≥ q]; gate p·1[p ≥ q]. Tokens that the model trusts (arXiv 2510.00526)."""
    return _probability(stats, stats.p >= q)


@objective(drops_tokens=True)
def only_bottom_p(stats: TokenStats, *, q: float) -> ObjectiveOutput:
    """(1 − p)·1[p ≤ q]; gate p·1[p ≤ q]. Tokens that the model distrusts (arXiv 2510.00526)."""
    return _probability(stats, stats.p <= q)


@objective(drops_tokens=True)
def only_top_logp(stats: TokenStats, *, q: float) -> ObjectiveOutput:
    """−ℓ·1[p ≥ q]; gate 1[p ≥ q]. Tokens that the model trusts (arXiv 2510.00526)."""
    return _log_probability(stats, stats.p >= q)


@objective(drops_tokens=True)
def only_bottom_logp(stats: TokenStats, *, q: float) -> ObjectiveOutput:
    """−ℓ·1[p ≤ q]; gate 1[p ≤ q]. Tokens that the model distrusts (arXiv 2510.00526)."""
    return _log_probability(stats, stats.p <= q)


@objective()
def profit(stats: TokenStats, *, q: float, most: float) -> ObjectiveOutput:
    """−ℓ·1[q ≤ p ≤ most]; gate 1[q ≤ p ≤ most]. Tokens of a band (arXiv 2601.09195).

    Masked tokens stay in the normalizer, as in its code, where all target tokens of the step are
    counted: `OnlyTopLogP` divides by those that are kept.
    """
    inside = ((stats.p >= q) & (stats.p <= most)).to(stats.logp.dtype)
    return ObjectiveOutput(value=-stats.logp * inside, gate=inside)


@objective(token_local=False, drops_tokens=True)
def top_quantile_p(stats: TokenStats, *, q: float) -> ObjectiveOutput:
    """1 − p; gate p. The share q of the micro-batch's target tokens with the largest p."""
    return _probability(stats, _most(stats.logp, stats.mask, q))


@objective(token_local=False, drops_tokens=True)
def bottom_quantile_p(stats: TokenStats, *, q: float) -> ObjectiveOutput:
    """1 − p; gate p. The share q of the micro-batch's target tokens with the smallest p."""
    return _probability(stats, _most(-stats.logp, stats.mask, q))


@objective(token_local=False, drops_tokens=True)
def top_quantile_logp(stats: TokenStats, *, q: float) -> ObjectiveOutput:
    """−ℓ; gate 1. The share q of the micro-batch's target tokens with the largest p."""
    return _log_probability(stats, _most(stats.logp, stats.mask, q))


@objective(token_local=False, drops_tokens=True)
def bottom_quantile_logp(stats: TokenStats, *, q: float) -> ObjectiveOutput:
    """−ℓ; gate 1. The share q of the micro-batch's target tokens with the smallest p."""
    return _log_probability(stats, _most(-stats.logp, stats.mask, q))


def _probability(stats: TokenStats, keep: Tensor) -> ObjectiveOutput:
    keep = keep & stats.mask
    return ObjectiveOutput(value=-torch.expm1(stats.logp) * keep, gate=stats.p * keep, keep=keep)


def _log_probability(stats: TokenStats, keep: Tensor) -> ObjectiveOutput:
    keep = keep & stats.mask
    return ObjectiveOutput(value=-stats.logp * keep, gate=keep.to(stats.logp.dtype), keep=keep)


def _most(score: Tensor, mask: Tensor, share: float) -> Tensor:
    """Select the ⌈share · their number⌉ tokens under the mask with the largest score; bool [N].

    Tokens that tie with the last of them are kept too, so the order of tokens has no influence.
    """
    candidates = score[mask]
    if len(candidates) == 0:
        return torch.zeros_like(mask)
    # 12 digits suffice to keep 0.1 · 30 from counting as 3 and a bit more; a share that they round
    # to nothing is still a token.
    count = max(1, min(len(candidates), math.ceil(round(share * len(candidates), 12))))
    return mask & (score >= candidates.topk(count).values[-1])
