"""A benchmark of one's own.

    deft evaluate --model smollm2-135m --benchmarks MODULE:sums
    deft run examples/quickstart.yaml --set "evaluation.benchmarks=[MODULE:sums]"

A benchmark is data, prompt, sampling, grader and metrics. What is written here is part of what
identifies results: after an edit, results of before are said to be of another definition.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from deft.evaluators.benchmarks.base import Benchmark, Item, RecordFields, Sampling
from deft.evaluators.scores.metrics import accuracy, majority, pass_at_k


def make_rows() -> Iterator[dict[str, Any]]:
    """Yield the rows. For a table of the Hugging Face hub write records=HubTable("org/name")."""
    generator = random.Random(0)
    for _ in range(100):
        a, b = generator.randint(2, 99), generator.randint(2, 99)
        yield {"question": f"What is {a} + {b}?", "answer": str(a + b)}


def read(row: RecordFields, number: int) -> Item | None:
    """Return the question in a row, or None to leave the row out."""
    prompt = ({"role": "user", "content": row["question"]},)
    return Item(id=str(number), prompt=prompt, gold=row["answer"])


sums = Benchmark(
    name="sums",
    summary="sums of two numbers, graded as mathematics",
    source="made here",
    records=make_rows,
    read=read,
    # A name such as math, or package.module:function for a grader of your own.
    grader="math",
    # At temperature 0 one response an item; give samples=4 and a temperature for pass@k.
    sampling=Sampling(max_tokens=64),
    metrics=(accuracy, pass_at_k, majority),
    # Added to each question by the prompt style.
    instruction="Put your final answer within \\boxed{}.",
    size=100,
)
