"""Letters as the only possible responses, and what stays of control tokens in the others."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from deft.evaluators.benchmarks.base import Item
from deft.evaluators.benchmarks.catalog import get_benchmark
from deft.evaluators.generation.benchmark_prompts import BenchmarkPrompts, letter_ids
from deft.evaluators.generation.engine import Generation
from deft.evaluators.generation.prompts import Stops, dropped_tokens
from deft.evaluators.grading.choice.grader import grade


def test_letters_are_single_tokens_or_refused(tiny_tokenizer: Any) -> None:
    ids = letter_ids(tiny_tokenizer, {"A": "one", "B": "two"})
    assert tiny_tokenizer.batch_decode([[token_id] for token_id in ids]) == ["A", "B"]
    with pytest.raises(ValueError, match=r"options Yes, No: .* each letter is one token"):
        letter_ids(tiny_tokenizer, {"Yes": "", "No": ""})
    with pytest.raises(ValueError, match="options are missing"):
        letter_ids(tiny_tokenizer, {})


MARKS = ["[THINK]", "[/THINK]", "<|channel|>", "<|message|>", "<|start|>", "<|end|>"]


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("[THINK]Is it B?[/THINK]It is D.", "[THINK]Is it B?[/THINK]It is D."),
        (
            "<|channel|>analysis<|message|>B?<|end|><|start|>assistant<|channel|>final<|message|>D",
            "<|channel|>analysis<|message|>B?<|end|><|start|>assistant<|channel|>final<|message|>D",
        ),
        # A model that ends its turn with another token than its own goes on with a next one.
        ("D<|end|>\n<|im_start|>user\nAnd B?", "D<|end|>\n<|im_start|>user\nAnd B?"),
        # What only fills or delimits is no text.
        ("<|filler|>D<|filler|><|endoftext|>", "D"),
    ],
)
def test_responses_keep_what_graders_read(tiny_tokenizer: Any, text: str, stored: str) -> None:
    tokenizer = deepcopy(tiny_tokenizer)
    tokenizer.add_tokens([*MARKS, "<|filler|>"], special_tokens=True)
    item = Item("1", ({"role": "user", "content": "?"},), "D", {"A": "x", "B": "y", "D": "z"})
    end = tokenizer.eos_token_id
    prompts = BenchmarkPrompts(
        get_benchmark("medical"),
        tokenizer,
        style="chat",
        stops=Stops([end], []),
        items={"1": item},
        prompts={"1": [1]},
        dropped=dropped_tokens(tokenizer),
        header=[],
    )
    token_ids = tokenizer.encode(text.replace("<|endoftext|>", ""), add_special_tokens=False)
    response = prompts.response("1", 0, Generation([*token_ids, end], "stop"))
    assert response.response == stored
    assert len(token_ids) < len(text) - 5  # control tokens are single tokens
    record = {"response": response.response, "gold": "D", "options": item.options}
    assert grade(record).verdict == "correct"
