"""The answer of a worked sum."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from deft.evaluators.grading.chain_sum import grade
from deft.evaluators.grading.sandbox.pool import GraderPool
from deft.workers.data.chain_sum import chain_sum_examples


@pytest.mark.parametrize(
    ("response", "gold", "verdict", "extracted"),
    [
        ("7+5=12\n12-3=9", "9", "correct", "9"),
        ("3 - 8 = -5\n-5 + 5 = 0\n", "0", "correct", "0"),
        ("3 - 8 = -5\n-5 - 2 = -7", "-7", "correct", "-7"),
        ("3 - 8 = -5\n-5 - 2 = 7", "-7", "wrong", "7"),
        ("7 + 5 = 99\n99 - 3 = 9", "9", "correct", "9"),
        ("7 + 5 = 12", "9", "wrong", "12"),
        ("7 + 5 = 1 2", "12", "no_answer", None),
        ("7 + 5 = 12\n12 - 3 =", "9", "no_answer", None),
        ("9", "9", "no_answer", None),
        ("", "9", "no_answer", None),
    ],
)
def test_verdicts(response: str, gold: str, verdict: str, extracted: str | None) -> None:
    graded = grade({"response": response, "gold": gold, "finish_reason": "stop"})
    assert (graded.verdict, graded.extracted) == (verdict, extracted)


def test_what_was_cut_off_might_have_gone_on() -> None:
    record = {"response": "7 + 5 = 12", "gold": "12", "finish_reason": "length"}
    assert grade(record).verdict == "truncated"


@pytest.fixture(scope="module")
def pool() -> Iterator[GraderPool]:
    with GraderPool("chain_sum", workers=1) as started:
        yield started


def test_every_worked_response_is_graded_correct(pool: GraderPool) -> None:
    examples = list(chain_sum_examples("test", 50))
    golds = [example.response.rpartition("=")[2] for example in examples]
    grades = [
        pool.submit({"response": example.response, "gold": gold})
        for example, gold in zip(examples, golds, strict=True)
    ]
    assert {future.result().verdict for future in grades} == {"correct"}


def test_gold_must_be_an_integer(pool: GraderPool) -> None:
    with pytest.raises(ValueError, match="gold: expected an integer, found '9 or so'"):
        pool.submit({"response": "9", "gold": "9 or so"})
