"""Examples on disk: one memory-mapped Arrow file, so that no process holds a dataset in memory."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deft.workers.common.example import Example, fields_beside_texts, restore_example

if TYPE_CHECKING:
    from datasets import Dataset, Features

BATCH_SIZE = 1000


def write_examples(examples: Iterable[Example], file: Path) -> int:
    """Write ``examples`` to an Arrow stream file; return how many there were."""
    import pyarrow as pa

    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("prompt", pa.list_(message)),
            ("response", pa.string()),
            ("instruction", pa.string()),
            ("beside", pa.string()),
            # Examples that ask the same have the same group.
            ("group", pa.int64()),
        ]
    )
    total = 0
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as stream:
        for batch in batched(examples, BATCH_SIZE):
            total += len(batch)
            rows = [
                {
                    "id": example.id,
                    "prompt": [
                        {"role": turn["role"], "content": turn["content"]}
                        for turn in example.prompt
                    ],
                    "response": example.response,
                    "instruction": example.instruction,
                    "beside": fields_beside_texts(example),
                    "group": question_hash(example),
                }
                for example in batch
            ]
            stream.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))
    return total


def open_examples(file: Path) -> Dataset:
    """The rows of a file by `write_examples`, memory-mapped."""
    import datasets

    return datasets.Dataset.from_file(str(file))


def map_batches(
    rows: Dataset,
    function: Callable[[dict[str, list[Any]], list[int]], dict[str, list[Any]]],
    *,
    features: Features,
    cache_file: str,
    name: str,
    remove_columns: Sequence[str] = (),
) -> Dataset:
    """``rows`` under a function of a batch of columns and the positions of its rows.

    Args:
        rows: what it is given.
        function: returns the new columns.
        features: of the result.
        cache_file: Arrow file that it is written to, always anew.
        name: of the result, for `datasets`, which would else hash the function: its content names
            nothing, and the caller knows what the rows were made from.
        remove_columns: columns of ``rows`` that the result has not.
    """
    return rows.map(
        function,
        with_indices=True,
        batched=True,
        batch_size=BATCH_SIZE,
        remove_columns=list(remove_columns),
        features=features,
        cache_file_name=cache_file,
        load_from_cache_file=False,
        new_fingerprint=name,
    )


def iterate_examples(rows: Dataset) -> Iterator[Example]:
    """The examples in ``rows``, read batch by batch."""
    for batch in rows.iter(batch_size=BATCH_SIZE):
        yield from to_examples(batch)


def to_examples(batch: dict[str, list[Any]]) -> list[Example]:
    """The examples in one batch of columns."""
    columns = ("id", "prompt", "response", "instruction", "beside")
    return [restore_example(*values) for values in zip(*(batch[c] for c in columns), strict=True)]


def normalize(text: str) -> str:
    """``text`` as one compares it: Unicode form, case and white space do not matter."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())


def question_hash(example: Example) -> int:
    """64 bits of what is asked: the turns before the assistant's first, without system texts.

    Conversations that open alike share it: one may be the beginning of the other.
    """
    digest = hashlib.blake2b(digest_size=8)
    for message in example.prompt:
        if message["role"] == "assistant":
            break
        if message["role"] != "system":
            digest.update(normalize(message["content"]).encode() + b"\0")
    return int.from_bytes(digest.digest(), "big", signed=True)


def batched(items: Iterable[Example], size: int) -> Iterator[Sequence[Example]]:
    """``items`` in lists of ``size``, the last one shorter."""
    batch: list[Example] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
