"""From verdicts to a benchmark's numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from deft.evaluators.scores.metrics import (
    Outcomes,
    accuracy,
    by_source,
    majority,
    mean_over_benchmarks,
    paper_accuracy,
    pass_at_k,
    score_means,
)


def outcomes(*rows: str, sources: tuple[str, ...] = ()) -> Outcomes:
    """One string an item, one letter a sample: c(orrect), w(rong), n(o answer)."""
    words = {"c": "correct", "w": "wrong", "n": "no_answer"}
    return Outcomes(
        ids=[str(i) for i in range(len(rows))],
        sources=sources or ("one",) * len(rows),
        verdicts=[[words[letter] for letter in row] for row in rows],
        answers=[[None if letter == "n" else letter for letter in row] for row in rows],
        scores={"similarity": np.array([[0.5] * len(row) for row in rows])},
    )


def test_avg_at_n_is_the_mean_over_samples_of_the_mean_over_items() -> None:
    metrics = accuracy(outcomes("cw", "cc", "wn"))
    assert metrics["avg_at_2"] == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert metrics["avg_at_2_ci_low"] < metrics["avg_at_2"] < metrics["avg_at_2_ci_high"]
    # Items have 0.5, 1 and 0: a sample deviation of 0.5 over √3.
    assert metrics["avg_at_2_stderr"] == pytest.approx(0.5 / 3**0.5)


def test_pass_and_majority_are_given_for_powers_of_two() -> None:
    samples = outcomes("ccww" * 2, "wwww" * 2)
    assert list(pass_at_k(samples)) == ["pass_at_2", "pass_at_4", "pass_at_8"]
    assert list(majority(samples)) == ["maj_at_4", "maj_at_8"]
    # Of the first item 4 of 8 are right: 1 − C(4, 2)/C(8, 2); its vote of 8 is a tie.
    assert pass_at_k(samples)["pass_at_2"] == pytest.approx((1 - 6 / 28) / 2)
    assert majority(samples)["maj_at_8"] == pytest.approx(0.25)
    assert pass_at_k(outcomes("c", "w")) == majority(outcomes("c", "w")) == {}


def test_paper_accuracy_has_a_mean_over_sources() -> None:
    graded = replace(
        outcomes("n", "w", "c", sources=("A", "A", "B")),
        scores={"accuracy_paper": np.array([[1.0], [0.0], [1.0]])},
    )
    found = paper_accuracy(graded)
    assert found["accuracy_paper"] == pytest.approx(2 / 3)
    assert found["macro_accuracy_paper"] == pytest.approx(3 / 4)
    assert paper_accuracy(outcomes("n")) == {}


def test_sources_are_kept_apart() -> None:
    metrics = by_source(outcomes("c", "c", "w", "w", sources=("A", "A", "A", "NEJM 'AI'")))
    assert metrics["A/avg_at_1"] == pytest.approx(2 / 3)
    assert metrics["NEJM -AI-/avg_at_1"] == 0
    # The plain mean over sources, whatever their sizes.
    assert metrics["macro_avg_at_1"] == pytest.approx(1 / 3)


def test_scores_are_averaged() -> None:
    assert score_means(outcomes("cw", "ww"))["similarity"] == 0.5


def test_mean_over_benchmarks_is_plain_and_leaves_none_out() -> None:
    results = {
        "aime24": {"avg_at_16": 0.2, "avg_at_16_stderr": 9.0, "pass_at_2": 1.0, "num_items": 30.0},
        "math500": {"avg_at_16": 0.6, "num_items": 500.0},
        "figfont": {"avg_at_1": 0.9},
    }
    mean = {"avg": pytest.approx(1.7 / 3), "num_benchmarks": 3}
    assert mean_over_benchmarks(results) == mean
    del results["figfont"]
    assert mean_over_benchmarks(results) == {"avg_at_16": pytest.approx(0.4), "num_benchmarks": 2}
    assert mean_over_benchmarks({"figfont": {"avg_at_1": 0.9}}) == {}
