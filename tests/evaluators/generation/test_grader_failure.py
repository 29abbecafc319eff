"""A grader that fails on everything names its cause."""

from __future__ import annotations

from pathlib import Path

import pytest

from deft.evaluators.generation.grader_failure import explain_failure, require_some_grade

MODULE = """
from deft.evaluators.grading.verdicts import Grade, Verdict

def raises(record):
    return {}["key of " + record["gold"]]

def nonsense(record):
    return "correct"

def greedy(record):
    return " " * 2**31

def fine(record):
    return Grade(Verdict.correct)
"""


@pytest.fixture
def graders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "failing_graders.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return "failing_graders"


def test_the_exception_of_a_grader_is_named(graders: str) -> None:
    record = {"response": "r", "gold": "g"}
    assert explain_failure(f"{graders}:raises", record) == "KeyError: 'key of g'"
    nonsense = explain_failure(f"{graders}:nonsense", record)
    assert nonsense == "TypeError: it returned 'correct', not a Grade"
    missing = explain_failure(f"{graders}:missing", record)
    assert missing is not None
    assert "has no attribute 'missing'" in missing
    for grader in ("fine", "greedy"):
        assert explain_failure(f"{graders}:{grader}", record) is None


def test_only_failing_on_everything_is_an_error(graders: str) -> None:
    record = {"response": "r", "gold": "g"}
    with pytest.raises(ValueError, match=r"own: the grader .*:raises failed on all 3 .*KeyError"):
        require_some_grade("own", f"{graders}:raises", 3, 3, record)
    require_some_grade("own", f"{graders}:raises", 2, 3, record)
    require_some_grade("own", f"{graders}:raises", 0, 0, record)
    # A grader of one's own that always takes too long is of no use; responses may be such that a
    # shipped one does.
    with pytest.raises(ValueError, match=r"failed on all 3 .*more CPU time or memory"):
        require_some_grade("own", f"{graders}:fine", 3, 3, record)
    require_some_grade("sums", "chain_sum", 3, 3, {"response": "3", "gold": "3"})
