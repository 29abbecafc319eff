"""The factor before `backward`, undone by what DeepSpeed does to a loss."""

from __future__ import annotations

import pytest
import torch

from deft.workers.training.reduction import Reduction, loss_factor

VALUES = torch.arange(1.0, 13.0)
"""Token values of one optimizer step."""


def deepspeed_loss(cut: list[list[torch.Tensor]], reduction: Reduction) -> float:
    """Form the step's loss as DeepSpeed does: sum over micro-batches, mean over ranks."""
    ranks = []
    for micro_batches in cut:
        losses = [
            values.sum()
            * loss_factor(
                reduction,
                kept_in_step=torch.tensor(len(VALUES)),
                kept_in_micro_batch=torch.tensor(len(values)),
                num_micro_batches=len(micro_batches),
                world_size=len(cut),
            )
            for values in micro_batches
        ]
        ranks.append(sum(losses))
    return float(sum(ranks) / len(ranks))


UNEVEN = [
    [list(VALUES.split([12]))],
    [list(VALUES[:5].split([1, 4])), list(VALUES[5:].split([6, 1]))],
    [[VALUES[:0], VALUES[:2]], [VALUES[2:9], VALUES[9:]]],
]
"""Ranks × micro-batches, with one token, or none, in some."""


@pytest.mark.parametrize("cut", UNEVEN)
def test_global_tokens_does_not_depend_on_the_cut(cut: list[list[torch.Tensor]]) -> None:
    assert deepspeed_loss(cut, "global_tokens") == pytest.approx(float(VALUES.mean()))


def test_micro_batch_is_the_mean_of_means() -> None:
    cut = UNEVEN[1]
    means = [[float(values.mean()) for values in rank] for rank in cut]
    expected = sum(sum(rank) / len(rank) for rank in means) / len(means)
    assert deepspeed_loss(cut, "micro_batch") == pytest.approx(expected)
    assert deepspeed_loss(cut, "micro_batch_sum") == pytest.approx(2 * expected)


def test_no_kept_token_is_no_division_by_zero() -> None:
    for reduction in ("global_tokens", "micro_batch", "micro_batch_sum"):
        factor = loss_factor(
            reduction,
            kept_in_step=torch.tensor(0),
            kept_in_micro_batch=torch.tensor(0),
            num_micro_batches=2,
            world_size=2,
        )
        assert factor * 0.0 == 0.0
