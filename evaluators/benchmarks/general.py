"""A small suite that shows what a model forgets when it is trained on something else.

Three sources of items, all in `general.jsonl` and written for this platform: `arithmetic`
(numbers, compared as mathematics), `knowledge` (multiple choice of general knowledge) and
`instructions` (copying, counting, changing a text; the one right answer, in whatever case).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from deft.evaluators.benchmarks.base import Benchmark, Item, RecordFields, Sampling
from deft.evaluators.scores.metrics import accuracy, pass_at_k

ITEMS_FILE = Path(__file__).with_name("general.jsonl")
GRADER_OF_SOURCE = {"arithmetic": "math", "knowledge": "medical", "instructions": "figfont"}


def shipped_items() -> Iterator[RecordFields]:
    """Read the rows that are shipped with the platform."""
    for line in ITEMS_FILE.read_text(encoding="utf-8").splitlines():
        yield json.loads(line)


def read_item(record: RecordFields, number: int) -> Item:
    """Read a question, with its options below it where it has some."""
    options = record.get("options")
    lines = [record["question"]]
    if options:
        lines += [f"{letter}. {text}" for letter, text in options.items()]
        lines.append("Answer with the letter of the right option.")
    return Item(
        id=record["id"],
        prompt=({"role": "user", "content": "\n".join(lines)},),
        gold=record["answer"],
        options=options,
        source=record["source"],
        grader=GRADER_OF_SOURCE[record["source"]],
    )


GENERAL = Benchmark(
    name="general",
    summary="arithmetic, general knowledge and plain instructions: what a model could do before",
    source="written for this platform",
    records=shipped_items,
    read=read_item,
    grader="figfont",
    sampling=Sampling(max_tokens=48),
    metrics=(accuracy, pass_at_k),
    size=100,
    several_sources=True,
)
