"""The table of losses on held-out rows and the metrics over it. Loads no model library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deft.evaluators.scores import statistics
from deft.workers.common.files import atomic_file


@dataclass(frozen=True)
class RowLoss:
    """Sums over the target tokens of one row."""

    row: int
    """Number of the row, from 0."""
    nll: float
    """−Σ log p of the targets, in nats."""
    control_nll: float
    """Part of `nll` that control tokens such as EOS cost, which spell no text."""
    entropy: float
    """Σ of the predictions' Shannon entropies, in nats."""
    n_tokens: int
    n_control: int
    """Control tokens among the targets."""
    n_bytes: int
    num_correct: int
    """Targets that were the most likely token."""


def summarize_losses(losses: Sequence[RowLoss]) -> dict[str, float]:
    """Compute the metrics over a table, see `deft.evaluators.scores.heldout.measure_losses`."""
    columns = _columns(losses)
    total = {name: float(column.sum()) for name, column in columns.items()}
    nll = total["nll"] / total["n_tokens"]
    metrics = _ratio("nll", columns["nll"], columns["n_tokens"])
    metrics |= _ratio("bits_per_byte", *text_bits(losses))
    return metrics | {
        "control_nll": total["control_nll"] / max(total["n_control"], 1),
        "token_accuracy": total["num_correct"] / total["n_tokens"],
        "entropy_gap": nll - total["entropy"] / total["n_tokens"],
        "num_items": float(len(losses)),
        "num_tokens": total["n_tokens"],
    }


def text_bits(losses: Sequence[RowLoss]) -> tuple[statistics.Floats, statistics.Floats]:
    """Return the bits that the targets of each row cost, and the bytes they spell, [I] both."""
    columns = _columns(losses)
    return columns["nll"] / math.log(2), columns["n_bytes"]


def _columns(losses: Sequence[RowLoss]) -> dict[str, statistics.Floats]:
    names = ("nll", "control_nll", "entropy", "n_tokens", "n_control", "n_bytes", "num_correct")
    return {
        name: np.array([getattr(loss, name) for loss in losses], dtype=np.float64) for name in names
    }


def _ratio(name: str, sums: statistics.Floats, sizes: statistics.Floats) -> dict[str, float]:
    """Compute Σ sums / Σ sizes over rows, with standard error (delta method) and 95 % interval."""
    mean = float(sums.sum() / sizes.sum())
    interval = statistics.mean_interval(sums / sizes, weights=sizes)
    return {
        name: mean,
        f"{name}_stderr": statistics.standard_error((sums - mean * sizes) / sizes.mean()),
        f"{name}_ci_low": interval.low,
        f"{name}_ci_high": interval.high,
    }


def write_losses(losses: Sequence[RowLoss], path: Path) -> None:
    """Write a Parquet table with one row per `RowLoss`; it appears whole or not at all."""
    with atomic_file(path) as file:
        pq.write_table(pa.Table.from_pylist([vars(loss) for loss in losses]), file)


def read_losses(path: Path) -> list[RowLoss]:
    """Read the table that `write_losses` wrote."""
    with pq.ParquetFile(path) as table:
        return [RowLoss(**row) for row in table.read(use_threads=False).to_pylist()]
