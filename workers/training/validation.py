"""Held-out examples during training, on the yardstick that all objectives share."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from deft.workers.training.batches import collate, split_into_micro_batches, token_counts

if TYPE_CHECKING:
    import datasets
    import deepspeed

    from deft.workers.modeling.known_logp import KnownLogp
    from deft.workers.spec import TrainingSpec


@torch.no_grad()
def validate(
    engine: deepspeed.DeepSpeedEngine,
    rows: datasets.Dataset,
    spec: TrainingSpec,
    fill_token_id: int,
    device: torch.device,
    known: KnownLogp | None = None,
) -> dict[str, float]:
    """Evaluate the model on ``rows``, every rank a share of them; every rank must call this.

    Args:
        engine: the model and its objective.
        rows: examples as prepared, with `target_bytes`.
        spec: how examples are cut into micro-batches.
        fill_token_id: token of padding and of empty micro-batches.
        device: where the model is.
        known: log-probabilities of the rows under other models, if the objective reads any.

    Returns:
        `objective` is the mean value over kept tokens; `nll` (nats) and `token_accuracy`, the share
        of tokens that are the most probable, are means over target tokens; `bits_per_byte` is the
        NLL in bits per UTF-8 byte of the responses, comparable across tokenizers. All but the
        accuracy are infinite if some logits are not finite. Weights multiply values alone.
    """
    engine.eval()
    lengths = token_counts(rows)
    world_size, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    even = len(rows) + -len(rows) % (world_size * spec.micro_batch_size)
    # Without packing every rank needs as many whole micro-batches as the others: the missing
    # examples are empty ones.
    padded = [*lengths, *[1] * (even - len(rows))]
    indices = range(len(rows) if spec.splits_by_tokens else even)
    totals = torch.zeros(5, dtype=torch.float64, device=device)
    for chosen in split_into_micro_batches(indices, padded, spec, world_size)[rank]:
        real = [index for index in chosen if index < len(rows)]
        batch = collate([rows[i] for i in real], fill_token_id, device, packing=spec.packing)
        _, tokens = engine(**batch, **({} if known is None else known.of(real, device)))
        target = tokens["target"]
        totals += torch.stack(
            [
                tokens["value"].double().sum(),
                tokens["kept"].double().sum(),
                -tokens["logp"][target].double().sum(),
                tokens["correct"][target].double().sum(),
                target.double().sum(),
            ]
        )
    torch.distributed.all_reduce(totals)
    engine.train()
    value, kept, nll, correct, targets = totals.tolist()
    return {
        "objective": value / max(kept, 1),
        "nll": nll / targets,
        "bits_per_byte": nll / math.log(2) / sum(rows["target_bytes"]),
        "token_accuracy": correct / targets,
    }
