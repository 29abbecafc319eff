"""Label noise: a share of the training examples gets the response of another one.

The responses are exchanged among those examples, so that what is written stays fluent, of the right
form and as long as ever, and only its relation to the prompt is wrong: a model cannot tell a noisy
example by its response alone. Which examples they are depends on the seed and not on the objective.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deft.workers.common.example import IGNORE_INDEX
from deft.workers.data.example_store import BATCH_SIZE, write_table

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Exchange:
    """Which rows get the response of which others; int64 or bool arrays [N]."""

    is_noisy: NDArray[np.bool_]
    """Rows that get another response than their own."""
    donors: NDArray[np.int64]
    """The row that each row's response comes from."""
    starts: NDArray[np.int64]
    """Where each row's own response starts."""


def plan_exchange(rows: Dataset, *, share: float, seed: int, max_length: int) -> Exchange:
    """Choose ``share`` of ``rows`` to exchange their responses among themselves.

    A row keeps its own response if the other one would not fit into ``max_length`` tokens, and if
    more than half of the chosen rows have the same.

    Args:
        rows: columns input_ids, labels and weights; the last run of targets is the response.
        share: between 0 and 1.
        seed: changes the choice; a larger share only adds to it.
        max_length: most tokens of a row.
    """
    starts, responses, lengths = _responses(rows, seed)
    donors = choose_donors(responses, share, seed)
    fits = starts + (lengths - starts)[donors] <= max_length
    return Exchange((responses != responses[donors]) & fits, donors, starts)


def write_noisy_rows(rows: Dataset, exchange: Exchange, file: Path) -> None:
    """Write the noisy ones among ``rows``, in their order, with the responses that they get."""
    import pyarrow as pa

    schema = rows.features.arrow_schema
    chosen = np.flatnonzero(exchange.is_noisy)

    def noisy_batches() -> Iterator[pa.RecordBatch]:
        for first in range(0, len(chosen), BATCH_SIZE):
            indices = chosen[first : first + BATCH_SIZE]
            donors = exchange.donors[indices]
            columns, received = rows[indices], rows[donors]
            starts = exchange.starts[indices], exchange.starts[donors]
            exchanged = ["input_ids", "labels"]
            if any(columns["weights"]) or any(received["weights"]):
                columns["weights"], received["weights"] = _weights(columns), _weights(received)
                exchanged.append("weights")
            for name in exchanged:
                columns[name] = [
                    own[:start] + other[other_start:]
                    for own, other, start, other_start in zip(
                        columns[name], received[name], *starts, strict=True
                    )
                ]
            yield pa.RecordBatch.from_pydict(columns, schema=schema)

    write_table(noisy_batches(), schema, file)


def _weights(columns: Mapping[str, list[Any]]) -> list[list[float]]:
    """Return the weights of every token of a batch of rows."""
    return [
        weights or [1.0] * len(labels)
        for weights, labels in zip(columns["weights"], columns["labels"], strict=True)
    ]


def choose_donors(responses: NDArray[np.int64], share: float, seed: int) -> NDArray[np.int64]:
    """Choose from which row each row gets its response: from itself unless it is noisy.

    The chosen rows are a prefix of a random order. Sorted by their responses and rotated by the
    size of the largest group of equal ones, none of them gets its own back while no group is more
    than half of them.

    Args:
        responses: int64 [N], the same number for equal responses, in random order otherwise.
        share: of the rows to choose.
        seed: of the random order.

    Returns:
        int64 [N].
    """
    donors = np.arange(len(responses))
    order = np.random.default_rng(seed).permutation(len(responses))
    chosen = order[: round(share * len(responses))]
    if len(chosen):
        chosen = chosen[np.argsort(responses[chosen], kind="stable")]
        _, counts = np.unique(responses[chosen], return_counts=True)
        donors[chosen] = np.roll(chosen, counts.max())
    return donors


def _responses(rows: Dataset, seed: int) -> tuple[NDArray[np.int64], ...]:
    """Find where each row's response starts, 64 bits of it and of ``seed``, and the row's length.

    Each int64 [N].
    """
    starts, responses, lengths = (np.empty(len(rows), dtype=np.int64) for _ in range(3))
    salt = seed.to_bytes(8, "big")
    position = 0
    for batch in rows.select_columns("labels").with_format("numpy").iter(batch_size=BATCH_SIZE):
        for labels in batch["labels"]:
            masked = np.flatnonzero(labels == IGNORE_INDEX)
            start = int(masked[-1]) + 1 if len(masked) else 0
            digest = hashlib.blake2b(labels[start:].tobytes(), digest_size=8, salt=salt).digest()
            starts[position] = start
            responses[position] = int.from_bytes(digest, "big", signed=True)
            lengths[position] = len(labels)
            position += 1
    return starts, responses, lengths
