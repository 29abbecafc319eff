"""From examples to rows of token ids, some of them held out for validation."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from deft.workers.common.example import IGNORE_INDEX, Example
from deft.workers.data.chat import (
    require_eos,
    require_tokens,
    special_tokens,
    try_encode,
)
from deft.workers.data.example_store import BATCH_SIZE, map_batches, to_examples
from deft.workers.data.readers import BadRecord, Tally
from deft.workers.data.templates.texts import example_texts

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

Encoded = tuple[list[int], list[int]]


@dataclass
class Lengths:
    """What became of the examples that were longer than allowed."""

    num_too_long: int = 0
    """Left out."""
    num_truncated: int = 0
    """Cut on the right."""


def tokenize(
    examples: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    style: str,
    max_length: int,
    too_long: Literal["drop", "truncate", "refuse"],
    bad: Tally,
    long: Tally,
    cache_file: str,
) -> tuple[Dataset, Lengths]:
    """Encode ``examples``, rows of `deft.workers.data.example_store`.

    Args:
        examples: what to encode.
        tokenizer: the model's tokenizer.
        style: prompt style.
        max_length: most tokens of a row.
        too_long: what to do about longer examples.
        bad: told of examples that cannot be rendered.
        long: told of examples that are left out or cut because of their length.
        cache_file: Arrow file that the rows are written to.

    Returns:
        Rows of the columns input_ids and labels (int32 lists of equal length), group (int64) and
        example (int64, the position in ``examples``); and the number of long examples.

    Raises:
        ValueError: the style does not fit the tokenizer.
    """
    import datasets

    require_tokens(tokenizer, style)
    require_eos(tokenizer)
    lengths = Lengths()
    control = re.compile("|".join(map(re.escape, special_tokens(tokenizer))) or r"(?!)")

    def encode(batch: dict[str, list[Any]], positions: list[int]) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]] = {"input_ids": [], "labels": [], "group": [], "example": []}
        good: list[tuple[Example, int, int]] = []
        for example, group, position in zip(
            to_examples(batch), batch["group"], positions, strict=True
        ):
            if spelled := spelled_token(example, control):
                message = (
                    f"the text spells the control token {spelled}, which would be read as one; "
                    "give bare texts, the prompt style adds control tokens"
                )
                bad.add(BadRecord(example.id, "control token", message))
            else:
                good.append((example, group, position))
        for (example, group, position), row in zip(
            good, encode_each(tokenizer, [g[0] for g in good], style, bad), strict=True
        ):
            if row is None:
                continue
            input_ids, labels = row
            if len(input_ids) > max_length:
                kept = too_long == "truncate" and any(
                    label != IGNORE_INDEX for label in labels[:max_length]
                )
                done = "cut on the right" if kept else "left out"
                message = f"{len(input_ids):,} tokens, at most {max_length:,} fit; {done}"
                long.add(BadRecord(example.id, "truncated" if kept else "too long", message))
                lengths.num_truncated += kept
                lengths.num_too_long += not kept
                if not kept:
                    continue
                input_ids, labels = input_ids[:max_length], labels[:max_length]
            for column, value in zip(
                columns.values(), (input_ids, labels, group, position), strict=True
            ):
                column.append(value)
        return columns

    ids = datasets.List(datasets.Value("int32"))
    rows = map_batches(
        examples,
        encode,
        features=datasets.Features(
            input_ids=ids,
            labels=ids,
            group=datasets.Value("int64"),
            example=datasets.Value("int64"),
        ),
        cache_file=cache_file,
        name="rows",
        remove_columns=examples.column_names,
    )
    return rows, lengths


def spelled_token(example: Example, control: re.Pattern[str]) -> str:
    """The first control token that a text of ``example`` spells; empty if none does."""
    for text in example_texts(example):
        if found := control.search(text):
            return found.group()
    return ""


def encode_each(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], style: str, bad: Tally
) -> list[Encoded | None]:
    """`encode_examples`, with None for those that cannot be rendered, of which ``bad`` is told."""
    rows: list[Encoded | None] = []
    outcomes = try_encode(tokenizer, examples, style=style)
    for example, outcome in zip(examples, outcomes, strict=True):
        if isinstance(outcome, ValueError):
            bad.add(BadRecord(example.id, "not renderable", str(outcome)))
            rows.append(None)
        else:
            rows.append(outcome)
    return rows


def hold_out(groups: NDArray[np.int64], size: int, seed: int) -> NDArray[np.bool_]:
    """Which of the rows to hold out: whole groups in an order drawn from ``seed``.

    A group joins if it fits into what is left of ``size``, so the number is met exactly unless the
    groups are large. The order depends on each group alone: more data moves few of them.

    Args:
        groups: int64 [N], the same number for rows that ask the same.
        size: rows to hold out.
        seed: changes the choice.

    Returns:
        bool [N].
    """
    names, members = np.unique(groups, return_counts=True)
    ranks = [
        hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
        for name in names.tolist()
    ]
    chosen, left = [], size
    for index in sorted(range(len(names)), key=ranks.__getitem__):
        if left == 0:
            break
        if members[index] <= left:
            chosen.append(names[index])
            left -= int(members[index])
    return np.isin(groups, np.array(chosen, dtype=np.int64))


def column(rows: Dataset, name: str) -> NDArray[np.int64]:
    """One column of numbers, int64 [N]; no other is read."""
    values = rows.select_columns(name).with_format("arrow")[:].column(name)
    return np.asarray(values.to_numpy(), dtype=np.int64)


def count_tokens(rows: Dataset) -> tuple[int, int]:
    """All tokens in ``rows``, and those that carry loss."""
    import pyarrow.compute as pc

    num_tokens = num_targets = 0
    labels = rows.select_columns("labels").with_format("arrow")
    for batch in labels.iter(batch_size=BATCH_SIZE):
        flat = pc.list_flatten(batch.column("labels"))
        num_tokens += len(flat)
        num_targets += pc.sum(pc.not_equal(flat, IGNORE_INDEX)).as_py() or 0
    return num_tokens, num_targets


def target_bytes(tokenizer: PreTrainedTokenizerBase, labels: Sequence[Sequence[int]]) -> list[int]:
    """UTF-8 bytes of the text that the target tokens of each row spell.

    Tokens that end a turn spell nothing. Divide by it for bits per byte, which compares models of
    different tokenizers.
    """
    targets = [[label for label in row if label != IGNORE_INDEX] for row in labels]
    texts = tokenizer.batch_decode(
        targets, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return [len(text.encode()) for text in texts]


def add_target_bytes(rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """``rows`` with the column target_bytes, see `target_bytes`."""
    import datasets

    lengths: list[int] = []
    for batch in rows.iter(batch_size=BATCH_SIZE):
        lengths += target_bytes(tokenizer, batch["labels"])
    return rows.add_column("target_bytes", lengths, feature=datasets.Value("int64"))
