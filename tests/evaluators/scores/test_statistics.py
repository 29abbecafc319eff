"""Estimates and tests against cases worked out by hand, and against SciPy."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from deft.evaluators.scores.statistics import (
    detectable_effect,
    estimate_pass_at_k,
    expected_calibration_error,
    holm,
    majority_at_k,
    mcnemar,
    mean_interval,
    paired_difference,
    standard_error,
)

RNG = np.random.default_rng(5)


def test_pass_at_k_by_hand() -> None:
    # 2 of 4 right: 1 − C(2, 2)/C(4, 2) = 5/6; none right: 0; all right: 1.
    assert estimate_pass_at_k(np.array([2]), 4, 2) == pytest.approx(5 / 6)
    assert estimate_pass_at_k(np.array([2, 0, 4]), 4, 2) == pytest.approx((5 / 6 + 0 + 1) / 3)
    assert estimate_pass_at_k(np.array([1, 3]), 4, 1) == pytest.approx(0.5)


def test_pass_at_k_is_the_mean_over_all_choices() -> None:
    correct = RNG.random((5, 6)) < 0.4
    for k in range(1, 7):
        tried = [any(row[i] for i in c) for row in correct for c in combinations(range(6), k)]
        assert estimate_pass_at_k(correct.sum(1), 6, k) == pytest.approx(np.mean(tried))


@pytest.mark.parametrize("k", [0, 5])
def test_pass_at_k_needs_k_samples(k: int) -> None:
    with pytest.raises(ValueError, match="between 1 and 4"):
        estimate_pass_at_k(np.array([1]), 4, k)


def test_majority_by_hand() -> None:
    answers = [["7", "7.0", "8", "8", "9"], ["1", None, None, None, None], [None] * 5]
    correct = np.array([[1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]], dtype=bool)
    # Two right answers (spelt differently) against two 8s: a tie, so half; then wrong; then none.
    assert majority_at_k(answers, correct, 5) == pytest.approx(0.5 / 3)
    # One response is the majority of itself: plain accuracy.
    assert majority_at_k(answers, correct, 1) == pytest.approx(correct.mean())


def test_majority_of_fewer_is_the_mean_over_all_choices() -> None:
    # Pairs of (right, right, wrong): one both right, two ties: (1 + ½ + ½)/3.
    answers, correct = [["a", "b", "c"]], np.array([[True, True, False]])
    assert majority_at_k(answers, correct, 2) == pytest.approx(2 / 3)
    many = [["a"] * 12 + ["b"] * 8]
    right = np.array([[True] * 12 + [False] * 8])
    # C(20, 9) subsets are drawn from; hypergeometric chance of at least 5 right among 9.
    expected = stats.hypergeom(20, 12, 9).sf(4)
    assert majority_at_k(many, right, 9, max_subsets=4000) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize(("right", "items"), [(0, 30), (1, 30), (12, 40), (40, 40), (1, 1)])
def test_interval_of_right_and_wrong_is_wilsons(right: int, items: int) -> None:
    values = np.array([1.0] * right + [0.0] * (items - right))
    expected = stats.binomtest(right, items).proportion_ci(method="wilson")
    assert mean_interval(values) == pytest.approx((expected.low, expected.high))


def test_interval_of_other_values_is_that_of_the_t_distribution() -> None:
    values = RNG.normal(2.0, 1.0, size=20)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert mean_interval(values) == pytest.approx((expected.low, expected.high))


def test_interval_of_shares_has_a_width_and_stays_within_their_bounds() -> None:
    # Four samples an item, all wrong: no narrower than 30 items of one sample.
    assert mean_interval(np.zeros(30)) == pytest.approx((0, 0.1135), abs=1e-4)
    assert mean_interval(np.zeros((3, 30))) == mean_interval(np.zeros(30))
    shares = RNG.binomial(4, RNG.beta(1, 9, 40)) / 4
    low, high = mean_interval(shares)
    assert 0 < low < shares.mean() < high
    half = 2.02 * standard_error(shares)
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)
    constant = mean_interval(np.full(30, 0.5))
    assert constant == pytest.approx(mean_interval(np.array([0.0, 1.0] * 15)))


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    for share in (0.05, 0.3):
        covered = 0
        for trial in range(400):
            values = np.random.default_rng(trial).random(60) < share
            low, high = mean_interval(values.astype(float))
            covered += low <= share <= high
        assert 0.92 <= covered / 400 <= 0.98


def test_weighted_interval_is_that_of_the_ratio() -> None:
    sizes = RNG.integers(1, 40, size=60).astype(float)
    values = RNG.normal(1.0, 0.3, size=60)
    ours = mean_interval(values, weights=sizes)

    def ratio(v: np.ndarray, w: np.ndarray, axis: int) -> np.ndarray:
        return np.asarray((v * w).sum(axis) / w.sum(axis))

    theirs = stats.bootstrap(
        (values, sizes),
        ratio,
        paired=True,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(2),
    ).confidence_interval
    assert ours.low == pytest.approx(theirs.low, abs=0.01)
    assert ours.high == pytest.approx(theirs.high, abs=0.01)


def test_seeds_add_their_own_uncertainty_from_three_on() -> None:
    """Runs that differ as wholes: items alone say nothing of how far apart other seeds are."""
    items = RNG.normal(0, 0.01, size=500)
    shifts = np.array([-0.2, 0.0, 0.3])
    runs = items + shifts[:, None]
    # No item counts beside the seeds: the interval is that of three numbers.
    expected = stats.ttest_1samp(shifts + items.mean(), 0).confidence_interval(0.95)
    assert mean_interval(runs) == pytest.approx((expected.low, expected.high), rel=1e-3)
    two = mean_interval(runs[:2])
    assert two == pytest.approx(mean_interval(runs[:2].mean(0)))
    difference = paired_difference(np.zeros((3, 500)), runs)
    assert difference.over_runs
    assert difference.p_value == pytest.approx(stats.ttest_1samp(shifts, 0).pvalue, rel=0.02)
    assert not paired_difference(np.zeros((2, 500)), runs[:2]).over_runs


def test_items_that_suit_one_objective_count_beside_seeds() -> None:
    """Differences that every seed repeats vary with the choice of items alone."""
    by_item = RNG.normal(0.1, 1.0, size=200)
    runs = by_item + RNG.normal(0, 0.01, size=(4, 200))
    difference = paired_difference(np.zeros((4, 200)), runs)
    expected = stats.ttest_1samp(by_item, 0)
    assert difference.p_value == pytest.approx(expected.pvalue, rel=0.05)


def test_seeds_with_items_of_their_own_count_by_their_means() -> None:
    groups = np.repeat(np.arange(4), 25)
    means = RNG.normal(2.0, 0.5, size=4)
    values = means[groups] + RNG.normal(0, 0.1, size=100)
    of_seeds = values.reshape(4, 25).mean(1)
    expected = stats.ttest_1samp(of_seeds, 0)
    interval = expected.confidence_interval(0.95)
    assert mean_interval(values, groups=groups) == pytest.approx((interval.low, interval.high))
    difference = paired_difference(np.zeros(100), values, groups=groups)
    assert difference.over_runs
    assert difference.interval == pytest.approx((interval.low, interval.high))
    assert difference.p_value == pytest.approx(expected.pvalue)
    # Two seeds do not tell how far seeds are apart.
    half, pair = values[:50], groups[:50]
    assert mean_interval(half, groups=pair) == mean_interval(half)
    assert not paired_difference(np.zeros(50), half, groups=pair).over_runs


def test_paired_difference_against_the_t_test() -> None:
    first = RNG.normal(0, 1, size=200)
    second = first + RNG.normal(0.05, 0.4, size=200)
    difference = paired_difference(first, second)
    expected = stats.ttest_rel(second, first)
    assert difference.mean == pytest.approx((second - first).mean())
    assert difference.p_value == pytest.approx(expected.pvalue, abs=0.02)
    low, high = expected.confidence_interval(0.95)
    assert difference.interval.low == pytest.approx(low, abs=0.01)
    assert difference.interval.high == pytest.approx(high, abs=0.01)
    assert difference.num_items == 200


def test_pairing_sees_what_unpaired_intervals_hide() -> None:
    first = RNG.normal(0, 1, size=100)
    second = first + 0.05 + RNG.normal(0, 0.01, size=100)
    difference = paired_difference(first, second)
    assert difference.p_value < 1e-20
    apart = mean_interval(second).low > mean_interval(first).high
    assert not apart


def test_equal_runs_do_not_differ_but_others_may() -> None:
    """As if there were one item more for either side, of I + 2."""
    values = (RNG.random(30) < 0.4).astype(float)
    difference = paired_difference(values, values)
    assert (difference.mean, difference.p_value, difference.detectable) == (0.0, 1.0, 0.0)
    half = stats.t.ppf(0.975, 29) * math.sqrt(2 / 31 / 32)
    assert difference.interval == pytest.approx((-half, half))
    for rows in (3, 5):
        runs = np.tile(values, (rows, 1))
        assert paired_difference(runs, runs).interval.high == pytest.approx(half, rel=0.01)
    # Two seeds that differ in opposite ways on one item are as equal as can be.
    opposite = np.stack([values, values])
    opposite[0, 0], opposite[1, 0] = 0, 1
    assert paired_difference(opposite, opposite[::-1]).interval.high == pytest.approx(half)
    # Losses are no shares: equal ones leave nothing to be uncertain of.
    losses = paired_difference(values, values, weights=np.arange(1.0, 31.0))
    assert losses.interval == (0.0, 0.0)


def test_no_p_is_below_what_the_items_allow() -> None:
    # One sign in 2ᴵ⁻¹ is as clear as this, whatever the differences' size.
    for items in (1, 2, 5):
        difference = paired_difference(np.zeros(items), np.full(items, 0.7))
        assert difference.p_value >= 2.0 ** (1 - items)
    alarms = 0
    for trial in range(300):
        first, second = np.random.default_rng([3, trial]).normal(size=(2, 5))
        alarms += paired_difference(first, second).p_value < 0.05
    assert alarms == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_no_numbers_are_refused(bad: float) -> None:
    values, other = np.zeros(4), np.array([0.0, bad, 1.0, 1.0])
    for pair in ((values, other), (other, values), (other, other)):
        with pytest.raises(ValueError, match="NaN or infinite"):
            paired_difference(*pair)
    with pytest.raises(ValueError, match="NaN or infinite"):
        mean_interval(other)
    with pytest.raises(ValueError, match="p-value"):
        holm([0.1, bad])


def test_false_alarms_are_as_rare_as_the_level_says() -> None:
    alarms = 0
    for trial in range(400):
        rng = np.random.default_rng([9, trial])
        first, second = rng.random((2, 50))
        alarms += paired_difference(first, second).p_value < 0.05
    assert 0.02 <= alarms / 400 <= 0.09


def test_different_items_are_refused() -> None:
    with pytest.raises(ValueError, match="expected the same items"):
        paired_difference(np.zeros(3), np.zeros(4))
    with pytest.raises(ValueError, match="expected the same items"):
        mcnemar(np.zeros(3, dtype=bool), np.zeros(4, dtype=bool))


def test_mcnemar_by_hand() -> None:
    # 1 item only the first has right, 6 only the second: 2·(1 + 7)/2⁷ = 0.125.
    first = np.array([1] + [0] * 6 + [1] * 5 + [0] * 3, dtype=bool)
    second = np.array([0] + [1] * 6 + [1] * 5 + [0] * 3, dtype=bool)
    assert mcnemar(first, second) == pytest.approx(0.125)
    assert mcnemar(first, first) == 1.0


def test_detectable_effect_by_hand_and_by_simulation() -> None:
    differences = np.array([1.0, -1.0] * 50)
    # s² = 100/99, I = 100, z(0.975) + z(0.8) = 1.959964 + 0.841621.
    effect = detectable_effect(differences)
    assert effect == pytest.approx(2.801585 * math.sqrt(100 / 99 / 100), rel=1e-5)
    detections = [
        stats.ttest_1samp(np.random.default_rng(t).normal(effect, 1.0, 100), 0).pvalue < 0.05
        for t in range(500)
    ]
    assert np.mean(detections) == pytest.approx(0.8, abs=0.06)


def test_holm_by_hand() -> None:
    # Sorted 0.01, 0.03, 0.04 times 3, 2, 1 is 0.03, 0.06, 0.04; the last may not fall below 0.06.
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_standard_error() -> None:
    values = np.array([1.0, 0, 0, 1, 1])
    assert standard_error(values) == pytest.approx(stats.sem(values))
    assert math.isnan(standard_error(values[:1]))


def test_calibration_error_by_hand() -> None:
    confidence = np.array([0.95, 0.95, 0.95, 0.95, 0.55, 0.55])
    correct = np.array([1, 1, 1, 0, 1, 0], dtype=bool)
    # Bin of 0.95: accuracy 0.75, four of six; bin of 0.55: accuracy 0.5, two of six.
    expected = 4 / 6 * 0.2 + 2 / 6 * 0.05
    assert expected_calibration_error(confidence, correct, bins=10) == pytest.approx(expected)
    assert expected_calibration_error(np.ones(3), np.ones(3, dtype=bool)) == 0
