"""Scoring figfont responses, against cases worked out by hand."""

from __future__ import annotations

import pytest

from deft.evaluators.grading.figfont import grade, jaro_winkler_paper, score_figfont
from deft.evaluators.grading.verdicts import Verdict


@pytest.mark.parametrize(
    ("response", "exact", "case_insensitive", "jaro_winkler", "paper"),
    [
        ("IGAD", 1, 1, 1, 1),
        (" IGAD\n", 1, 1, 1, 1),
        ("igad", 0, 1, 1, 1),
        ("", 0, 0, 0, 0),
        ("XYZ", 0, 0, 0, 0),
        # 3 of 4 letters match: Jaro (3/4 + 3/4 + 1)/3 = 5/6; common prefix of 3: + 3·0.1·(1/6).
        ("IGAX", 0, 0, 5 / 6 + 0.3 / 6, 5 / 6 + 0.3 / 6),
        # 4 letters match, 1 transposition: Jaro (1 + 1 + 3/4)/3 = 11/12; common prefix of 2.
        ("igda", 0, 0, 11 / 12 + 0.2 / 12, 11 / 12 + 0.2 / 12),
        # 2 of 4 letters match: Jaro (2/4 + 2/4 + 1)/3 = 2/3 earns no prefix bonus below 0.7;
        # the paper's script gives 2·0.1·(1/3) for the common prefix of 2.
        ("IGXX", 0, 0, 2 / 3, 2 / 3 + 0.2 / 3),
    ],
)
def test_scores_of_one_response(
    response: str, exact: float, case_insensitive: float, jaro_winkler: float, paper: float
) -> None:
    assert score_figfont(response, "IGAD") == {
        "exact_match": exact,
        "case_insensitive_match": case_insensitive,
        "jaro_winkler": pytest.approx(jaro_winkler),
        "jaro_winkler_paper": pytest.approx(paper),
    }


def test_the_papers_variant_counts_half_transpositions() -> None:
    # Window 6 // 2 − 1 = 2. All of abc match in the order cab: 3 out of order, halves 1.5, which
    # libraries round down to 1. Jaro (3/6 + 3/6 + (3 − 1.5)/3)/3 = 0.5; no common prefix.
    assert jaro_winkler_paper("abcxyz", "cabuvw") == pytest.approx(0.5)
    assert score_figfont("abcxyz", "cabuvw")["jaro_winkler"] == pytest.approx((1 + 2 / 3) / 3)


def test_gold_is_trimmed_too() -> None:
    assert score_figfont("MAD", "MAD\n")["exact_match"] == 1


@pytest.mark.parametrize(
    ("response", "finish_reason", "verdict"),
    [
        ("IGAD", "stop", Verdict.correct),
        ("igad\n", "stop", Verdict.correct),
        ("igad", "length", Verdict.correct),
        ("IGA", "stop", Verdict.wrong),
        ("IGA", "length", Verdict.truncated),
        ("IGX", "length", Verdict.wrong),
        ("The word is IGAD", "stop", Verdict.wrong),
        (" \n", "stop", Verdict.no_answer),
        ("", "length", Verdict.truncated),
    ],
)
def test_verdicts(response: str, finish_reason: str, verdict: Verdict) -> None:
    graded = grade({"response": response, "gold": "IGAD", "finish_reason": finish_reason})
    assert graded.verdict == verdict
    assert graded.extracted == (response.strip() or None)
