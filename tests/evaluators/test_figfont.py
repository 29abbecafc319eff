"""Scoring figfont responses, against cases worked out by hand."""

from __future__ import annotations

import pytest

from deft.evaluators.figfont import load_figfont, score_figfont


@pytest.mark.parametrize(
    ("response", "exact", "case_insensitive", "jaro_winkler"),
    [
        ("IGAD", 1, 1, 1),
        (" IGAD\n", 1, 1, 1),
        ("igad", 0, 1, 1),
        ("", 0, 0, 0),
        ("XYZ", 0, 0, 0),
        # 3 of 4 letters match: Jaro (3/4 + 3/4 + 1)/3 = 5/6; common prefix of 3: + 3·0.1·(1/6).
        ("IGAX", 0, 0, 5 / 6 + 0.3 / 6),
        # 4 letters match, 1 transposition: Jaro (1 + 1 + 3/4)/3 = 11/12; common prefix of 2.
        ("igda", 0, 0, 11 / 12 + 0.2 / 12),
        # 2 of 4 letters match: Jaro (2/4 + 2/4 + 1)/3 = 2/3 earns no prefix bonus below 0.7.
        ("IGXX", 0, 0, 2 / 3),
    ],
)
def test_scores_of_one_response(
    response: str, exact: float, case_insensitive: float, jaro_winkler: float
) -> None:
    assert score_figfont(response, "IGAD") == {
        "exact_match": exact,
        "case_insensitive_match": case_insensitive,
        "jaro_winkler": pytest.approx(jaro_winkler),
    }


def test_gold_is_trimmed_too() -> None:
    assert score_figfont("MAD", "MAD\n")["exact_match"] == 1


def test_items_are_the_papers_test_items() -> None:
    first, second = load_figfont(2)
    assert (first.id, first.response) == ("figfont/40000", "IGAD")
    assert second.id == "figfont/40001"
    assert first.prompt[-1]["content"].startswith("What word does this say?\n\n")
