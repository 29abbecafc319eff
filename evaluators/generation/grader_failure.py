"""Why a grader fails on every response: the pool of graders only counts that it does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from deft.evaluators.grading import GRADERS

TIMEOUT_SECONDS = 60.0
"""Seconds that importing a grader and grading one record may take."""

# Limits as in the pool: what fails there for want of memory must not take more of it here.
_GRADE_ONE = """
import json, resource, sys
from importlib import import_module
from deft.evaluators.grading.verdicts import Grade, Verdict
module, _, name = sys.argv[1].partition(":")
grader = getattr(import_module(module), name)
resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
grade = grader(json.load(sys.stdin))
if not isinstance(grade, Grade):
    raise TypeError(f"it returned {grade!r:.80}, not a Grade")
json.dumps([Verdict(grade.verdict), grade.extracted, grade.scores])
"""


def explain_failure(grader: str, record: Mapping[str, Any]) -> str | None:
    """Grade one record in a process of its own and return the exception that this raises.

    None if it raises none, so that only time or memory can have been the cause.

    Args:
        grader: a name in `GRADERS`, or ``package.module:function``.
        record: what the grader failed on.
    """
    path = os.pathsep.join(folder for folder in sys.path if folder)
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _GRADE_ONE, GRADERS.get(grader, grader)],
            input=json.dumps(dict(record)),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            env={**os.environ, "PYTHONPATH": path},
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None
    lines = done.stderr.strip().splitlines()
    if done.returncode <= 0 or not lines or lines[-1].startswith("MemoryError"):
        return None
    return lines[-1]


def require_some_grade(
    what: str, grader: str, num_failed: int, num_graded: int, record: Mapping[str, Any]
) -> None:
    """Raise if a grader has failed on everything.

    A shipped grader may: responses can be such that all of them take too much time or memory.

    Args:
        what: the responses, in the message.
        grader: name of the grader.
        num_failed: responses with the verdict ``grader_error``.
        num_graded: all responses that it was given.
        record: one of them.

    Raises:
        ValueError: with the cause.
    """
    if num_graded == 0 or num_failed < num_graded:
        return
    cause = explain_failure(grader, record)
    if cause is None and grader not in GRADERS:
        cause = "it raises nothing, so it takes more CPU time or memory than a grader may"
    if cause is not None:
        raise ValueError(
            f"{what}: the grader {grader} failed on all {num_graded} responses: {cause}"
        )
