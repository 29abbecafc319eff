"""Grading mathematics (under construction: last box, compared as text)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deft.evaluators.grading.verdicts import Grade, Verdict


def grade(record: Mapping[str, Any]) -> Grade:
    """Grade ``response`` against ``gold``."""
    _, found, rest = record["response"].rpartition("\\boxed{")
    answer = rest.split("}")[0] if found else None
    if answer is None:
        cut = record.get("finish_reason") == "length"
        return Grade(Verdict.truncated if cut else Verdict.no_answer)
    return Grade(Verdict.correct if answer == str(record["gold"]) else Verdict.wrong, answer)
