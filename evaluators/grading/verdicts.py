"""What grading one response says."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Verdict(StrEnum):
    """The five ways in which grading can end; they are counted apart, never merged."""

    correct = "correct"
    wrong = "wrong"
    no_answer = "no_answer"
    """The response was finished and holds no final answer."""
    truncated = "truncated"
    """The response was cut off at its length limit before it gave a final answer."""
    grader_error = "grader_error"
    """The grader ran out of time or memory, or failed: nothing is known about the response."""


@dataclass(frozen=True)
class Grade:
    """The grade of one response."""

    verdict: Verdict
    extracted: str | None = None
    """The final answer that was found, as it was compared; None where there is none."""
    scores: dict[str, float] = field(default_factory=dict)
    """Similarities between 0 and 1 by name, for graders that have them."""
    error: str | None = None
    """Why the grader failed; None unless the verdict is ``grader_error``."""
