"""Estimates, their uncertainty, and tests of differences. Pure functions of NumPy arrays.

Shapes: I items, S samples per item, R runs of the same thing with other seeds. Items are the units
of resampling everywhere: samples of one item are not independent of each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

RESAMPLES = 10_000
"""Default number of bootstrap resamples."""
_CELLS_AT_ONCE = 2_000_000
"""Counts (resamples × items) that are drawn at once."""
_CELLS_TO_KEEP = 20_000_000
"""Most counts that are kept for the next interval over as many items."""


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


def pass_at_k(num_correct: NDArray[np.integer[Any]], num_samples: int, k: int) -> float:
    """Estimate the chance that one of k responses is correct, without bias, from n ≥ k of them.

    Mean over items of 1 − C(n − c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374, equation 1).

    Args:
        num_correct: c, correct responses of each item, [I].
        num_samples: n.
        k: between 1 and n.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"k must lie between 1 and {num_samples}, got {k}")
    total = math.comb(num_samples, k)
    fails = [math.comb(num_samples - int(c), k) / total for c in num_correct]
    return 1.0 - math.fsum(fails) / len(fails)


def majority_at_k(
    answers: Sequence[Sequence[str | None]],
    correct: NDArray[np.bool_],
    k: int,
    *,
    seed: int = 0,
    max_subsets: int = 500,
) -> float:
    """Compute the share of items whose most frequent answer among k responses is correct (maj@k).

    "Self-consistency" of Wang et al. 2022 (arXiv 2203.11171), averaged over the subsets of k of an
    item's responses: all of them, or ``max_subsets`` drawn at random where there are more. Correct
    answers count as one answer however they are written; others are the same if their text is.
    Responses without an answer have no vote. A tie counts as the chance that a fair draw is right.

    Args:
        answers: the answer in each response, [I][S].
        correct: whether it is right, [I, S].
        k: between 1 and S.
        seed: of the draw of subsets.
        max_subsets: most subsets looked at.
    """
    num_samples = correct.shape[1]
    if not 1 <= k <= num_samples:
        raise ValueError(f"k must lie between 1 and {num_samples}, got {k}")
    if math.comb(num_samples, k) <= max_subsets:
        subsets = [list(chosen) for chosen in combinations(range(num_samples), k)]
    else:
        rng = np.random.default_rng(seed)
        subsets = [rng.choice(num_samples, k, replace=False).tolist() for _ in range(max_subsets)]
    votes = [
        [("right", "") if good else ("other", text) if text is not None else None
         for text, good in zip(texts, goods, strict=True)]
        for texts, goods in zip(answers, correct.tolist(), strict=True)
    ]  # fmt: skip
    return float(
        np.mean([_vote([item[i] for i in chosen]) for item in votes for chosen in subsets])
    )


def _vote(ballots: Sequence[tuple[str, str] | None]) -> float:
    counts: dict[tuple[str, str], int] = {}
    for ballot in ballots:
        if ballot is not None:
            counts[ballot] = counts.get(ballot, 0) + 1
    most = max(counts.values(), default=0)
    winners = [ballot for ballot, count in counts.items() if count == most]
    return sum(ballot[0] == "right" for ballot in winners) / len(winners) if winners else 0.0


def standard_error(values: Floats) -> float:
    """Compute the sample standard deviation over √I; NaN for a single value."""
    return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else math.nan


def bootstrap_interval(
    values: Floats,
    *,
    weights: Floats | None = None,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Compute the percentile bootstrap interval of a mean over items (Efron & Tibshirani 1993).

    With several runs, [R, I], it is hierarchical: a resample draws runs, then items, the same for
    all runs, as all are measured on the same items. It then covers both sources of chance.

    Args:
        values: one value an item, [I], or [R, I].
        weights: of the items, [I]: the mean is Σ w·x / Σ w, as for a rate per token.
        level: coverage.
        resamples: number of resamples.
        seed: of the resampling, so that the same data gives the same interval.
    """
    means = _bootstrap_means(np.atleast_2d(values), weights, resamples, seed)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(low), float(high))


def _bootstrap_means(
    values: Floats, weights: Floats | None, resamples: int, seed: int
) -> NDArray[np.float64]:
    """Compute the means of the resamples of ``values`` [R, I], float64 [resamples]."""
    num_runs, num_items = values.shape
    w = np.ones(num_items) if weights is None else np.asarray(weights, dtype=np.float64)
    weighted = np.asarray(values * w, dtype=np.float64)
    small = num_items * resamples <= _CELLS_TO_KEEP
    draws = (_kept_draws if small else _draws)(num_runs, num_items, resamples, seed)
    parts = []
    for item_counts, runs in draws:
        counts = item_counts.astype(np.float64)
        parts.append(np.einsum("br,rb->b", runs, weighted @ counts.T) / (counts @ w))
    return np.concatenate(parts)


def _draws(
    num_runs: int, num_items: int, resamples: int, seed: int
) -> Iterator[tuple[NDArray[np.unsignedinteger[Any]], NDArray[np.float64]]]:
    """Draw how often each item and each run is in a resample, [b, I] and [b, R], b at a time."""
    rng = np.random.default_rng(seed)
    at_once = max(1, _CELLS_AT_ONCE // num_items)
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        # How often each item is drawn is all that its mean depends on.
        counts = rng.multinomial(num_items, np.full(num_items, 1 / num_items), size=size)
        runs = rng.multinomial(num_runs, np.full(num_runs, 1 / num_runs), size=size) / num_runs
        yield counts.astype(np.uint32 if num_items > 65_535 else np.uint16), runs


@lru_cache(maxsize=4)
def _kept_draws(
    num_runs: int, num_items: int, resamples: int, seed: int
) -> list[tuple[NDArray[np.unsignedinteger[Any]], NDArray[np.float64]]]:
    """Make `_draws` once: drawing takes most of the time, and many runs share their items."""
    return list(_draws(num_runs, num_items, resamples, seed))


class Difference(NamedTuple):
    """How a second run differs from a first on the same items."""

    mean: float
    """Second minus first."""
    interval: Interval
    p_value: float
    """Two-sided."""
    detectable: float
    """Smallest true difference found with 80 % power at the 5 % level, see `detectable_effect`."""
    num_items: int


def paired_difference(
    first: Floats,
    second: Floats,
    *,
    weights: Floats | None = None,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Compare second with first by a paired bootstrap over items (Efron & Tibshirani 1993, 16.4).

    The p-value is the share of resamples of the differences, centred at zero, that lie at least as
    far from zero as what was seen, (count + 1) / (resamples + 1) (Davison & Hinkley 1997).

    Args:
        first: one value an item, [I], or [R, I] with seeds, see `bootstrap_interval`.
        second: likewise, run by run and item by item beside ``first``.
        weights: see `bootstrap_interval`.
        level: coverage of the interval.
        resamples: number of resamples.
        seed: of the resampling.

    Raises:
        ValueError: the shapes differ, or there are no items.
    """
    if first.shape != second.shape or first.shape[-1] == 0:
        raise ValueError(f"expected the same items, got {first.shape} and {second.shape}")
    differences = np.atleast_2d(np.asarray(second, dtype=np.float64) - first)
    w = np.ones(differences.shape[1]) if weights is None else np.asarray(weights, np.float64)
    mean = float((differences.mean(0) * w).sum() / w.sum())
    means = _bootstrap_means(differences, weights, resamples, seed)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    # Rounding must not part resamples that are equal to what was seen.
    at_least_as_far = np.abs(means - mean) >= abs(mean) - 1e-12
    p_value = (int(at_least_as_far.sum()) + 1) / (resamples + 1)
    contributions = (differences.mean(0) - mean) * w / w.mean()
    return Difference(
        mean=mean,
        interval=Interval(float(low), float(high)),
        p_value=p_value,
        detectable=detectable_effect(contributions),
        num_items=differences.shape[1],
    )


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Test by McNemar's exact test whether two runs are right equally often on the same items.

    Of the items that one run alone has right, each run should have half: a binomial test
    (McNemar 1947; exact form as in Fagerland et al. 2013). 1 if they disagree nowhere.
    """
    from scipy.stats import binomtest

    if first.shape != second.shape:
        raise ValueError(f"expected the same items, got {first.shape} and {second.shape}")
    only_first = int((first & ~second).sum())
    only_second = int((second & ~first).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second).pvalue)


def detectable_effect(differences: Floats, *, level: float = 0.05, power: float = 0.8) -> float:
    """Compute the minimum detectable effect of a paired comparison with as many items as these.

    (z(1 − level/2) + z(power)) · s / √I, s the standard deviation of the paired differences
    (Card et al. 2020, arXiv 2010.06595; Miller 2024, arXiv 2411.00640, section 5). NaN for one.
    """
    from scipy.stats import norm

    z = float(norm.ppf(1 - level / 2) + norm.ppf(power))
    return z * standard_error(np.asarray(differences, dtype=np.float64))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for multiple comparisons (Holm 1979); they keep their order.

    Below a level α, all of them together are false alarms with a chance of at most α.
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def expected_calibration_error(
    confidence: Floats, correct: NDArray[np.bool_], *, bins: int = 15
) -> float:
    """Compute the mean distance between confidence and accuracy over bins of equal width.

    Each bin counts by its share of the predictions (Naeini et al. 2015; Guo et al. 2017,
    arXiv 1706.04599, equation 3).

    Args:
        confidence: probability of the predicted class, [N], in [0, 1].
        correct: whether the prediction is right, [N].
        bins: number of bins.
    """
    index = np.minimum((np.asarray(confidence) * bins).astype(np.int64), bins - 1)
    sums = np.bincount(index, weights=np.asarray(confidence, dtype=np.float64), minlength=bins)
    hits = np.bincount(index, weights=correct.astype(np.float64), minlength=bins)
    return float(np.abs(sums - hits).sum() / len(index))
