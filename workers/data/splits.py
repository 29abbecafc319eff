"""Which tokenised rows are trained on and which are held out: selections from the same tables."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

    from deft.workers.spec import DatasetSpec


def write_splits(
    tokenized: Path,
    dataset: DatasetSpec,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    seed: int,
    directory: Path,
) -> dict[str, Any]:
    """Write `train` and `validation` to ``directory``, both for `open_rows`.

    Returns:
        The counts of `deft.workers.data.prepare.Prepared`.
    """
    rows = open_tables(tokenized)
    held_out = hold_out(column(rows, "group"), dataset.num_validation(len(rows)), seed)
    validation, train = np.flatnonzero(held_out), np.flatnonzero(~held_out)
    positions = column(rows, "example")
    for name, indices in (("train", train), ("validation", validation)):
        (directory / name).mkdir()
        np.save(directory / name / EXAMPLES_OF_ROWS_FILE, positions[indices])
    write_with_target_bytes(
        rows.select(validation), tokenizer, directory / "validation" / "rows.arrow"
    )
    link_tables(directory / "train", [tokenized])
    is_noisy = np.zeros(len(train), dtype=np.bool_)
    if dataset.noise:
        exchange = plan_exchange(
            rows.select(train), share=dataset.noise, seed=seed, max_length=max_length
        )
        is_noisy = exchange.is_noisy
        if not is_noisy.any():
            raise ValueError(
                f"dataset.noise: {dataset.noise:g} of {len(train):,} training examples leaves none "
                "that could get another one's response"
            )
        # Tables stand in the order of their names: the noisy rows are numbered after all others.
        write_noisy_rows(rows.select(train), exchange, directory / "train" / "noisy.arrow")
        train[is_noisy] = len(rows) + np.arange(is_noisy.sum())
    np.save(directory / "train" / INDICES_FILE, train)
    np.save(directory / "train" / NOISY_FILE, is_noisy)
    num_tokens, num_target_tokens = count_tokens(open_rows(directory / "train"))
    return {
        "num_examples": len(train),
        "num_validation_examples": len(validation),
        "num_noisy_examples": int(is_noisy.sum()),
        "num_tokens": num_tokens,
        "num_target_tokens": num_target_tokens,
    }


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


def count_tokens(rows: Dataset) -> tuple[int, int]:
    """Count all tokens in ``rows``, and those that carry loss."""
    import pyarrow.compute as pc

    num_tokens = num_targets = 0
    labels = rows.select_columns("labels").with_format("arrow")
    for batch in labels.iter(batch_size=BATCH_SIZE):
        flat = pc.list_flatten(batch.column("labels"))
        num_tokens += len(flat)
        num_targets += pc.sum(pc.not_equal(flat, IGNORE_INDEX)).as_py() or 0
    return num_tokens, num_targets
