"""From examples to micro-batches."""

from __future__ import annotations

import pytest
import torch

from deft.workers.data.figfont import TEST_START, figfont_examples
from deft.workers.training.batches import collate, padding_share, split_by_count, step_indices


@pytest.mark.parametrize(
    ("start", "word"), [(0, "USNIC"), (1, "MAD"), (2, "SUDE"), (TEST_START, "IGAD")]
)
def test_figfont_items_are_the_papers(start: int, word: str) -> None:
    (example,) = figfont_examples(start, 1)
    assert example.response == word
    assert example.prompt[1]["content"].startswith("What word does this say?\n\n")


def test_figfont_items_do_not_depend_on_the_slice() -> None:
    assert list(figfont_examples(0, 6))[4:] == list(figfont_examples(4, 2))


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
    cut = split_by_count(indices, lengths, size=micro_batch_size, world_size=world_size)
    assert sorted(i for rank in cut for batch in rank for i in batch) == sorted(indices)
    assert {len(batch) for rank in cut for batch in rank} == {micro_batch_size}
    assert len({len(rank) for rank in cut}) == 1
    by_length = [[lengths[i] for i in batch] for rank in cut for batch in rank]
    padding = sum(max(batch) * len(batch) - sum(batch) for batch in by_length)
    positions = sum(max(batch) * len(batch) for batch in by_length)
    assert padding_share(cut, lengths, packing=False) == pytest.approx(padding / positions)


def test_collate_pads_on_the_right_and_gives_padding_no_target() -> None:
    rows = [
        {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]},
        {"input_ids": [8], "labels": [8]},
    ]
    batch = collate(rows, fill_token_id=0, device=torch.device("cpu"), packing=False)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [8, -100, -100]]
