"""Per-token statistics of a few rows of logits, on the way to their softmax.

Written in place and meant for rows that stay in cache: every pass over [R, V] here reads what the
one before has just written. All is float32 or float64, whatever the model's dtype: a logit in
bfloat16 is off by up to its size · 2⁻⁹, which through the exponential is a relative error in P.

Everything is relative to the row's largest logit m, so that no exponential overflows and
log Σ e^(z−m) lies between 0 and log V. Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from deft.objectives.base import TOP_K, Target, TokenStats


def soft_cap_(logits: Tensor, cap: float, slope: Tensor | None) -> None:
    """Set logits ← cap · tanh(logits / cap) and slope ← the derivative 1 − tanh²."""
    logits.div_(cap).tanh_()
    if slope is not None:
        torch.mul(logits, logits, out=slope).neg_().add_(1)
    logits.mul_(cap)


class CombinedSums(NamedTuple):
    """Sums over the vocabulary; [M], and [K, M] what its K parts contribute."""

    largest: Tensor
    """The row's largest logit m."""
    shift: Tensor
    """Largest logit of each part, less m; [K, M]."""
    decay: Tensor
    """Its exponential; [K, M]."""
    total: Tensor
    """Σ e^(z−m)."""
    log_total: Tensor
    logp: Tensor
    """Log-probability of the target."""
    concentration: Tensor | None
    entropy: Tensor | None


def combine_parts(
    maxima: Tensor,
    totals: Tensor,
    targets: Tensor,
    squares: Tensor | None = None,
    moments: Tensor | None = None,
) -> CombinedSums:
    """Combine sums [K, M] over K parts of the vocabulary, each relative to its own largest logit n.

    Args:
        maxima: n.
        totals: Σ e^(z−n).
        targets: the target's logit where it is in the part, else 0.
        squares: Σ e^2(z−n), for the concentration.
        moments: Σ (z−n) e^(z−n), for the entropy.
    """
    largest = maxima.amax(0)
    shift = maxima - largest
    decay = shift.exp()
    total = (decay * totals).sum(0)
    log_total = total.log()
    concentration = entropy = None
    if squares is not None:
        concentration = (decay.square() * squares).sum(0) / total.square()
    if moments is not None:
        # H = log Σ e^(z−m) − Σ (z−m) e^(z−m) / Σ e^(z−m), which loses no digits to a large m.
        entropy = log_total - (decay * (moments + shift * totals)).sum(0) / total
    logp = targets.sum(0) - largest - log_total
    return CombinedSums(largest, shift, decay, total, log_total, logp, concentration, entropy)


def softmax_with_statistics_(
    logits: Tensor,
    labels: Tensor,
    statistics: frozenset[str],
    target: Target | None,
    distribution: Tensor | None,
    scratch: Tensor,
    step_mean_p: Tensor | None = None,
    top_k: int = TOP_K,
) -> TokenStats:
    """Turn logits [R, V] into their softmax and return the rows' statistics [R].

    Args:
        logits: overwritten.
        labels: int64 [R].
        statistics: names of optional statistics to compute.
        target: kind of the second distribution T, whose divergence is wanted.
        distribution: [R, V], overwritten by T; holds the reference model's logits on entry where
            the target is one. None for the uniform distribution.
        scratch: [R, V], overwritten.
        step_mean_p: handed through.
        top_k: number of largest logits for `entropy_top`.
    """
    # A row's sum is infinite or NaN if one of its logits is; finite logits cannot overflow it.
    # Without this a single −inf would pass as a probability of 0 and hide a broken model.
    finite = logits.sum(-1).isfinite()
    # Gathered before the logits are overwritten. As a difference of logits it keeps its digits
    # where log(softmax) would be log 0 = −inf, at log-probabilities below −103.
    largest = logits.amax(-1, keepdim=True)
    target_logit = logits.gather(1, labels[:, None]) - largest
    entropy = entropy_top = divergence = concentration = None
    if "entropy_top" in statistics:
        top = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values.log_softmax(-1)
        entropy_top = -(top.exp() * top).sum(-1)

    if "entropy" in statistics or target is not None:
        # Both P and log P are needed at once: P in the scratch, log P in place of the logits. The
        # largest probability is e^0 / Σ e^(z−m), so that −log of it is the normalizer and no
        # further pass over the row has to sum exponentials.
        logits.sub_(largest)
        probs = torch.softmax(logits, dim=-1, out=scratch)
        log_normalizer = -probs.amax(-1, keepdim=True).log()
        log_probs = logits.sub_(log_normalizer)
        if target is not None:
            # Before the entropy, which overwrites log P.
            divergence = _divergence(target, log_probs, probs, distribution)
        if "entropy" in statistics:
            entropy = log_probs.mul_(probs).sum(-1).neg_()
        probs = logits.copy_(probs)
    else:
        probs = torch.softmax(logits, dim=-1, out=logits)
        log_normalizer = -probs.amax(-1, keepdim=True).log()

    if "concentration" in statistics:
        concentration = torch.mul(probs, probs, out=scratch).sum(-1)
    logp = (target_logit - log_normalizer).squeeze(1).masked_fill_(~finite, torch.nan)
    return TokenStats(
        logp=logp,
        p=logp.exp(),
        mask=torch.ones_like(finite),
        concentration=concentration,
        entropy=entropy,
        entropy_top=entropy_top,
        top_logp=-log_normalizer.squeeze(1) if "top_logp" in statistics else None,
        divergence=divergence,
        step_mean_p=step_mean_p,
    )


def _divergence(
    target: Target, log_probs: Tensor, probs: Tensor, distribution: Tensor | None
) -> Tensor:
    """Compute D(T, P) [R], leaving T in `distribution`; see `Target`."""
    if distribution is None:
        # T is 1/V everywhere and needs no buffer.
        return -log_probs.mean(-1)
    if target.kind == "tempered":
        # softmax(z / τ) = softmax(log P / τ), since log P is z less a constant per row.
        torch.softmax(log_probs / target.temperature, dim=-1, out=distribution)
        return -(distribution * log_probs).sum(-1)
    log_reference = torch.log_softmax(distribution, dim=-1)
    log_ratio = log_probs - log_reference
    if target.kind == "reference":
        # log(P/R), rather than the difference of two sums over log P and log R: near P = R those
        # are equal in most digits, and the divergence would be what rounding leaves of them.
        torch.exp(log_reference, out=distribution)
        return -(distribution * log_ratio).sum(-1)
    # KL[P ‖ R] has the logit gradient P · (log(P/R) − KL), which is P − T for this T.
    divergence = (probs * log_ratio).sum(-1)
    torch.mul(probs, 1 + divergence[:, None] - log_ratio, out=distribution)
    return divergence
