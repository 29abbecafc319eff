"""Real benchmarks, where they are beside the checkout: golds against themselves and each other."""

from __future__ import annotations

import ast
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from deft.evaluators.grading.math.expressions import warm_up
from deft.evaluators.grading.math.grader import gold_answer, grade
from helpers import SHARED

BENCHMARKS = SHARED / "benchmarks"
pytestmark = pytest.mark.skipif(
    not BENCHMARKS.is_dir(), reason=f"no benchmark files in {BENCHMARKS}"
)
GOLDS: dict[str, Callable[[dict[str, Any]], str]] = {
    "math500": lambda item: str(item["answer"]),
    "minerva_math": lambda item: str(item["solution"]),
    "olympiadbench": lambda item: ", ".join(ast.literal_eval(str(item["final_answer"]))),
    "aime24": lambda item: str(item["answer"]),
    "amc23": lambda item: str(item["answer"]),
    "gsm8k": lambda item: str(item["answer"]),
}
FRAMES = [
    r"We compute. Let $x = 3$. $\boxed{%s}$",
    "Final Answer: The final answer is $%s$. I hope it is correct.",
    "After some algebra, the answer is $%s$.",
    "Hence we get\n\\[\n\\boxed{%s}.\n\\]\nDone.",
]


def read(name: str) -> Iterator[dict[str, Any]]:
    for line in (BENCHMARKS / f"{name}.jsonl").read_text().splitlines():
        yield json.loads(line)


def bare(gold: str) -> str:
    """Return the answer as a model would write it: without the dollars that delimit formulas."""
    return gold_answer(gold).replace(r"\$", "\0").replace("$", "").replace("\0", r"\$")


@pytest.mark.parametrize("name", GOLDS)
def test_every_gold_is_correct_against_itself(name: str) -> None:
    wrong = []
    for gold in map(GOLDS[name], read(name)):
        for frame in FRAMES:
            if grade({"response": frame % bare(gold), "gold": gold}).verdict != "correct":
                wrong.append((gold, frame))
    assert wrong == []


def test_solutions_end_in_their_answers() -> None:
    for item in read("math500"):
        solved = grade({"response": item["solution"], "gold": item["answer"]})
        assert solved.verdict == "correct", item["answer"]


def test_golds_of_different_items_are_different() -> None:
    warm_up()
    confused = []
    for name in ("math500", "minerva_math", "olympiadbench"):
        golds = sorted({bare(gold) for gold in map(GOLDS[name], read(name))})
        for left, right in random.Random(0).choices(
            [(a, b) for a in golds for b in random.Random(a).sample(golds, 3) if a != b], k=500
        ):
            if grade({"response": rf"\boxed{{{left}}}", "gold": right}).verdict == "correct":
                confused.append((left, right))
    # Each is 120 against 120° or the like: the same number, with and without a unit.
    assert len(confused) <= 3, confused
