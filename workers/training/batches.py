"""Micro-batch planning and collation.

The plan is a pure function of seed, step and example lengths, so every rank knows all of it and a
resumed run continues at the exact example.

Shapes: B examples of a padded micro-batch, T positions of a row.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from deft.workers.common.example import IGNORE_INDEX
from deft.workers.data.example_store import BATCH_SIZE

if TYPE_CHECKING:
    import torch
    from datasets import Dataset

    from deft.workers.spec import TrainingSpec

MicroBatchPlan = list[list[list[int]]]
"""Indices of examples, by rank and micro-batch; every rank has the same number of micro-batches."""


def token_counts(rows: Dataset) -> list[int]:
    """Count the tokens of each example, without making Python lists of them."""
    import pyarrow.compute as pc

    counts: list[int] = []
    # Batch by batch: all at once would copy the rows that a seed picks into memory.
    for batch in rows.select_columns("input_ids").with_format("arrow").iter(BATCH_SIZE):
        counts += pc.list_value_length(batch["input_ids"]).to_pylist()
    return counts


def step_indices(num_examples: int, batch_size: int, step: int, seed: int) -> list[int]:
    """Return the indices of the ``batch_size`` examples of optimizer step ``step`` (from 0).

    Each epoch is a fresh permutation of all examples; those that fill no batch are left out.
    """
    steps_per_epoch = num_examples // batch_size
    epoch, step_in_epoch = divmod(step, steps_per_epoch)
    order = np.random.default_rng([seed, epoch]).permutation(num_examples)
    start = step_in_epoch * batch_size
    return [int(index) for index in order[start : start + batch_size]]


def split_into_micro_batches(
    indices: Sequence[int], lengths: Sequence[int], spec: TrainingSpec, world_size: int
) -> MicroBatchPlan:
    """Split examples into micro-batches as ``spec`` says; ``lengths`` are tokens by index."""
    if spec.splits_by_tokens:
        capacity = spec.micro_batch_size * spec.max_length
        return split_by_tokens(indices, lengths, capacity=capacity, world_size=world_size)
    if spec.micro_batch_order == "data":
        return split_in_order(indices, size=spec.micro_batch_size, world_size=world_size)
    return split_by_count(indices, lengths, size=spec.micro_batch_size, world_size=world_size)


def split_in_order(indices: Sequence[int], *, size: int, world_size: int) -> MicroBatchPlan:
    """Deal examples out to the ranks in turn, and cut each share into ``size`` at a time.

    So do a `torch.utils.data.DistributedSampler` and a loader of a rank's share of the step.
    """
    shares = [list(indices[rank::world_size]) for rank in range(world_size)]
    return [[share[i : i + size] for i in range(0, len(share), size)] for share in shares]


def split_by_count(
    indices: Sequence[int], lengths: Sequence[int], *, size: int, world_size: int
) -> MicroBatchPlan:
    """Group ``size`` examples of similar length to a micro-batch, so that little is padding."""
    by_length = sorted(indices, key=lambda index: (lengths[index], index))
    shares = [by_length[rank::world_size] for rank in range(world_size)]
    return [[share[i : i + size] for i in range(0, len(share), size)] for share in shares]


def split_by_tokens(
    indices: Sequence[int], lengths: Sequence[int], *, capacity: int, world_size: int
) -> MicroBatchPlan:
    """Pack examples best-fit decreasing into micro-batches of at most ``capacity`` tokens.

    The longest example goes first, each into the fullest micro-batch that still has space. So that
    every rank gets the same number of micro-batches, the fullest are halved until the number
    divides; a rank left without an example gets an empty micro-batch. Micro-batches of similar size
    run at the same time.
    """
    micro_batches = _best_fit_decreasing(indices, lengths, capacity)
    while len(micro_batches) % world_size:
        divisible = [chosen for chosen in micro_batches if len(chosen) > 1]
        if not divisible:
            micro_batches.append([])
            continue
        fullest = max(divisible, key=lambda chosen: sum(lengths[i] for i in chosen))
        micro_batches.remove(fullest)
        micro_batches += [fullest[::2], fullest[1::2]]
    micro_batches.sort(key=lambda chosen: (-sum(lengths[i] for i in chosen), chosen))
    return [micro_batches[rank::world_size] for rank in range(world_size)]


def _best_fit_decreasing(
    indices: Sequence[int], lengths: Sequence[int], capacity: int
) -> list[list[int]]:
    bins: list[list[int]] = []
    free_tokens: list[tuple[int, int]] = []  # (tokens left, bin), ascending
    for index in sorted(indices, key=lambda index: (-lengths[index], index)):
        position = bisect_left(free_tokens, (lengths[index], -1))
        if position == len(free_tokens):
            bins.append([index])
            insort(free_tokens, (capacity - lengths[index], len(bins) - 1))
        else:
            tokens_left, chosen = free_tokens.pop(position)
            bins[chosen].append(index)
            insort(free_tokens, (tokens_left - lengths[index], chosen))
    return bins


def padding_share(plan: MicroBatchPlan, lengths: Sequence[int], *, packing: bool) -> float:
    """Return the share of the positions in micro-batches that hold no token."""
    if packing:
        return 0.0
    micro_batches = [[lengths[i] for i in chosen] for rank in plan for chosen in rank if chosen]
    positions = sum(max(sizes) * len(sizes) for sizes in micro_batches)
    return 1 - sum(map(sum, micro_batches)) / positions


ON_HOST = frozenset({"cu_seq_lens"})
"""Tensors of a micro-batch that stay in the host's memory."""


def collate(
    rows: Sequence[dict[str, Any]], fill_token_id: int, device: torch.device, *, packing: bool
) -> dict[str, torch.Tensor]:
    """Collate a micro-batch; without rows, a single token that has no target.

    Returns:
        input_ids and labels, int64 [B, T], and target_rows, int64: which of the B·(T − 1) positions
        before each row's last predict a target. With packing B is 1, the examples stand one after
        the other, and there are position_ids [1, T], which start anew with each, and cu_seq_lens,
        int32 [examples + 1] in the host's memory, where each begins and the last ends. Without,
        they are padded on the right; there is no attention mask, since under causal attention no
        token sees what is to its right. Where a row has weights, there are weights as well,
        float32 [B, T].
    """
    if not rows:
        rows = [{"input_ids": [fill_token_id], "labels": [IGNORE_INDEX]}]
    batch = _packed(rows) if packing else _padded(rows, fill_token_id)
    if any(row.get("weights") for row in rows):
        batch["weights"] = _weights(rows, packing=packing)
    targets = batch["labels"][:, 1:].flatten() != IGNORE_INDEX
    batch["target_rows"] = targets.nonzero().squeeze(-1)
    return to_device(batch, device)


def to_device(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """Copy a micro-batch to the device; from pinned memory nobody waits for it."""
    return {
        name: tensor if name in ON_HOST else tensor.to(device, non_blocking=True)
        for name, tensor in batch.items()
    }


def pinned(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copy a micro-batch in the host's memory to where a GPU reads it by itself."""
    return {name: tensor.pin_memory() for name, tensor in batch.items()}


def _packed(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    import torch

    lengths = [len(row["input_ids"]) for row in rows]
    input_ids = [token for row in rows for token in row["input_ids"]]
    # An example's first token has no position before it that could predict it.
    labels = [label for row in rows for label in (IGNORE_INDEX, *row["labels"][1:])]
    positions = [position for length in lengths for position in range(length)]
    return {
        "input_ids": torch.tensor([input_ids]),
        "labels": torch.tensor([labels]),
        "position_ids": torch.tensor([positions]),
        "cu_seq_lens": torch.tensor([0, *np.cumsum(lengths).tolist()], dtype=torch.int32),
    }


def _padded(rows: Sequence[dict[str, Any]], fill_token_id: int) -> dict[str, torch.Tensor]:
    import torch

    width = max(len(row["input_ids"]) for row in rows)

    def padded(key: str, fill: int) -> torch.Tensor:
        return torch.tensor([row[key] + [fill] * (width - len(row[key])) for row in rows])

    return {
        "input_ids": padded("input_ids", fill_token_id),
        "labels": padded("labels", IGNORE_INDEX),
    }


def _weights(rows: Sequence[dict[str, Any]], *, packing: bool) -> torch.Tensor:
    import torch

    weights = [row.get("weights") or [1.0] * len(row["labels"]) for row in rows]
    if packing:
        weights = [[weight for row in weights for weight in row]]
    width = max(map(len, weights))
    return torch.tensor([row + [1.0] * (width - len(row)) for row in weights])
