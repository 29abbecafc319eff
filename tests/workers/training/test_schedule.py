"""The learning rate over the steps of a run, and settings that leave no step for it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from deft.workers.spec import TrainingSpec
from deft.workers.training.engine import learning_rate_schedule

NUM_STEPS = 20


def rates(**settings: Any) -> list[float]:
    """Return the rate of each step, as a share of its peak."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = learning_rate_schedule(optimizer, TrainingSpec(**settings), NUM_STEPS)
    found = []
    for _ in range(NUM_STEPS):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return found


def test_every_schedule_warms_up_and_ends_as_it_says() -> None:
    warm = [0.0, 0.5]
    cosine = [0.5 * (1 + math.cos(math.pi * step / 18)) for step in range(18)]
    assert rates() == pytest.approx(warm + cosine)
    assert rates(schedule="linear") == pytest.approx(warm + [1 - step / 18 for step in range(18)])
    assert rates(schedule="constant") == pytest.approx(warm + [1.0] * 18)
    decay = [1 - step / 5 for step in range(5)]
    assert rates(schedule="wsd", decay_ratio=0.25) == pytest.approx(warm + [1.0] * 13 + decay)
    assert rates(schedule="wsd", decay_ratio=1, warmup_ratio=0) == pytest.approx(
        [1 - step / 20 for step in range(20)]
    )


def test_warmup_and_decay_must_fit_into_the_run() -> None:
    with pytest.raises(ValueError, match=r"decay_ratio: with warmup_ratio 0\.5 at most 0\.5"):
        TrainingSpec(schedule="wsd", warmup_ratio=0.5, decay_ratio=0.6)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "master_dtype: bfloat16 states go with bfloat16 weights, got dtype auto"),
        ({"dtype": "bfloat16", "zero_stage": 0}, r"at zero_stage 1, 2 and 3, got 0"),
        ({"dtype": "bfloat16", "num_workers": 1}, r"at zero_stage 1, 2 and 3, got 0"),
        ({"dtype": "bfloat16", "offload_optimizer": True}, "offloaded states are float32"),
        ({"dtype": "bfloat16", "min_workers": 1}, "belongs to its number of workers"),
    ],
)
def test_states_in_bfloat16_are_refused_where_deepspeed_has_none(
    settings: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        TrainingSpec(master_dtype="bfloat16", **settings)
