"""The chain_sum task: right answers, and splits that share no question."""

from __future__ import annotations

from itertools import islice

import pytest

from deft.workers.common.example import Example
from deft.workers.data import chain_sum
from deft.workers.data.chain_sum import chain_sum_examples, working
from deft.workers.data.datasets import read_examples
from deft.workers.dataset_spec import DatasetSpec


def question(example: Example) -> str:
    (turn,) = example.prompt
    return turn["content"]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("7 + 5 - 3", "7+5=12\n12-3=9"),
        ("3 - 8 - 2 + 7", "3-8=-5\n-5-2=-7\n-7+7=0"),
    ],
)
def test_working_goes_from_left_to_right(expression: str, expected: str) -> None:
    assert working(expression) == expected


def test_every_step_is_right_and_the_last_is_the_answer() -> None:
    for example in chain_sum_examples("train", 300):
        lines = example.response.split("\n")
        for line in lines:
            left, _, right = line.partition("=")
            assert eval(left) == int(right)
        assert eval(question(example).removesuffix("=")) == int(right)
        assert len(lines) == sum(map(question(example).count, "+-"))


def test_no_question_is_asked_twice_in_a_split_or_in_two() -> None:
    splits = [
        {question(example) for example in chain_sum_examples(name, 3000)}
        for name in ("pretrain", "train")
    ]
    splits.append({question(example) for example in chain_sum_examples("test", 1000)})
    assert [len(split) for split in splits] == [3000, 3000, 1000]
    assert len(set.union(*splits)) == 7000


def test_examples_are_the_same_every_time_however_many_are_asked_for() -> None:
    few = list(chain_sum_examples("train", 20))
    assert few == list(islice(chain_sum_examples("train", 40), 20))
    assert few == list(read_examples(DatasetSpec(name="chain_sum", size=20)))
    assert few != list(read_examples(DatasetSpec(name="chain_sum", size=20, split="pretrain")))
    assert len({example.id for example in few}) == 20


def test_split_that_is_used_up_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain_sum, "MAX_REPETITIONS", 200)
    found = list(chain_sum_examples("test", 10**9))
    assert found == list(chain_sum_examples("test", len(found)))
    assert len(found) > 1000


def test_splits_are_checked_like_any_name() -> None:
    with pytest.raises(ValueError, match=r"split: unknown split 'pretrian'.*mean pretrain\?"):
        DatasetSpec(name="chain_sum", split="pretrian")
    with pytest.raises(ValueError, match=r"split: .* There are: pretrain, train\."):
        DatasetSpec(name="chain_sum", split="test")
    with pytest.raises(ValueError, match=r"split: .* There are: train\."):
        DatasetSpec(name="figfont", split="test")
    with pytest.raises(ValueError, match="size: chain_sum has 100000 training examples"):
        DatasetSpec(name="chain_sum", size=100_001)
