"""From examples to rows of token ids, some of them held out for validation."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Literal

from deft.workers.common.example import IGNORE_INDEX, Example
from deft.workers.data.chat import (
    Encoded,
    require_eos,
    require_tokens,
    special_tokens,
    try_encode,
)
from deft.workers.data.example_store import (
    BAD_RECORDS_FILE,
    BATCH_SIZE,
    TOO_LONG,
    TRUNCATED,
    open_tables,
    to_examples,
    write_table,
)
from deft.workers.data.readers import BadRecord
from deft.workers.data.templates.texts import example_texts

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

SHARD_SIZE = 25_000
"""Most examples in an Arrow file of rows; more are worth the start of another process."""


@dataclass(frozen=True)
class RowFormat:
    """How examples become rows of token ids."""

    style: str
    """Prompt style."""
    max_length: int
    """Most tokens of a row."""
    truncate: Literal["left", "right"] | None
    """Side on which longer examples are cut; None leaves them out."""


@dataclass(frozen=True)
class Row:
    """A tokenized example."""

    input_ids: list[int]
    labels: list[int]
    """As many as ``input_ids``."""
    weights: list[float] | None
    """What the loss of each token is multiplied by; None where that is 1 for all."""
    group: int
    """The same for examples that ask the same."""
    example: int
    """Position of the example among all."""


@dataclass(frozen=True)
class RowEncoder:
    """Encodes examples under one tokenizer and format."""

    tokenizer: PreTrainedTokenizerBase
    row_format: RowFormat
    control: re.Pattern[str]
    """Matches the tokenizer's control tokens."""

    @classmethod
    def build(cls, tokenizer: PreTrainedTokenizerBase, row_format: RowFormat) -> RowEncoder:
        """Check that format and tokenizer go together.

        Raises:
            ValueError: they do not.
        """
        require_tokens(tokenizer, row_format.style)
        require_eos(tokenizer)
        control = "|".join(map(re.escape, special_tokens(tokenizer))) or r"(?!)"
        return cls(tokenizer, row_format, re.compile(control))

    def encode_batch(
        self, examples: Sequence[Example], groups: Sequence[int], start: int
    ) -> tuple[list[Row], list[BadRecord]]:
        """Encode ``examples``, the first of which stands at position ``start`` among all.

        Returns:
            The rows, and the examples that are left out or cut.
        """
        rows: list[Row] = []
        problems: list[BadRecord] = []
        outcomes = self._encode_each(examples)
        for position, (example, outcome) in enumerate(
            zip(examples, outcomes, strict=True), start=start
        ):
            if isinstance(outcome, BadRecord):
                problems.append(outcome)
                continue
            encoded, problem = self._fit(example.id, outcome)
            if problem is not None:
                problems.append(problem)
            if encoded is not None:
                rows.append(Row(*encoded, groups[position - start], position))
        return rows, problems

    def _encode_each(self, examples: Sequence[Example]) -> list[Encoded | BadRecord]:
        """Encode ``examples``; those that spell control tokens or cannot be rendered are bad."""
        spelled = [spelled_token(example, self.control) for example in examples]
        clean = [example for example, token in zip(examples, spelled, strict=True) if not token]
        encoded = iter(try_encode(self.tokenizer, clean, style=self.row_format.style))
        outcomes: list[Encoded | BadRecord] = []
        for example, token in zip(examples, spelled, strict=True):
            outcome = _control_token(example, token) if token else next(encoded)
            if isinstance(outcome, ValueError):
                outcome = BadRecord(example.id, "not renderable", str(outcome))
            outcomes.append(outcome)
        return outcomes

    def _fit(self, name: str, encoded: Encoded) -> tuple[Encoded | None, BadRecord | None]:
        """Cut an example that is too long, or leave it out, and say so."""
        limit = self.row_format.max_length
        if len(encoded.input_ids) <= limit:
            return encoded, None
        message = f"{len(encoded.input_ids):,} tokens, at most {limit:,} fit; "
        side = self.row_format.truncate
        kept = kept_tokens(side, limit)
        if side is not None and any(label != IGNORE_INDEX for label in encoded.labels[kept]):
            cut = Encoded._make(None if part is None else part[kept] for part in encoded)
            return cut, BadRecord(name, TRUNCATED, f"{message}cut on the {side}")
        return None, BadRecord(name, TOO_LONG, message + "left out")


def kept_tokens(truncation_side: Literal["left", "right"] | None, length: int) -> slice:
    """Return which tokens stay of an example that is cut to ``length``, or that is not cut."""
    if truncation_side is None:
        return slice(None)
    return slice(length) if truncation_side == "right" else slice(-length, None)


def spelled_token(example: Example, control: re.Pattern[str]) -> str:
    """Return the first control token that a text of ``example`` spells; empty if none does."""
    for text in example_texts(example):
        if match := control.search(text):
            return match.group()
    return ""


def _control_token(example: Example, token: str) -> BadRecord:
    message = (
        f"the text spells the control token {token}, which would be read as one; "
        "give bare texts, the prompt style adds control tokens"
    )
    return BadRecord(example.id, "control token", message)


def tokenize(examples_dir: Path, encoder: RowEncoder, directory: Path) -> None:
    """Encode all examples in ``examples_dir``, with as many processes as are worth their start.

    Args:
        examples_dir: Arrow files of `deft.workers.data.example_store`.
        encoder: what encodes them.
        directory: where Arrow files of rows go, in the order of the examples: input_ids and labels
            (int32 lists of equal length), weights (a float32 list as long, null where all are 1),
            group and example (int64). To `BAD_RECORDS_FILE` in it a
            line of JSON is added for each example that is left out or cut.
    """
    num_examples = len(open_tables(examples_dir))
    num_shards = max(1, -(-num_examples // SHARD_SIZE))
    bounds = [num_examples * shard // num_shards for shard in range(num_shards + 1)]
    shards = [
        Shard(examples_dir, start, stop, directory / f"{start:012d}.arrow")
        for start, stop in pairwise(bounds)
    ]
    if num_shards == 1:
        tokenize_shard(encoder, shards[0])
    else:
        num_processes = min(num_shards, len(os.sched_getaffinity(0)))
        with ProcessPoolExecutor(
            num_processes, get_context("spawn"), _start_worker, (encoder,)
        ) as pool:
            list(pool.map(_tokenize_in_worker, shards))
    with (directory / BAD_RECORDS_FILE).open("ab") as joined:
        for shard in shards:
            with shard.bad_records_file.open("rb") as part:
                shutil.copyfileobj(part, joined)
            shard.bad_records_file.unlink()


def row_fields() -> list[tuple[str, pa.DataType]]:
    """Return names and types of the columns of rows that training reads."""
    import pyarrow as pa

    ids = pa.list_(pa.int32())
    return [("input_ids", ids), ("labels", ids), ("weights", pa.list_(pa.float32()))]


@dataclass(frozen=True)
class Shard:
    """A run of examples, and where their rows go."""

    examples_dir: Path
    start: int
    """Position of the first example."""
    stop: int
    """Position after the last one."""
    rows_file: Path

    @property
    def bad_records_file(self) -> Path:
        """Return the file that lists examples that are left out or cut."""
        return self.rows_file.with_suffix(".jsonl")


def tokenize_shard(encoder: RowEncoder, shard: Shard) -> None:
    """Encode the examples of ``shard`` batch by batch."""
    import pyarrow as pa

    schema = pa.schema([*row_fields(), ("group", pa.int64()), ("example", pa.int64())])
    examples = open_tables(shard.examples_dir).select(range(shard.start, shard.stop))
    with shard.bad_records_file.open("w", encoding="utf-8") as bad_records:

        def encoded_batches() -> Iterator[pa.RecordBatch]:
            start = shard.start
            for columns in examples.iter(batch_size=BATCH_SIZE):
                batch = to_examples(columns)
                rows, problems = encoder.encode_batch(batch, columns["group"], start)
                start += len(batch)
                bad_records.writelines(json.dumps(asdict(bad)) + "\n" for bad in problems)
                arrays = [
                    pa.array([getattr(row, field.name) for row in rows], field.type)
                    for field in schema
                ]
                yield pa.RecordBatch.from_arrays(arrays, schema=schema)

        write_table(encoded_batches(), schema, shard.rows_file)


_worker_encoder: RowEncoder | None = None
"""What this worker process encodes with; a tokenizer is sent to each process once."""


def _start_worker(encoder: RowEncoder) -> None:
    global _worker_encoder
    _worker_encoder = encoder
    # There is a process for each core already.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Leave nothing behind where the parent was killed: its pool cannot tell its workers."""
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _tokenize_in_worker(shard: Shard) -> None:
    assert _worker_encoder is not None
    tokenize_shard(_worker_encoder, shard)


def target_bytes(tokenizer: PreTrainedTokenizerBase, labels: Sequence[Sequence[int]]) -> list[int]:
    """Count the UTF-8 bytes of the text that the target tokens of each row spell.

    Tokens that end a turn spell nothing. Divide by it for bits per byte, which compares models of
    different tokenizers.
    """
    targets = [[label for label in row if label != IGNORE_INDEX] for row in labels]
    texts = tokenizer.batch_decode(
        targets, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return [len(text.encode()) for text in texts]


def write_with_target_bytes(rows: Dataset, tokenizer: PreTrainedTokenizerBase, file: Path) -> None:
    """Write ``rows`` to an Arrow file with one more column, target_bytes, see `target_bytes`."""
    import pyarrow as pa

    schema = pa.schema([*row_fields(), ("target_bytes", pa.int64())])

    def measured_batches() -> Iterator[pa.RecordBatch]:
        for batch in rows.iter(batch_size=BATCH_SIZE):
            measured = {**batch, "target_bytes": target_bytes(tokenizer, batch["labels"])}
            arrays = [pa.array(measured[field.name], field.type) for field in schema]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)

    write_table(measured_batches(), schema, file)
