"""Grading mathematics by the math-verify library, as a second opinion."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from deft.evaluators.grading.math.grader import gold_answer
from deft.evaluators.grading.responses import no_answer, without_marks
from deft.evaluators.grading.verdicts import Grade, Verdict

logging.getLogger("math_verify").setLevel(logging.CRITICAL)


def grade(record: Mapping[str, Any]) -> Grade:
    """Grade ``response`` against ``gold`` by ``parse`` and ``verify`` with their own defaults.

    Time is limited by the process that this runs in, so that the library's own alarm is off. The
    response is read as it is: cutting it to a first turn is no part of the library.
    """
    from math_verify import parse, verify

    # Its parser wants a gold answer between dollars.
    gold = parse(f"${gold_answer(str(record['gold']))}$", parsing_timeout=None)
    answer = parse(without_marks(record["response"]), parsing_timeout=None)
    if not answer:
        return no_answer(record.get("finish_reason"))
    correct = verify(gold, answer, timeout_seconds=None)
    return Grade(Verdict.correct if correct else Verdict.wrong, str(answer[-1]))
