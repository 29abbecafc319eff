"""Examples and rows on disk: memory-mapped Arrow files, so that no process holds all of them."""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deft.workers.common.example import Example
from deft.workers.data.readers import BadRecord

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

BATCH_SIZE = 1000
"""Rows that are held in memory at a time."""
TEXT_FIELDS = ("id", "response", "instruction")
"""Fields of `Example` that are texts; the others are stored as JSON."""
BAD_RECORDS_FILE = "bad_records.jsonl"
"""A line of JSON for each record that was left out or cut, beside the Arrow files."""
TOO_LONG, TRUNCATED = "too long", "truncated"
"""Kinds of `BadRecord`: examples that were left out, or cut, because of their length."""
INDICES_FILE = "indices.npy"
"""Which rows of the tables in a directory are meant, int64 [N]."""
EXAMPLES_OF_ROWS_FILE = "examples.npy"
"""Position of the example behind each row, int64 [N]."""
NOISY_FILE = "noisy.npy"
"""Which training rows have the response of another example, bool [N]."""
BOOKKEEPING = ("group", "example")
"""Columns of tokenized rows that only preparation reads."""


def write_examples(batches: Iterable[Sequence[Example]], file: Path) -> int:
    """Write examples to an Arrow stream file; return how many there were."""
    import pyarrow as pa

    schema = pa.schema(
        # Examples that ask the same have the same group.
        [*((field.name, pa.string()) for field in fields(Example)), ("group", pa.int64())]
    )

    def to_table(examples: Sequence[Example]) -> pa.RecordBatch:
        columns = {
            field.name: [_to_text(getattr(example, field.name)) for example in examples]
            for field in fields(Example)
        }
        groups = [question_hash(example) for example in examples]
        return pa.RecordBatch.from_pydict({**columns, "group": groups}, schema=schema)

    return write_table(map(to_table, batches), schema, file)


def _to_text(value: Any) -> str:
    """Return a text as it is, anything else as JSON: turns differ in what they have."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def write_table(batches: Iterable[pa.RecordBatch], schema: pa.Schema, file: Path) -> int:
    """Write ``batches`` to an Arrow stream file; return how many rows there were."""
    import pyarrow as pa

    num_rows = 0
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as stream:
        for batch in batches:
            stream.write_batch(batch)
            num_rows += len(batch)
    return num_rows


def open_tables(directory: Path) -> Dataset:
    """Return the rows of all Arrow files in ``directory``, memory-mapped, in order of their names.

    Raises:
        FileNotFoundError: there is none.
    """
    import datasets

    files = sorted(directory.glob("*.arrow"))
    if not files:
        raise FileNotFoundError(f"{directory}: no Arrow file in it; remove it to have it made anew")
    return datasets.concatenate_datasets([datasets.Dataset.from_file(str(f)) for f in files])


def link_tables(directory: Path, sources: Sequence[Path]) -> None:
    """Make the Arrow files of the directories ``sources`` those of ``directory``, in this order."""
    files = [file for source in sources for file in sorted(source.glob("*.arrow"))]
    for number, file in enumerate(files):
        target = os.path.relpath(file, directory)
        (directory / f"{number:05d}.arrow").symlink_to(target)


def open_rows(directory: str | Path) -> Dataset:
    """Return the prepared rows in ``directory``, memory-mapped: input_ids, labels, what else is.

    They are those of its tables that `INDICES_FILE` picks, all of them where there is none.
    """
    import numpy as np

    rows = open_tables(Path(directory))
    rows = rows.remove_columns([name for name in BOOKKEEPING if name in rows.column_names])
    picked = Path(directory) / INDICES_FILE
    return rows.select(np.load(picked)) if picked.is_file() else rows


def iterate_examples(rows: Dataset) -> Iterator[Example]:
    """Yield the examples in ``rows``, read batch by batch."""
    for batch in rows.iter(batch_size=BATCH_SIZE):
        yield from to_examples(batch)


def to_examples(columns: dict[str, list[Any]]) -> list[Example]:
    """Return the examples in one batch of columns."""
    values = [
        columns[name] if name in TEXT_FIELDS else map(_from_json, columns[name])
        for name in (field.name for field in fields(Example))
    ]
    return [Example(*row) for row in zip(*values, strict=True)]


def _from_json(text: str) -> Any:
    value = json.loads(text)
    return tuple(value) if isinstance(value, list) else value


def normalize(text: str) -> str:
    """Return ``text`` as one compares it: Unicode form, case and white space do not matter."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())


def question_hash(example: Example) -> int:
    """Hash what is asked to 64 bits: the turns before the assistant's first, system texts aside.

    Conversations that open alike share it: one may be the beginning of the other.
    """
    digest = hashlib.blake2b(digest_size=8)
    for message in example.prompt:
        if message["role"] == "assistant":
            break
        if message["role"] != "system":
            digest.update(normalize(message["content"]).encode() + b"\0")
    return int.from_bytes(digest.digest(), "big", signed=True)


def read_bad_records(file: Path) -> Iterator[BadRecord]:
    """Yield what a file lists of examples that were left out or cut."""
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            yield BadRecord(**json.loads(line))
