"""What all graders have in common: names, versions, and what they say when they fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from deft.evaluators.grading import math_verify
from deft.evaluators.grading.sandbox.pool import GraderPool


@pytest.mark.parametrize(
    ("response", "verdict"),
    [
        ("The answer is $\\boxed{\\frac{2}{4}}$.", "correct"),
        ("The answer is $\\boxed{\\frac{2}{3}}$.", "wrong"),
        ("I do not know.", "no_answer"),
    ],
)
def test_math_verify_gives_its_own_verdict(response: str, verdict: str) -> None:
    assert math_verify.grade({"response": response, "gold": "\\frac{1}{2}"}).verdict == verdict


def test_math_verify_runs_in_a_pool() -> None:
    with GraderPool("math_verify", workers=1, timeout=10) as pool:
        graded = pool.submit({"response": "So $x = 4$.", "gold": "4"}).result()
    assert graded.verdict == "correct"


def test_a_grader_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "failing_grader.py").write_text(
        "def grade(record): raise KeyError('no such field: steps')\n"
    )
    with GraderPool("failing_grader:grade", workers=1) as pool:
        graded = pool.submit({"response": "4"}).result()
    assert graded.verdict == "grader_error"
    assert graded.error == "KeyError: 'no such field: steps'"
