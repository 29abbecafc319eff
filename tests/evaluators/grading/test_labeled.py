"""Both graders against responses that were labeled by hand.

The rows lie in text files, because LaTeX in JSON is hard to proofread: a line
``%%% label | gold`` (medical: ``%%% label | gold | A=text ; B=text``), and the response below it.
A label is a verdict; behind it may stand the finish reason ``length``. The responses were written
for these tests, and labeled by what a careful person would say.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from deft.evaluators.grading import GRADERS
from deft.workers.common.names import import_attribute

FILES = {"math": "math/labeled.txt", "medical": "choice/labeled.txt"}


class Row(NamedTuple):
    """One labeled record."""

    label: str
    record: dict[str, Any]


def read_labeled(grader: str) -> list[Row]:
    """Read the labeled rows for ``math`` or ``medical``."""
    text = (Path(__file__).parent / FILES[grader]).read_text()
    return [read_row(grader, block) for block in re.split("^%%% ", text, flags=re.MULTILINE)[1:]]


def read_row(grader: str, block: str) -> Row:
    head, _, response = block.partition("\n")
    labels, gold, *options = head.split(" | ")
    label, *finish_reason = labels.split()
    record: dict[str, Any] = {"response": response.rstrip("\n"), "gold": gold}
    if finish_reason:
        record["finish_reason"] = finish_reason[0]
    if grader == "medical":
        record["options"] = dict(option.split("=", 1) for option in options[0].split(" ; "))
    return Row(label, record)


@pytest.mark.parametrize(
    ("grader", "size", "share"), [("math", 300, 0.98), ("medical", 1500, 0.97)]
)
def test_agreement_with_the_labels(grader: str, size: int, share: float) -> None:
    rows = read_labeled(grader)
    grade = import_attribute(GRADERS[grader])
    mistakes = []
    for label, record in rows:
        graded = grade(record)
        if graded.verdict != label:
            mistakes.append(f"{label} → {graded.verdict}, {graded.extracted!r}: {record}")
    assert len(rows) >= size
    assert sum(label != "correct" for label, _ in rows) >= 0.37 * len(rows)
    assert len(mistakes) <= (1 - share) * len(rows), "\n".join(mistakes)
    assert [text for text in mistakes if "→ correct" in text] == []
