"""The table of single tokens of a few held-out rows. Loads no model library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from deft.evaluators.scores.predictions import EVALUATE_AGAIN
from deft.workers.common.files import atomic_file, reading


@dataclass(frozen=True)
class HeldoutToken:
    """One target token and the model's prediction at its position, as in `TokenStats`."""

    row: int
    """Number of the held-out row, from 0."""
    digest: str
    """Of the row's token ids: the same row of another model has the same."""
    before: str
    """Text without targets since the target before, or the end of it where it is long."""
    text: str
    """What the token spells; empty within a character of several tokens."""
    logp: float
    entropy: float
    entropy_top: float
    concentration: float
    top_logp: float


def write_tokens(tokens: Sequence[HeldoutToken], path: Path) -> None:
    """Write a Parquet table with one row per token; it appears whole or not at all."""
    with atomic_file(path) as file:
        table = pa.Table.from_pylist([vars(token) for token in tokens])
        pq.write_table(table, file, write_page_checksum=True)


def read_tokens(path: Path) -> list[HeldoutToken]:
    """Read the table that `write_tokens` wrote; empty if there is none."""
    if not path.is_file():
        return []
    with (
        reading(path, EVALUATE_AGAIN),
        pq.ParquetFile(path, page_checksum_verification=True) as table,
    ):
        return [HeldoutToken(**row) for row in table.read(use_threads=False).to_pylist()]
