"""Grading chain_sum: the integer that the last line ends in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from deft.evaluators.grading.responses import no_answer, without_marks
from deft.evaluators.grading.verdicts import Grade, Verdict

ANSWER = re.compile(r"=\s*(-?\d+)\s*$")


def grade(record: Mapping[str, Any]) -> Grade:
    """Grade ``response`` against ``gold``, whatever the steps before say.

    A response that was cut off may have gone on calculating: it is ``truncated``.
    """
    match = ANSWER.search(without_marks(record["response"]))
    if match is None or record.get("finish_reason") == "length":
        return no_answer(record.get("finish_reason"))
    correct = int(match[1]) == int(record["gold"])
    return Grade(Verdict.correct if correct else Verdict.wrong, match[1])
