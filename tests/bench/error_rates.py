"""How often intervals and tests are right: simulations with a known truth, as Markdown tables.

    python tests/bench/error_rates.py                       # minutes on two cores
    python tests/bench/error_rates.py --experiments 20000   # more digits

A response is right if μ + item + objective × item + seed + noise > 0, all normal with standard
deviations 1, `interaction`, `seed_effect` and 1: the probit model of an item response.

A file called statistics.py would hide the standard library's from every script in this folder.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from deft.evaluators.scores.statistics import mcnemar, mean_interval, paired_difference

Floats = NDArray[np.float64]
Test = Callable[[Floats, Floats], tuple[float, float, float]]
"""Two objectives' values [R, I] → p-value, and the ends of the interval of the difference."""

SEEDS = (1, 2, 3, 5, 10)
ITEMS = (30, 100, 500)
SEED_EFFECTS = (0.0, 0.1, 0.3)
LEVEL = 0.05
GAIN = 0.3
"""How much better the second objective is in μ where coverage is counted."""
RESAMPLES = 400
"""Of the bootstrap that is shown for comparison."""


class Setting(NamedTuple):
    """A kind of benchmark."""

    accuracy: float
    """Share of responses that are right."""
    interaction: float = 0.0
    """Standard deviation of how much better items suit one objective."""


def sweeps(
    rng: np.random.Generator,
    experiments: int,
    num_seeds: int,
    num_items: int,
    setting: Setting,
    seed_effect: float,
    *,
    gain: float = 0.0,
) -> Iterator[tuple[Floats, Floats]]:
    """Draw what two objectives score, [R, I] each; the second is better by ``gain`` in μ."""
    location = threshold(setting, seed_effect)
    for _ in range(experiments):
        items = rng.normal(size=num_items)
        scores = []
        for shift in (0.0, gain):
            mean = location + shift + items + setting.interaction * rng.normal(size=num_items)
            seeds = seed_effect * rng.normal(size=(num_seeds, 1))
            right = mean + seeds + rng.normal(size=(num_seeds, num_items)) > 0
            scores.append(right.astype(np.float64))
        yield scores[0], scores[1]


def total_spread(setting: Setting, seed_effect: float) -> float:
    """Return the standard deviation of everything that is added to μ."""
    return float(np.sqrt(2 + seed_effect**2 + setting.interaction**2))


def threshold(setting: Setting, seed_effect: float) -> float:
    """Return μ at which a share ``setting.accuracy`` of responses is right."""
    return float(stats.norm.ppf(setting.accuracy)) * total_spread(setting, seed_effect)


def platform_test(first: Floats, second: Floats) -> tuple[float, float, float]:
    """Compare as `deft compare` and `deft report` do."""
    difference = paired_difference(first, second)
    p_value = difference.p_value
    if len(first) == 1:
        p_value = mcnemar(first[0] > 0.5, second[0] > 0.5)
    return p_value, *difference.interval


def test_over_seed_means(first: Floats, second: Floats) -> tuple[float, float, float]:
    """Test the differences between the means of the seeds by a t test, items taken as fixed."""
    means = (second - first).mean(1)
    if np.ptp(means) == 0:
        return float(means[0] == 0), float(means[0]), float(means[0])
    test = stats.ttest_1samp(means, 0)
    low, high = test.confidence_interval(1 - LEVEL)
    return float(test.pvalue), float(low), float(high)


def hierarchical_bootstrap(first: Floats, second: Floats) -> tuple[float, float, float]:
    """Resample seeds, then items, the same for all seeds; percentile interval."""
    differences = second - first
    num_seeds, num_items = differences.shape
    rng = np.random.default_rng(0)
    items = rng.multinomial(num_items, np.full(num_items, 1 / num_items), size=RESAMPLES)
    seeds = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=RESAMPLES)
    means = np.einsum("br,rb->b", seeds / num_seeds, differences @ items.T / num_items)
    mean = float(differences.mean())
    extreme = (np.abs(means - mean) >= abs(mean) - 1e-12).sum()
    low, high = np.quantile(means, [LEVEL / 2, 1 - LEVEL / 2])
    return float(extreme + 1) / (RESAMPLES + 1), float(low), float(high)


def rates(
    test: Test,
    experiments: int,
    setting: Setting,
    num_seeds: int,
    num_items: int,
    seed_effect: float,
) -> str:
    """Return type I error and coverage in percent, as ``5.0 / 95.0``."""
    rng = np.random.default_rng([num_seeds, num_items, round(100 * seed_effect)])
    draw = partial(sweeps, rng, experiments, num_seeds, num_items, setting, seed_effect)
    false_alarms = sum(test(first, second)[0] < LEVEL for first, second in draw())
    location = threshold(setting, seed_effect) + GAIN
    truth = stats.norm.cdf(location / total_spread(setting, seed_effect)) - setting.accuracy
    covered = 0
    for first, second in draw(gain=GAIN):
        _, low, high = test(first, second)
        covered += low <= truth <= high
    return f"{100 * false_alarms / experiments:.1f} / {100 * covered / experiments:.1f}"


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print(f"\n{caption}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def comparisons(
    caption: str,
    test: Test,
    experiments: int,
    setting: Setting,
    seeds: Sequence[int] = SEEDS,
) -> None:
    """Print the rates of a test by seeds, items and seed effect."""
    cells = list(product(seeds, ITEMS, SEED_EFFECTS))
    measure = partial(rates, test, experiments, setting)
    with ProcessPoolExecutor(2) as processes:
        rate_of_cell = dict(
            zip(cells, processes.map(measure, *zip(*cells, strict=True)), strict=True)
        )
    rows = [
        [
            str(num_seeds),
            str(num_items),
            *(rate_of_cell[num_seeds, num_items, e] for e in SEED_EFFECTS),
        ]
        for num_seeds, num_items in product(seeds, ITEMS)
    ]
    head = ["seeds", "items", *(f"seed effect {effect:g}" for effect in SEED_EFFECTS)]
    table(caption, head, rows)


def shares(experiments: int) -> None:
    """Print the coverage of the interval of one run's share of right responses."""
    rows = []
    for share in (0.0, 0.01, 0.05, 0.3, 0.98):
        for num_items in ITEMS:
            rng = np.random.default_rng([num_items, round(1000 * share)])
            covered, widths = 0, []
            for _ in range(experiments):
                right = (rng.random(num_items) < share).astype(np.float64)
                low, high = mean_interval(right)
                covered += low <= share <= high
                widths.append(high - low)
            # Four samples an item: an item's chance varies as Beta(share, 1 - share) does.
            covered_4 = 0
            for _ in range(experiments):
                chance = rng.beta(share, 1 - share, num_items) if share else np.zeros(num_items)
                low, high = mean_interval(rng.binomial(4, chance) / 4)
                covered_4 += low <= share <= high
            percent = [100 * n / experiments for n in (covered, covered_4)]
            rows.append(
                [
                    f"{share:g}",
                    str(num_items),
                    f"{percent[0]:.1f}",
                    f"{np.mean(widths):.3f}",
                    f"{percent[1]:.1f}",
                ]
            )
    head = ["true share", "items", "coverage %", "mean width", "coverage %, four samples"]
    table("95 % interval of one run's share of right responses", head, rows)


def few_items(experiments: int) -> None:
    """Print the type I error of a comparison over few items, one run each."""
    rows = []
    for num_items in (2, 3, 5, 10, 20):
        rng = np.random.default_rng(num_items)
        alarms = {"score": 0, "four": 0}
        for _ in range(experiments):
            first, second = rng.normal(size=(2, num_items))
            alarms["score"] += paired_difference(first, second).p_value < LEVEL
            chance = rng.beta(1, 1, num_items)
            first, second = rng.binomial(4, chance, size=(2, num_items)) / 4
            alarms["four"] += paired_difference(first, second).p_value < LEVEL
        percent = [f"{100 * count / experiments:.1f}" for count in alarms.values()]
        rows.append([str(num_items), *percent, f"{2.0 ** (1 - num_items):.3f}"])
    head = ["items", "normal scores", "share of four samples", "smallest p"]
    table("Type I error in % with few items, one run each", head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--experiments", type=int, default=2000, help="of each cell of a table")
    experiments = parser.parse_args().experiments
    started = time.perf_counter()
    plain, suited, hard = Setting(0.35), Setting(0.35, interaction=0.5), Setting(0.05)
    what = "type I error / coverage in %"
    comparisons(f"The platform's comparison, {what}", platform_test, experiments, plain)
    caption = f"The same, where items suit one objective or the other by chance (sd 0.5), {what}"
    comparisons(caption, platform_test, experiments, suited)
    comparisons(f"The same, where 5 % are right, {what}", platform_test, experiments, hard)
    many = SEEDS[2:]
    caption = f"For comparison: t test over seed means, items suit by chance (sd 0.5), {what}"
    comparisons(caption, test_over_seed_means, experiments, suited, many)
    caption = f"For comparison: hierarchical bootstrap, a fifth of the experiments, {what}"
    comparisons(caption, hierarchical_bootstrap, experiments // 5, plain, many)
    shares(experiments)
    few_items(experiments)
    print(f"\n{experiments:,} experiments a cell, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
