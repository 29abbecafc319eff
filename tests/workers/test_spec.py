"""What a run file may say about training, and what DeepSpeed is told."""

from __future__ import annotations

from typing import Any

import deepspeed
import pytest
import torch

from deft.workers.catalogs.deepspeed_options import (
    RESERVED_DEEPSPEED_KEYS,
    SPLITTING_DEEPSPEED_KEYS,
)
from deft.workers.spec import LoraSpec, TrainingSpec
from deft.workers.training.engine import deepspeed_config, resolve_dtype


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 1}, "batch_size must be at least num_workers = 2"),
        ({"batch_size": 9, "packing": False}, "multiple of num_workers × micro_batch_size = 8"),
        ({"batch_size": 9, "reduction": "micro_batch"}, "multiple of num_workers"),
        ({"min_workers": 3}, "min_workers must be at most num_workers = 2"),
        ({"min_workers": 1, "packing": False}, "min_workers needs packing"),
        ({"min_workers": 1, "zero_stage": 0}, "min_workers needs zero_stage 1, 2 or 3"),
        ({"zero_stage": 0, "offload_optimizer": True}, "offload_optimizer needs zero_stage 1, 2"),
        ({"zero_stage": 2, "offload_parameters": True}, "offload_parameters needs zero_stage 3"),
        ({"keep": "best"}, "keep: best needs checkpoint_every"),
        ({"deepspeed": {"zero_optimization": {"stage": 1}}}, "give training.zero_stage instead"),
        *(
            ({"deepspeed": {key: 1}}, f"deepspeed.{key}: give")
            for key in RESERVED_DEEPSPEED_KEYS
            if "." not in key
        ),
        *(
            ({"deepspeed": {key: 2}}, "cut over several workers is not supported")
            for key in SPLITTING_DEEPSPEED_KEYS
        ),
    ],
)
def test_what_does_not_go_together_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingSpec(**settings)


def test_further_options_are_laid_over_those_of_the_settings() -> None:
    spec = TrainingSpec(
        zero_stage=3,
        offload_optimizer=True,
        deepspeed={"zero_optimization": {"reduce_bucket_size": 7}, "wall_clock_breakdown": True},
    )
    config = deepspeed_config(spec, torch.float32)
    assert config["zero_optimization"] == {
        "stage": 3,
        "offload_optimizer": {"device": "cpu"},
        "reduce_bucket_size": 7,
    }
    assert config["wall_clock_breakdown"] is True
    assert not config["bf16"]["enabled"]
    assert not config["fp16"]["enabled"]


def test_validations_and_checkpoints_are_due() -> None:
    def due(spec: TrainingSpec) -> tuple[list[int], list[int]]:
        steps = range(8)
        return (
            [step for step in steps if spec.is_validated(step, 7)],
            [step for step in steps if spec.is_saved(step, 7)],
        )

    assert due(TrainingSpec()) == ([0, 7], [7])
    assert due(TrainingSpec(validate_every=3, checkpoint_every=2)) == ([0, 3, 6, 7], [2, 4, 6, 7])
    best = TrainingSpec(checkpoint_every=4, keep="best")
    assert due(best) == ([0, 4, 7], [4, 7])


def test_adapted_head_is_refused_with_dropout() -> None:
    LoraSpec(dropout=0.1)
    LoraSpec(targets=("lm_head",))
    assert LoraSpec.model_validate({"targets": "all-linear"}) == LoraSpec()
    with pytest.raises(ValueError, match="dropout and an adapted lm_head do not go together"):
        LoraSpec(dropout=0.1, targets=("q_proj", "lm_head"))


def test_float16_is_refused_where_deepspeed_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    # Whether a CPU has it is for DeepSpeed to say; those with AMX-FP16 or AVX-512-FP16 do.
    monkeypatch.setattr(deepspeed.get_accelerator(), "is_fp16_supported", lambda: False)
    assert resolve_dtype("bfloat16") is torch.bfloat16
    with pytest.raises(ValueError, match="no float16 on this device; give bfloat16 or float32"):
        resolve_dtype("float16")
