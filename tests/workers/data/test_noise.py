"""Label noise exchanges responses, and nothing else."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest

from deft.workers.common.example import IGNORE_INDEX
from deft.workers.data.noise import choose_donors, plan_exchange, write_noisy_rows

EOS = 9
Row = tuple[tuple[int, ...], tuple[int, ...]]
"""Prompt and response, as token ids."""


def exchange(
    tmp_path: Path, rows: datasets.Dataset, *, share: float, seed: int = 0, max_length: int = 100
) -> tuple[datasets.Dataset, np.ndarray]:
    """All rows, the noisy ones among them exchanged."""
    exchange = plan_exchange(rows, share=share, seed=seed, max_length=max_length)
    file = tmp_path / f"{len(list(tmp_path.iterdir()))}.arrow"
    write_noisy_rows(rows, exchange, file)
    indices = np.arange(len(rows))
    indices[exchange.is_noisy] = len(rows) + np.arange(exchange.is_noisy.sum())
    both = datasets.concatenate_datasets([rows, datasets.Dataset.from_file(str(file))])
    return both.select(indices), exchange.is_noisy


def exchanged(
    tmp_path: Path, rows: list[Row], *, share: float, seed: int = 0, max_length: int = 100
) -> tuple[list[Row], list[bool]]:
    masked = [[IGNORE_INDEX] * len(prompt) for prompt, _ in rows]
    dataset = datasets.Dataset.from_dict(
        {
            "input_ids": [[*prompt, *response] for prompt, response in rows],
            "labels": [m + list(r) for m, (_, r) in zip(masked, rows, strict=True)],
            "weights": [None] * len(rows),
            "example": range(len(rows)),
        }
    )
    got, is_noisy = exchange(tmp_path, dataset, share=share, seed=seed, max_length=max_length)
    assert got["example"][:] == list(range(len(rows)))
    after = []
    for row, (prompt, _) in zip(got, rows, strict=True):
        assert row["labels"][: len(prompt)] == [IGNORE_INDEX] * len(prompt)
        assert row["labels"][len(prompt) :] == row["input_ids"][len(prompt) :]
        assert tuple(row["input_ids"][: len(prompt)]) == prompt
        after.append((prompt, tuple(row["input_ids"][len(prompt) :])))
    return after, is_noisy.tolist()


def distinct(number: int) -> list[Row]:
    return [((1, n), (2, *([3] * (n % 4)), n, EOS)) for n in range(10, 10 + number)]


def test_a_share_of_the_rows_exchanges_responses_and_the_rest_keeps_its_own(tmp_path: Path) -> None:
    rows = distinct(1500)
    after, is_noisy = exchanged(tmp_path, rows, share=0.3)
    assert sum(is_noisy) == 450
    for before, now, noisy in zip(rows, after, is_noisy, strict=True):
        assert (before != now) == noisy
    assert Counter(r for _, r in after) == Counter(r for _, r in rows)


def test_choice_follows_the_seed_and_grows_with_the_share(tmp_path: Path) -> None:
    rows = distinct(200)
    third, same, other = (
        exchanged(tmp_path, rows, share=0.3, seed=seed) for seed in (0, 0, 2**32 - 1)
    )
    assert third == same
    assert third[1] != other[1]
    half = exchanged(tmp_path, rows, share=0.5)[1]
    assert all(more for more, less in zip(half, third[1], strict=True) if less)


def test_all_rows_and_no_row(tmp_path: Path) -> None:
    rows = distinct(50)
    after, is_noisy = exchanged(tmp_path, rows, share=1.0)
    assert all(is_noisy)
    assert not set(after) & set(rows)
    assert exchanged(tmp_path, rows, share=0.0) == (rows, [False] * 50)
    assert exchanged(tmp_path, rows[:1], share=1.0) == (rows[:1], [False])


def test_equal_responses_are_not_exchanged_for_each_other(tmp_path: Path) -> None:
    letters: list[Row] = [((1, n), (2 + n % 4, EOS)) for n in range(40)]
    after, is_noisy = exchanged(tmp_path, letters, share=1.0)
    assert all(is_noisy)
    assert all(before != now for before, now in zip(letters, after, strict=True))
    assert exchanged(tmp_path, [((1, n), (2, EOS)) for n in range(9)], share=1.0)[1] == [False] * 9


def test_of_a_majority_as_many_as_possible_change() -> None:
    responses = np.array([5] * 7 + [6, 7, 8])
    donors = choose_donors(responses, 1.0, seed=0)
    assert (responses != responses[donors]).sum() == 6
    assert sorted(donors) == list(range(10))


def test_response_that_would_not_fit_is_not_taken(tmp_path: Path) -> None:
    rows = [((1,) * 8, (3, EOS)), ((2,), (4, 4, 4, EOS))]
    after, is_noisy = exchanged(tmp_path, rows, share=1.0, max_length=10)
    assert is_noisy == [False, True]
    assert after == [rows[0], ((2,), (3, EOS))]


def test_only_the_last_turn_of_a_conversation_is_exchanged(tmp_path: Path) -> None:
    """A prompt may hold targets: the assistant's earlier turns."""
    talks = datasets.Dataset.from_dict(
        {
            "input_ids": [[1, 5, 1, n, EOS] for n in (2, 3)],
            "labels": [[IGNORE_INDEX, 5, IGNORE_INDEX, n, EOS] for n in (2, 3)],
            "weights": [None, [0.0, 2.0, 0.0, 0.5, 0.5]],
        }
    )
    got, _ = exchange(tmp_path, talks, share=1.0, max_length=9)
    assert got["input_ids"][:] == [[1, 5, 1, 3, EOS], [1, 5, 1, 2, EOS]]
    assert got["labels"][:] == [[IGNORE_INDEX, 5, IGNORE_INDEX, n, EOS] for n in (3, 2)]
    assert got["weights"][:] == [[1.0, 1.0, 1.0, 0.5, 0.5], [0.0, 2.0, 0.0, 1.0, 1.0]]


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_donors_are_a_permutation(share: float) -> None:
    responses = np.random.default_rng(0).integers(0, 50, 400)
    donors = choose_donors(responses, share, seed=3)
    assert sorted(donors) == list(range(400))
    assert (responses != responses[donors]).sum() == 400 * share
