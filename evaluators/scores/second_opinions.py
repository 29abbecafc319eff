"""The responses on which the grader of a benchmark and a second one disagree."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deft.evaluators.scores.predictions import differs, read_rows

TAIL = 160
"""Characters from the end of a response that are kept."""


@dataclass(frozen=True)
class Disagreement:
    """A response that one grader calls correct and the other does not."""

    id: str
    """Of the item."""
    gold: str
    tail: str
    """The end of the response."""
    verdict: str
    second_verdict: str


@dataclass(frozen=True)
class SecondOpinions:
    """What a second grader said about the responses of a table."""

    num_compared: int
    """Responses with a second verdict."""
    disagreements: tuple[Disagreement, ...]


def read_second_opinions(path: Path) -> SecondOpinions:
    """Read what two graders said, from a table of predictions."""
    columns = ["id", "gold", "response", "verdict", "second_verdict"]
    rows = [row for row in read_rows(path, columns) if row[columns[-1]]]
    different = [row for row in rows if differs(row["verdict"], row["second_verdict"])]
    return SecondOpinions(
        len(rows),
        tuple(
            Disagreement(
                id=row["id"],
                gold=row["gold"],
                tail=row["response"].strip()[-TAIL:],
                verdict=row["verdict"],
                second_verdict=row["second_verdict"],
            )
            for row in different
        ),
    )
