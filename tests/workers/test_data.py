"""From examples to micro-batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from deft.workers.batches import collate, micro_batches, step_indices
from deft.workers.chat import IGNORE_INDEX, Example, encode_example, encode_prompt
from deft.workers.datasets import load_examples, read_jsonl, tokenize
from deft.workers.figfont import TEST_START, figfont_examples
from deft.workers.models import train_tokenizer
from deft.workers.spec import DatasetSpec

GREETING = Example("greeting", ({"role": "user", "content": "hello there"},), "hi")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer([GREETING])


@pytest.mark.parametrize(
    ("start", "word"), [(0, "USNIC"), (1, "MAD"), (2, "SUDE"), (TEST_START, "IGAD")]
)
def test_figfont_items_are_the_papers(start: int, word: str) -> None:
    (example,) = figfont_examples(start, 1)
    assert example.response == word
    assert example.prompt[1]["content"].startswith("What word does this say?\n\n")


def test_figfont_items_do_not_depend_on_the_slice() -> None:
    assert list(figfont_examples(0, 6))[4:] == list(figfont_examples(4, 2))


def test_training_sees_the_prompt_of_evaluation_then_response_and_eos(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    prompt_ids = encode_prompt(tokenizer, GREETING.prompt)
    input_ids, labels = encode_example(tokenizer, GREETING)
    assert tokenizer.decode(input_ids) == (
        "<|im_start|>user\nhello there<|im_end|>\n<|im_start|>assistant\nhi<|im_end|>"
    )
    assert input_ids[: len(prompt_ids)] == prompt_ids
    assert labels[: len(prompt_ids)] == [IGNORE_INDEX] * len(prompt_ids)
    assert labels[len(prompt_ids) :] == input_ids[len(prompt_ids) :]
    assert labels[-1] == tokenizer.eos_token_id


def test_tokenizer_without_chat_template_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    template, tokenizer.chat_template = tokenizer.chat_template, None
    try:
        with pytest.raises(ValueError, match="has no chat template"):
            encode_prompt(tokenizer, GREETING.prompt)
    finally:
        tokenizer.chat_template = template


def test_examples_that_do_not_fit_are_left_out_and_counted(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    long = Example("long", GREETING.prompt, "no " * 50)
    length = len(encode_example(tokenizer, GREETING)[0])
    tokenized = tokenize([GREETING, long, GREETING], tokenizer, max_length=length)
    targets = 2 * (length - len(encode_prompt(tokenizer, GREETING.prompt)))
    assert tokenized.counts() == {
        "num_examples": 2,
        "num_too_long": 1,
        "num_tokens": 2 * length,
        "num_target_tokens": targets,
    }


def test_jsonl_is_read_in_order_and_cut_to_size(tmp_path: Path) -> None:
    file = tmp_path / "sums.jsonl"
    file.write_text(
        '{"prompt": "1+1", "response": "2", "id": 7}\n\n{"prompt": "é", "response": "3"}'
    )
    assert [(e.prompt[0]["content"], e.response) for e in read_jsonl(file)] == [
        ("1+1", "2"),
        ("é", "3"),
    ]
    assert len(load_examples(DatasetSpec(name=str(file), size=1))) == 1


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"{", "not a line of JSON"),
        (b'{"prompt": "\xff", "response": "b"}', "not a line of JSON: 'utf-8' codec"),
        (b'["a", "b"]', "expected a JSON object, got list"),
        (b'{"prompt": "a"}', "key 'response' is missing; there are: prompt"),
        (b'{"prompt": "a", "response": 3}', "'response' must be a non-empty string, got 3"),
        (b'{"prompt": "a", "response": " "}', "'response' must be a non-empty string"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: bytes, expected: str) -> None:
    file = tmp_path / "data.jsonl"
    file.write_bytes(b'{"prompt": "a", "response": "b"}\n' + line + b"\n")
    with pytest.raises(ValueError, match=r"data\.jsonl:2: ") as caught:
        list(read_jsonl(file))
    assert expected in str(caught.value)


def test_every_epoch_shows_each_example_at_most_once() -> None:
    steps = [step_indices(10, 4, step, seed=0) for step in range(4)]
    assert len(set(steps[0] + steps[1])) == 8
    assert len(set(steps[2] + steps[3])) == 8
    assert steps[:2] != steps[2:]
    assert steps == [step_indices(10, 4, step, seed=0) for step in range(4)]
    assert steps != [step_indices(10, 4, step, seed=1) for step in range(4)]


@pytest.mark.parametrize(("world_size", "micro_batch_size"), [(1, 4), (2, 4), (2, 2), (4, 1)])
def test_ranks_share_a_step_without_gap_or_overlap(world_size: int, micro_batch_size: int) -> None:
    indices, lengths = [7, 1, 4, 2, 9, 8, 0, 3], [5, 3, 8, 1, 9, 2, 7, 4, 6, 10]
    cut = [
        micro_batches(
            indices, lengths, rank=rank, world_size=world_size, micro_batch_size=micro_batch_size
        )
        for rank in range(world_size)
    ]
    assert sorted(i for rank in cut for batch in rank for i in batch) == sorted(indices)
    assert {len(batch) for rank in cut for batch in rank} == {micro_batch_size}
    assert len({len(rank) for rank in cut}) == 1


def test_collate_pads_on_the_right_and_gives_padding_no_target() -> None:
    rows = [
        {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]},
        {"input_ids": [8], "labels": [8]},
    ]
    batch = collate(rows, pad_token_id=0, device=torch.device("cpu"))
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [8, -100, -100]]
