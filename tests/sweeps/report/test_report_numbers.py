"""What a report computes and how it writes it, without a sweep on disk."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deft.evaluators.scores import statistics
from deft.evaluators.spec import GENERAL_BENCHMARK, HELDOUT
from deft.sweeps.report import formatting
from deft.sweeps.report.comparisons import compare_pair, paired
from deft.sweeps.report.curves import MOST_POINTS, _over_seeds, _thin
from deft.sweeps.report.document import (
    Document,
    Listing,
    Section,
    Table,
    TableEntry,
    escape_markdown,
)
from deft.sweeps.report.plots import spread, styles_for
from deft.sweeps.report.scores import MEAN, Measure, Scores, in_order, pool_benchmarks


def scores(values: list[list[float]], *, seeds: tuple[int, ...] = (), prefix: str = "i") -> Scores:
    array = np.array(values, float)
    ids = tuple(f"{prefix}{i}" for i in range(array.shape[1]))
    return Scores(seeds, ids, array, np.ones(array.shape[1]), single=False, rates={})


def test_mean_over_benchmarks_weighs_each_alike() -> None:
    rng = np.random.default_rng(0)
    large = scores((rng.random((3, 400)) < 0.9).astype(float).tolist(), seeds=(0, 1, 2))
    small = scores((rng.random((3, 30)) < 0.2).astype(float).tolist(), seeds=(0, 1, 2))
    mean = pool_benchmarks([large, small])
    assert mean.by_run == pytest.approx((large.by_run + small.by_run) / 2)
    assert mean.seeds == (0, 1, 2)
    # Its error is that of the two means, however far apart they are: with one run each,
    # the half of √(s₁²/I₁ + s₂²/I₂).
    first = scores([large.values[0].tolist()])
    second = scores([small.values[0].tolist()])
    errors = [statistics.standard_error(part.values[0]) for part in (first, second)]
    low, high = pool_benchmarks([first, second]).interval()
    assert (high - low) / 2 == pytest.approx(1.96 * math.hypot(*errors) / 2, rel=0.06)


def test_pairs_share_items_and_seeds() -> None:
    first = scores([[1, 2, 3], [4, 5, 6], [7, 8, 9]], seeds=(0, 1, 2))
    second = scores([[10, 20, 30, 40], [50, 60, 70, 80]], seeds=(2, 1))
    first_pair, second_pair = paired(first, second)
    assert first_pair.seeds == second_pair.seeds == (1, 2)
    assert first_pair.values.tolist() == [[4, 5, 6], [7, 8, 9]]
    assert second_pair.values.tolist() == [[50, 60, 70], [10, 20, 30]]

    base = scores([[1, 1, 1]])
    first_pair, second_pair = paired(base, first)
    assert first_pair.values.tolist() == [[1, 1, 1]] * 3
    assert second_pair.values.tolist() == first.values.tolist()

    apart = scores([[0, 0, 3]], seeds=(7,))
    first_pair, second_pair = paired(first, apart)
    assert first_pair.values.tolist() == [[4, 5, 6]]
    assert second_pair.values.tolist() == [[0, 0, 3]]
    none = scores([[1.0]], prefix="other")
    assert compare_pair(first, none, higher_is_better=True) is None


def test_detectable_effect_covers_seeds() -> None:
    base = scores([[0.0] * 50] * 3, seeds=(0, 1, 2))
    better = scores([[0.3] * 50, [0.1] * 50, [0.2] * 50], seeds=(0, 1, 2))
    comparison = compare_pair(base, better, higher_is_better=True)
    assert comparison is not None
    # No item differs from another, so that all of it is the seeds': s = 0.1, over √3 seeds, with
    # the 97.5 % and 80 % quantiles of the t distribution with two degrees of freedom.
    assert comparison.over_seeds
    assert comparison.detectable == pytest.approx((4.3027 + 1.0607) * 0.1 / math.sqrt(3), rel=1e-4)
    assert comparison.difference == pytest.approx(0.2)
    assert comparison.better
    worse = compare_pair(base, better, higher_is_better=False)
    assert worse is not None
    assert not worse.better


def test_primary_measure_comes_first() -> None:
    math500, gsm8k = Measure("math500", "a"), Measure("gsm8k", "b")
    general, heldout = (
        Measure(GENERAL_BENCHMARK, "g"),
        Measure(HELDOUT, "h", higher_is_better=False),
    )
    mean = Measure(MEAN, "m")
    assert in_order([heldout, math500, general, gsm8k, mean]) == [
        mean, math500, gsm8k, general, heldout,
    ]  # fmt: skip
    assert in_order([heldout, general]) == [general, heldout]
    assert in_order([heldout]) == [heldout]


def test_curves_are_thinned_and_laid_over_each_other() -> None:
    steps = np.arange(1.0, 601.0)
    first, second = np.stack([steps, steps]), np.stack([steps, 3 * steps])
    curve = _over_seeds([_thin(first), _thin(second)])
    assert len(curve.steps) == MOST_POINTS
    # The first of sixty stretches is steps 1 to 10.
    assert (curve.steps[0], curve.mean[0], curve.low[0], curve.high[0]) == (5.5, 11, 5.5, 16.5)
    assert curve.at(0.5) == pytest.approx(2 * 295.5)
    short = _over_seeds([np.array([[0.0, 10, 20], [3, 2, 1]]), np.array([[0.0, 20], [5, 3]])])
    assert short.steps.tolist() == [0, 20]
    assert short.mean.tolist() == [4, 2]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12).map(sorted))
def test_labels_are_pushed_apart_and_keep_their_order(values: list[float]) -> None:
    places = spread(values, 0.1)
    assert all(b - a >= 0.1 - 1e-9 for a, b in itertools.pairwise(places))
    assert min(places) >= 0
    if all(b - a >= 0.1 for a, b in itertools.pairwise(values)):
        assert places == pytest.approx(values)


def test_objectives_look_different_without_color() -> None:
    names = [f"objective {i}" for i in range(12)]
    comparison = styles_for(names, names[3])
    assert comparison[names[3]].linestyle == "-"
    assert len({(style.linestyle, style.marker) for style in comparison.values()}) == len(names)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0521, "+0.052"),
        (-0.0521, "−0.052"),
        (2e-5, "+2e−05"),
        (-2e-5, "−2e−05"),
        (1e-16, "0.000"),
        (-1e-16, "0.000"),
        (math.nan, "–"),
    ],
)
def test_differences_are_written_with_their_sign(value: float, text: str) -> None:
    assert formatting.signed(value) == text


def test_small_p_values_are_bounds() -> None:
    assert formatting.p_value(0.00005) == "< 0.0001"
    assert formatting.p_value(0.0312) == "0.0312"


def test_markdown_reads_as_written() -> None:
    assert escape_markdown("a|b_c*<br>\n&`") == r"a\|b\_c\*&lt;br&gt; &amp;\`"


def test_both_renderings_keep_every_kind_of_block() -> None:
    table = Table("caption", ["name", "value"], [["a|b", TableEntry("1", ("2",), "better", "+3")]])
    listing = Listing("as written", "x: ```")
    document = Document("<title>", "sub", [Section("One & two", [table, listing])])
    html, markdown = document.to_html(), document.to_markdown()
    assert "&lt;title&gt;" in html
    assert '<h2 id="one-two">One &amp; two</h2>' in html
    assert '<th scope="row">a|b</th>' in "".join(line.strip() for line in html.splitlines())
    assert "▲ +3" in html
    assert "| a\\|b | 1<br>2<br>▲ +3 |" in markdown
    assert "````\nx: ```\n````" in markdown
