"""Log-probabilities of target tokens under models that are not trained, computed once and stored.

What an objective reads of another model is often the target's log-probability alone: one number a
token, where a whole prediction would be a vocabulary. It is computed before training, each rank a
share of the rows, and kept beside them: epochs, seeds and resumed runs find it there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import PreTrainedModel

from deft.workers.common.checksums import hash_parts
from deft.workers.common.files import atomic_file
from deft.workers.modeling.logit_transform import logit_transform
from deft.workers.modeling.model_identity import model_digest
from deft.workers.modeling.objective_model import target_statistics
from deft.workers.training.batches import collate

if TYPE_CHECKING:
    from datasets import Dataset

BATCH_SIZE = 4
"""Rows of a forward pass."""
FOLDER = "known_logp"
"""Where it is kept, in the directory of the prepared rows."""

LogpByRow = Mapping[int, np.ndarray]
"""float32 [T] of the T target tokens of each row, by the row's index."""


class KnownLogp:
    """Log-probabilities under other models, by their name in `TokenStats` and by row."""

    def __init__(self, columns: Mapping[str, LogpByRow]) -> None:
        self._columns = columns

    def of(self, indices: Iterable[int], device: torch.device) -> dict[str, torch.Tensor]:
        """Return those of the target tokens of rows, one after the other, [T] each."""
        chosen = list(indices)
        empty = np.zeros(0, dtype=np.float32)
        return {
            name: torch.from_numpy(np.concatenate([empty, *(by_row[i] for i in chosen)])).to(device)
            for name, by_row in self._columns.items()
        }


def stored_logp(
    model: PreTrainedModel,
    model_dir: str,
    rows: Dataset,
    rows_dir: str,
    indices: Sequence[int],
    *,
    fill_token_id: int,
    device: torch.device,
    packing: bool,
) -> LogpByRow:
    """Return the log-probabilities of rows under ``model``; every rank must call this.

    Args:
        model: as it is before training, with the head that it came with.
        model_dir: its directory, by whose content what is stored is told apart.
        rows: prepared examples.
        rows_dir: their directory, where the result is kept.
        indices: which rows, ascending.
        fill_token_id: token of padding.
        device: where to compute.
        packing: how examples stand in a batch.
    """
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    directory = Path(rows_dir).parent / FOLDER / _key(model, model_dir, rows_dir, indices)
    # Rank 0 decides for all: another run may finish the same while they look.
    is_stored = [_whole_set(directory) is not None]
    torch.distributed.broadcast_object_list(is_stored, src=0)
    if not is_stored[0]:
        share = indices[rank::world_size]
        parts = _compute(model, rows, share, fill_token_id, device, packing=packing)
        with atomic_file(directory / f"{rank}-of-{world_size}.npz") as file:
            lengths = np.array([len(part) for part in parts], dtype=np.int64)
            values = np.concatenate([np.zeros(0, dtype=np.float32), *parts])
            np.savez(file, index=np.array(share, dtype=np.int64), lengths=lengths, values=values)
        torch.distributed.barrier()
    files = _whole_set(directory)
    assert files is not None
    return _read(files)


def _key(model: PreTrainedModel, model_dir: str, rows_dir: str, indices: Sequence[int]) -> str:
    """Name the result after all that decides it, on every rank the same."""
    key = [""]
    if torch.distributed.get_rank() == 0:
        content = model_digest(Path(model_dir))
        chosen = np.array(indices, dtype=np.int64).tobytes()
        key = [hash_parts(content, str(model.dtype), Path(rows_dir).name, chosen)]
    torch.distributed.broadcast_object_list(key, src=0)
    return key[0]


def _whole_set(directory: Path) -> list[Path] | None:
    """Return the files of all ranks of one group of workers, if there are all of them."""
    by_size: dict[int, list[Path]] = {}
    for file in sorted(directory.glob("*-of-*.npz")):
        if match := re.fullmatch(r"\d+-of-(\d+)\.npz", file.name):
            by_size.setdefault(int(match[1]), []).append(file)
    return next((files for size, files in by_size.items() if len(files) == size), None)


def _read(files: Sequence[Path]) -> LogpByRow:
    by_row: dict[int, np.ndarray] = {}
    for file in files:
        with np.load(file) as part:
            values = np.split(part["values"], np.cumsum(part["lengths"])[:-1])
            by_row |= dict(zip(part["index"].tolist(), values, strict=False))
    return by_row


@torch.no_grad()
def _compute(
    model: PreTrainedModel,
    rows: Dataset,
    indices: Sequence[int],
    fill_token_id: int,
    device: torch.device,
    *,
    packing: bool,
) -> list[np.ndarray]:
    """Compute the log-probabilities of the target tokens of each row."""
    was_training = model.training
    model.to(device).eval()
    transform = logit_transform(model)
    parts: list[np.ndarray] = []
    for start in range(0, len(indices), BATCH_SIZE):
        chosen = [
            {key: rows[index][key] for key in ("input_ids", "labels")}
            for index in indices[start : start + BATCH_SIZE]
        ]
        batch = collate(chosen, fill_token_id, device, packing=packing)
        batch.pop("weights", None)
        logp = target_statistics(model, transform, **batch).logp.float().cpu().numpy()
        lengths = [sum(label >= 0 for label in row["labels"][1:]) for row in chosen]
        parts += np.split(logp, np.cumsum(lengths)[:-1])
    model.train(was_training)
    return parts
