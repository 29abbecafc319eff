"""One optimizer step: forward and backward over micro-batches, and why a step was skipped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from deft.workers.common.example import IGNORE_INDEX
from deft.workers.spec import TrainingSpec
from deft.workers.training.engine import take_step
from deft.workers.training.reduction import loss_factor

if TYPE_CHECKING:
    import deepspeed

MicroBatch = dict[str, torch.Tensor]
"""Tensors of one micro-batch, as `deft.workers.training.batches.collate` returns them."""
TokenColumns = dict[str, torch.Tensor]
"""One value per token and statistic, as `ObjectiveHead.forward` returns them."""


def train_step(
    engine: deepspeed.DeepSpeedEngine,
    micro_batches: Sequence[MicroBatch],
    spec: TrainingSpec,
    world_size: int,
) -> tuple[list[TokenColumns], float]:
    """Run one optimizer step over this rank's micro-batches.

    Returns:
        The head's statistics of the tokens of each micro-batch, and the gradient norm before
        clipping, which is inf or NaN if the step was skipped.
    """
    engine.train()
    engine.module.model.get_output_embeddings().checks.clear()
    kept_in_step, mean_p = look_ahead(engine, micro_batches, spec)
    columns = []
    for index, micro_batch in enumerate(micro_batches):
        engine.set_gradient_accumulation_boundary(index == len(micro_batches) - 1)
        loss, tokens = engine(**micro_batch, step_mean_p=mean_p)
        factor = loss_factor(
            spec.reduction,
            kept_in_step=kept_in_step,
            kept_in_micro_batch=tokens["kept"].sum(),
            num_micro_batches=len(micro_batches),
            world_size=world_size,
        )
        engine.backward(loss * factor, scale_wrt_gas=False)
        columns.append(tokens)
    return columns, take_step(engine)


@torch.no_grad()
def policy_logp(
    engine: deepspeed.DeepSpeedEngine, micro_batches: Sequence[MicroBatch]
) -> list[torch.Tensor]:
    """Compute the log-probabilities of target tokens under the model as it is, [T] each."""
    engine.eval()
    columns = [engine(**micro_batch)[1] for micro_batch in micro_batches]
    engine.train()
    return [tokens["logp"][tokens["target"]] for tokens in columns]


def look_ahead(
    engine: deepspeed.DeepSpeedEngine, micro_batches: Sequence[MicroBatch], spec: TrainingSpec
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute what the first backward pass needs to know about all tokens of the step.

    Both results may take a pass without gradients: only the objective can say which tokens it drops
    by their probability.

    Returns:
        The number of tokens that the objective keeps on all ranks, and the mean p of all target
        tokens if `floor_scope` asks for it.
    """
    objective = engine.module.objective
    wants_mean_p = spec.floor_scope == "step" and not objective.token_local
    if not (objective.drops_tokens or wants_mean_p):
        num_targets = torch.stack(
            [(micro_batch["labels"][:, 1:] != IGNORE_INDEX).sum() for micro_batch in micro_batches]
        ).sum()
        torch.distributed.all_reduce(num_targets)
        return num_targets, None
    with torch.no_grad():
        columns = [engine(**micro_batch)[1] for micro_batch in micro_batches]
    sums = torch.stack(
        [
            torch.stack([tokens["kept"].sum(), tokens["target"].sum(), tokens["p"].double().sum()])
            for tokens in columns
        ]
    ).sum(0)
    torch.distributed.all_reduce(sums)
    kept, targets, p = sums
    return kept, (p / targets.clamp(min=1)).float() if wants_mean_p else None


def find_problem(engine: deepspeed.DeepSpeedEngine, grad_norm: float) -> str | None:
    """Explain why the step was skipped, on every rank the same; None if it was not."""
    if math.isfinite(grad_norm):
        return None
    head = engine.module.model.get_output_embeddings()
    problems: list[str | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(problems, head.problem())
    by_rank = (f"on rank {rank} {problem}" for rank, problem in enumerate(problems) if problem)
    return next(by_rank, f"the gradient norm is {grad_norm}")
