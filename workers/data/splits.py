"""Which tokenized rows are trained on and which are held out: selections from the same tables."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deft.workers.common.example import IGNORE_INDEX
from deft.workers.data.example_store import (
    BATCH_SIZE,
    EXAMPLES_OF_ROWS_FILE,
    INDICES_FILE,
    NOISY_FILE,
    link_tables,
    open_rows,
    open_tables,
)
from deft.workers.data.noise import plan_exchange, write_noisy_rows
from deft.workers.data.tokenization import write_with_target_bytes

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from deft.workers.dataset_spec import DatasetSpec


@dataclass(frozen=True)
class Rows:
    """Tokenized rows of one or several data sets, one data set after the other."""

    table: Dataset
    """Columns of `deft.workers.data.tokenization.tokenize`."""
    source: NDArray[np.int64]
    """The data set that each row is of, by its number."""
    example: NDArray[np.int64]
    """Position of the example behind each row among the examples of all data sets."""


def open_sources(tokenized: Sequence[Path], num_examples: Sequence[int]) -> Rows:
    """Open the rows in the directories ``tokenized``, made of ``num_examples`` each."""
    import datasets

    tables = [open_tables(directory) for directory in tokenized]
    table = datasets.concatenate_datasets(tables)
    source = np.repeat(np.arange(len(tables)), list(map(len, tables)))
    first_examples = np.cumsum([0, *num_examples[:-1]])
    return Rows(table, source, column(table, "example") + first_examples[source])


def write_splits(
    dataset: DatasetSpec,
    tokenized: Sequence[Path],
    num_examples: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    seed: int,
    directory: Path,
) -> list[dict[str, int]]:
    """Write `train` and `validation` to ``directory``, both for `open_rows`.

    Args:
        dataset: what to take of the rows and to hold out.
        tokenized: directory of the rows of each of ``dataset.sources``.
        num_examples: examples that each of them was made from.
        tokenizer: what spells the rows.
        max_length: most tokens of a row.
        seed: of every choice.
        directory: an empty one.

    Returns:
        For each source the counts of `deft.workers.data.prepare.SourceCounts`.

    Raises:
        ValueError: mixture or noise cannot be as they are asked for.
    """
    rows = open_sources(tokenized, num_examples)
    drawn = draw_mixture(dataset, np.bincount(rows.source, minlength=len(tokenized)), seed)
    groups = column(rows.table, "group")[drawn]
    held_out = hold_out(groups, dataset.num_validation(len(drawn)), seed)
    train, validation = drawn[~held_out], drawn[held_out]
    for name, indices in (("train", train), ("validation", validation)):
        (directory / name).mkdir()
        np.save(directory / name / EXAMPLES_OF_ROWS_FILE, rows.example[indices])
    write_with_target_bytes(
        rows.table.select(validation), tokenizer, directory / "validation" / "rows.arrow"
    )
    link_tables(directory / "train", tokenized)
    is_noisy = np.zeros(len(train), dtype=np.bool_)
    picked = train
    if dataset.noise:
        clean = rows.table.select(train)
        is_noisy = write_noise(
            clean, dataset.noise, max_length=max_length, seed=seed, directory=directory / "train"
        )
        # Tables stand in the order of their names: the noisy rows are numbered after all others.
        picked = train.copy()
        picked[is_noisy] = len(rows.table) + np.arange(is_noisy.sum())
    np.save(directory / "train" / INDICES_FILE, picked)
    np.save(directory / "train" / NOISY_FILE, is_noisy)
    num_tokens, num_target_tokens = count_tokens(open_rows(directory / "train"))
    counts = []
    for number in range(len(tokenized)):
        in_train = rows.source[train] == number
        counts.append(
            {
                "num_examples": int(in_train.sum()),
                "num_validation_examples": int((rows.source[validation] == number).sum()),
                "num_noisy_examples": int(is_noisy[in_train].sum()),
                "num_tokens": int(num_tokens[in_train].sum()),
                "num_target_tokens": int(num_target_tokens[in_train].sum()),
            }
        )
    return counts


def write_noise(
    rows: Dataset, share: float, *, max_length: int, seed: int, directory: Path
) -> NDArray[np.bool_]:
    """Exchange responses of ``share`` of ``rows``; write the noisy ones as the last table.

    Returns:
        Which rows are noisy, bool [N].

    Raises:
        ValueError: none is.
    """
    exchange = plan_exchange(rows, share=share, seed=seed, max_length=max_length)
    if not exchange.is_noisy.any():
        raise ValueError(
            f"dataset.noise: {share:g} of {len(rows):,} training examples leaves none "
            "that could get another one's response"
        )
    write_noisy_rows(rows, exchange, directory / "noisy.arrow")
    return exchange.is_noisy


def draw_mixture(dataset: DatasetSpec, num_rows: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Choose which rows take part: all but those that weights leave out.

    Args:
        dataset: its sources and their weights.
        num_rows: rows of each source, int64 [S].
        seed: of the choice; what is drawn of a source is part of any larger draw.

    Returns:
        int64 [N], ascending.
    """
    weights = [getattr(source, "weight", None) for source in dataset.sources]
    counts = mixture_counts(num_rows, weights, dataset.size if dataset.mixture else None)
    first_rows = np.cumsum([0, *num_rows[:-1]])
    drawn = [
        first + np.sort(np.random.default_rng([seed, number]).permutation(available)[:count])
        for number, (first, available, count) in enumerate(
            zip(first_rows, num_rows, counts, strict=True)
        )
    ]
    return np.concatenate(drawn)


def mixture_counts(
    num_rows: NDArray[np.int64], weights: Sequence[float | None], size: int | None
) -> NDArray[np.int64]:
    """Return how many rows to draw of each source, see `deft.workers.dataset_spec.MixedSourceSpec`.

    Args:
        num_rows: rows that each source has, int64 [S].
        weights: of each source; None to take all its rows.
        size: rows altogether; None for as many as the weights allow.

    Returns:
        int64 [S].

    Raises:
        ValueError: a weighted source gets no row.
    """
    is_drawn = np.array([weight is not None for weight in weights])
    if not is_drawn.any():
        return num_rows
    weight = np.array([weight or 0.0 for weight in weights])
    rows_per_weight = (num_rows[is_drawn] / weight[is_drawn]).min()
    if size is not None:
        rows_per_weight = min(rows_per_weight, (size - num_rows[~is_drawn].sum()) / weight.sum())
    shares = np.where(is_drawn, rows_per_weight * weight, num_rows)
    # A share may be a hair less than the whole number that it stands for.
    counts = np.floor(shares + 1e-6).astype(np.int64)
    num_left = int(shares.sum() + 1e-6) - counts.sum()
    counts[np.argsort(counts - shares, kind="stable")[:num_left]] += 1
    if counts.min() < 1:
        number = int(counts.argmin())
        raise ValueError(
            f"dataset.mixture: by the weights none of the {num_rows[number]:,} examples of data "
            f"set {number + 1} would be taken; raise its weight or dataset.size, or leave it out"
        )
    return counts


def hold_out(groups: NDArray[np.int64], size: int, seed: int) -> NDArray[np.bool_]:
    """Choose which of the rows to hold out: whole groups in an order drawn from ``seed``.

    A group joins if it fits into what is left of ``size``, so the number is met exactly unless the
    groups are large. The order depends on each group alone: more data moves few of them.

    Args:
        groups: int64 [N], the same number for rows that ask the same.
        size: rows to hold out.
        seed: changes the choice.

    Returns:
        bool [N].
    """
    names, group_of_row, num_members = np.unique(groups, return_inverse=True, return_counts=True)
    digests = (hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest() for name in names)
    ranks = np.fromiter((int.from_bytes(d, "big") for d in digests), np.uint64, len(names))
    is_chosen = np.zeros(len(names), dtype=np.bool_)
    num_left = size
    for group in np.argsort(ranks, kind="stable"):
        if num_left == 0:
            break
        if num_members[group] <= num_left:
            is_chosen[group] = True
            num_left -= int(num_members[group])
    return is_chosen[group_of_row]


def column(rows: Dataset, name: str) -> NDArray[np.int64]:
    """Return one column of numbers, int64 [N]; no other is read."""
    values = rows.select_columns(name).with_format("arrow")[:].column(name)
    return np.asarray(values.to_numpy(), dtype=np.int64)


def count_tokens(rows: Dataset) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count all tokens of each of ``rows``, and those that carry loss; int64 [N] both."""
    num_tokens = np.zeros(len(rows), dtype=np.int64)
    num_targets = np.zeros(len(rows), dtype=np.int64)
    start = 0
    for batch in rows.select_columns("labels").with_format("arrow").iter(batch_size=BATCH_SIZE):
        labels = batch.column("labels").combine_chunks()
        lengths = labels.value_lengths().to_numpy()
        is_target = labels.flatten().to_numpy() != IGNORE_INDEX
        row = np.repeat(np.arange(start, start + len(lengths)), lengths)
        stop = start + len(lengths)
        num_tokens[start:stop] = lengths
        num_targets[start:stop] = np.bincount(row[is_target] - start, minlength=len(lengths))
        start = stop
    return num_tokens, num_targets
