"""Which examples go into which micro-batch. A pure function of seed, step and rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from deft.workers.chat import IGNORE_INDEX

if TYPE_CHECKING:
    import torch


def step_indices(num_examples: int, batch_size: int, step: int, seed: int) -> list[int]:
    """Indices of the ``batch_size`` examples of optimiser step ``step`` (from 0).

    Each epoch is a fresh permutation of all examples; those that fill no batch are left out.
    """
    steps_per_epoch = num_examples // batch_size
    epoch, step_in_epoch = divmod(step, steps_per_epoch)
    order = np.random.default_rng([seed, epoch]).permutation(num_examples)
    start = step_in_epoch * batch_size
    return [int(index) for index in order[start : start + batch_size]]


def micro_batches(
    indices: Sequence[int],
    lengths: Sequence[int],
    *,
    rank: int,
    world_size: int,
    micro_batch_size: int,
) -> list[list[int]]:
    """Cut a step's examples into one rank's micro-batches.

    Examples of similar length share a micro-batch, so that little of it is padding.
    """
    by_length = sorted(indices, key=lambda index: (lengths[index], index))
    mine = by_length[rank::world_size]
    return [mine[i : i + micro_batch_size] for i in range(0, len(mine), micro_batch_size)]


def collate(
    rows: Sequence[dict[str, list[int]]], pad_token_id: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """Pad rows on the right to one length T.

    Returns input_ids and labels, each int64 [B, T]. There is no attention mask: under causal
    attention no token sees the padding to its right, and without a mask attention takes its fast
    path.
    """
    import torch

    width = max(len(row["input_ids"]) for row in rows)

    def padded(key: str, fill: int) -> torch.Tensor:
        return torch.tensor(
            [row[key] + [fill] * (width - len(row[key])) for row in rows], device=device
        )

    return {
        "input_ids": padded("input_ids", pad_token_id),
        "labels": padded("labels", IGNORE_INDEX),
    }
