"""Estimates, their uncertainty, and tests of differences. Pure functions of NumPy arrays.

Shapes: I items, S samples per item, R runs of the same thing with other seeds. Items are the units
of all errors: samples of one item are not independent of each other. docs/statistics.md shows how
often intervals and tests are right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Groups = NDArray[np.integer[Any]]
"""Number of each item's group from 0, [I]: of the seed, where each seed has items of its own."""

MIN_RUNS = 3
"""Fewest runs of which the variance between seeds is estimated."""


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


def estimate_pass_at_k(num_correct: NDArray[np.integer[Any]], num_samples: int, k: int) -> float:
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


class _MeanError(NamedTuple):
    """The error of a mean over items and runs."""

    variance: float
    degrees: float
    """Degrees of freedom of `variance`, for a t distribution."""


def _mean_error(contributions: Floats, groups: Groups | None = None) -> _MeanError:
    """Estimate the variance of the mean of ``contributions`` [R, I].

    Fewer than `MIN_RUNS` runs are averaged, and only items count as drawn at random. From there on
    items and runs both do: in the crossed random-effects model x = mean + item + run + rest the
    mean varies by σ²(item)/I + σ²(run)/R + σ²(rest)/(I·R), each from its mean square. The degrees
    of freedom follow Satterthwaite 1946 with the terms that Hillis 2007 (Statistics in Medicine 26,
    596-619) found to keep the level with few runs. With at least as many ``groups`` of items, their
    sums are what counts as drawn at random.
    """
    num_runs, num_items = contributions.shape
    if groups is not None and len(sizes := np.bincount(groups)) >= MIN_RUNS:
        sums = np.bincount(groups, weights=contributions.mean(0)) - sizes * contributions.mean()
        factor = len(sizes) / (len(sizes) - 1)
        return _MeanError(float(factor * (sums**2).sum() / num_items**2), len(sizes) - 1.0)
    if num_items == 1:
        return _MeanError(math.nan, math.nan)
    centered = contributions - contributions.mean()
    by_item, by_run = centered.mean(0), centered.mean(1)
    over_items = by_item.var(ddof=1) / num_items
    if num_runs < MIN_RUNS:
        return _MeanError(float(over_items), num_items - 1.0)
    over_runs = by_run.var(ddof=1) / num_runs
    rest = (centered - by_item - by_run[:, None]) ** 2
    noise = rest.sum() / ((num_runs - 1) * (num_items - 1)) / (num_runs * num_items)
    # `over_runs` holds the noise already.
    between_items = max(over_items - noise, 0.0)
    variance = over_runs + between_items
    if variance == 0:
        return _MeanError(0.0, math.inf)
    parts = over_runs**2 / (num_runs - 1) + between_items**2 / (num_items - 1)
    return _MeanError(float(variance), float(variance**2 / parts))


def _as_runs(values: Floats, weights: Floats | None) -> tuple[Floats, Floats]:
    """Return values as [R, I] and weights of mean 1 as [I], both float64.

    Raises:
        ValueError: there are no items, or a value is NaN or infinite.
    """
    runs = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if runs.shape[1] == 0:
        raise ValueError("there are no items to compute a mean of")
    if not np.isfinite(runs).all():
        raise ValueError("a value is NaN or infinite: such values cannot be compared")
    if weights is None:
        return runs, np.ones(runs.shape[1])
    return runs, np.asarray(weights, dtype=np.float64) / np.mean(weights)


def _are_shares(runs: Floats, weights: Floats) -> bool:
    """Return whether values lie in [0, 1] and weigh the same, unlike rates per byte."""
    return bool(runs.min() >= 0 and runs.max() <= 1 and np.ptp(weights) == 0)


def _quantile(degrees: float, probability: float) -> float:
    from scipy.special import ndtri, stdtrit

    return float(stdtrit(degrees, probability) if math.isfinite(degrees) else ndtri(probability))


def mean_interval(
    values: Floats,
    *,
    weights: Floats | None = None,
    groups: Groups | None = None,
    level: float = 0.95,
) -> Interval:
    """Compute the confidence interval of a mean over items.

    Values in [0, 1] without weights get Wilson's interval of a proportion (1927), which keeps its
    width at 0 and at 1: for one right or wrong response an item exactly that; otherwise with a
    quantile of the t distribution and the number of items that a proportion of this variance would
    have, as Korn & Graubard 1998 do for surveys. Other values get mean ± t · standard error.

    Args:
        values: one value an item, [I], or with several runs on the same items [R, I]. From
            `MIN_RUNS` runs on the interval covers the choice of items and of seeds, below that only
            that of items.
        weights: of the items, [I]: the mean is Σ w·x / Σ w, as for a rate per token.
        groups: of the items, where each seed has its own: from `MIN_RUNS` groups on the interval
            covers the choice of seeds.
        level: coverage.

    Raises:
        ValueError: there are no items, or a value is NaN or infinite.
    """
    runs, w = _as_runs(values, weights)
    num_runs, num_items = runs.shape
    mean = float((runs.mean(0) * w).mean())
    error = _mean_error((runs - mean) * w, groups)
    if not _are_shares(runs, w):
        half = _quantile(error.degrees, (1 + level) / 2) * math.sqrt(error.variance)
        return Interval(mean - half, mean + half)
    spread = mean * (1 - mean)
    degrees = error.degrees
    if error.variance > 0 and spread > 0:
        size = spread / error.variance * num_items / (num_items - 1)
    else:
        size, degrees = float(num_items), math.inf
    if num_runs == 1 and np.isin(runs, (0, 1)).all():
        degrees = math.inf
    return _wilson(mean, size, _quantile(degrees, (1 + level) / 2))


def _wilson(share: float, size: float, z: float) -> Interval:
    """Solve (share − p)² ≤ z² · p (1 − p) / size for p."""
    middle = share + z**2 / (2 * size)
    half = z * math.sqrt(share * (1 - share) / size + z**2 / (4 * size**2))
    scale = 1 + z**2 / size
    # The ends lie on the share where it is 0 or 1; rounding must not move them.
    low = 0.0 if share == 0 else (middle - half) / scale
    high = 1.0 if share == 1 else (middle + half) / scale
    return Interval(max(low, 0.0), min(high, 1.0))


class Difference(NamedTuple):
    """The difference of a second run to a first on the same items."""

    mean: float
    """Second minus first."""
    interval: Interval
    p_value: float
    """Two-sided."""
    detectable: float
    """Smallest true difference found with 80 % power at the 5 % level."""
    num_items: int
    over_runs: bool
    """Whether interval and p-value count the runs as drawn at random, not only the items."""


def paired_difference(
    first: Floats,
    second: Floats,
    *,
    weights: Floats | None = None,
    groups: Groups | None = None,
    level: float = 0.95,
) -> Difference:
    """Compare second with first on the same items by a t test on the paired differences.

    The variance is that of `mean_interval`, with two items added to the data: one above the mean
    difference and one below, as far from it as items that differ are from 0 on average (root mean
    square), or 1 where none differs. So the interval has a width where no item differs, much like
    that of Bonett & Price 2012 for two proportions (Journal of Educational and Behavioral
    Statistics 37, 479-488). p is at least 2^(1 − n), n the number of items that differ, as a test
    by random signs could give no less.

    Args:
        first: one value an item, [I], or [R, I] with seeds, see `mean_interval`.
        second: likewise, run by run and item by item beside ``first``.
        weights: see `mean_interval`.
        groups: likewise; no items are added then.
        level: coverage of the interval.

    Raises:
        ValueError: the shapes differ, there are no items, or a value is NaN or infinite.
    """
    if first.shape != second.shape or first.shape[-1] == 0:
        raise ValueError(f"expected the same items, got {first.shape} and {second.shape}")
    first_runs, w = _as_runs(first, weights)
    second_runs, _ = _as_runs(second, weights)
    differences = second_runs - first_runs
    num_runs, num_items = differences.shape
    mean = float((differences.mean(0) * w).mean())
    contributions = (differences - mean) * w
    are_shares = _are_shares(first_runs, w) and _are_shares(second_runs, w)
    by_item = differences.mean(0)
    by_item = by_item[by_item != 0]
    distance = math.sqrt(float((by_item**2).mean())) if len(by_item) else float(are_shares)
    added = np.broadcast_to([distance, -distance], (num_runs, 2))
    unchanged = _mean_error(contributions, groups)
    over_runs = (num_runs if groups is None else len(np.unique(groups))) >= MIN_RUNS
    error = unchanged
    if groups is None or not over_runs:
        error = _mean_error(np.concatenate([contributions, added], axis=1))
    # The added items say nothing of how well the variance is known.
    degrees = float(np.fmin(unchanged.degrees, error.degrees))
    half = _quantile(degrees, (1 + level) / 2) * math.sqrt(error.variance)
    low, high = mean - half, mean + half
    p_value = 1.0
    if len(by_item) and error.variance > 0:
        t = abs(mean) / math.sqrt(error.variance)
        p_value = max(2 * _tail(degrees, t), 2.0 ** (1 - len(by_item)))
    return Difference(
        mean=mean,
        interval=Interval(max(low, -1.0), min(high, 1.0)) if are_shares else Interval(low, high),
        p_value=min(p_value, 1.0),
        detectable=_detectable(unchanged)
        if over_runs
        else detectable_effect(contributions.mean(0)),
        num_items=num_items,
        over_runs=over_runs,
    )


def _tail(degrees: float, t: float) -> float:
    from scipy.special import ndtr, stdtr

    return float(stdtr(degrees, -t) if math.isfinite(degrees) else ndtr(-t))


def _detectable(error: _MeanError) -> float:
    """Compute `detectable_effect` from the error of a mean over seeds."""
    quantiles = _quantile(error.degrees, 0.975) + _quantile(error.degrees, 0.8)
    return quantiles * math.sqrt(error.variance)


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

    Raises:
        ValueError: one is no number between 0 and 1.
    """
    if not all(0 <= p_value <= 1 for p_value in p_values):
        raise ValueError(f"expected p-values between 0 and 1, got {list(p_values)}")
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
