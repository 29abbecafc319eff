"""From token values to one loss: the factor between a micro-batch's sum and what is backpropagated.

DeepSpeed is told not to divide by accumulation steps; it adds up the gradients of a rank's
micro-batches and averages over the data-parallel ranks. The factors here undo that where a
reduction asks for it, so that the gradient is the one that the reduction names, however the batch
was cut.

Weights of turns and records are in the token values; what is divided by is the number of tokens,
whatever they weigh. So a weight of 2 doubles a token's gradient, in every batch.
"""

from __future__ import annotations

from typing import Literal

import torch

Reduction = Literal["global_tokens", "micro_batch", "micro_batch_sum"]


def loss_factor(
    reduction: Reduction,
    *,
    kept_in_step: torch.Tensor,
    kept_in_micro_batch: torch.Tensor,
    num_micro_batches: int,
    world_size: int,
) -> torch.Tensor:
    """Return the factor of a micro-batch's summed token values before `backward`, float32.

    Counts are tensors, so that nobody waits for the device to know them.

    Args:
        reduction: `global_tokens` is the mean over all kept tokens of the optimizer step;
            `micro_batch` the mean over micro-batches and ranks of each one's own token mean;
            `micro_batch_sum` the same summed over a rank's micro-batches, which is what the
            original trainer of arXiv 2602.11424 backpropagates.
        kept_in_step: kept tokens over all micro-batches and ranks of the step.
        kept_in_micro_batch: kept tokens of this micro-batch on this rank.
        num_micro_batches: micro-batches of one rank in this step.
        world_size: number of data-parallel ranks.
    """
    if reduction == "global_tokens":
        return (world_size / kept_in_step.double().clamp(min=1)).float()
    mean = 1 / (kept_in_micro_batch.double() + 1e-8)
    return (mean if reduction == "micro_batch_sum" else mean / num_micro_batches).float()
