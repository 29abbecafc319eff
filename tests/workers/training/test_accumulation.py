"""Engines of every ZeRO stage: gradients add up as in float64, and stage 3 holds its part only."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import free_port

BOUND = 1e-4
"""Relative error of a step's gradient; in bfloat16 it would be 3e-3 after 8 micro-batches."""


def add_to(total: torch.Tensor, gradient: torch.Tensor) -> None:
    """Add a micro-batch's gradient; as a hook, leave it as it is."""
    total += gradient


def accumulation_errors(rank: int, port: int, num_micro_batches: int, out: str) -> None:
    """Write the error of the gradient of one step at each ZeRO stage, as one of two workers."""
    from deft.workers.training.ray_entry import prepare_process

    prepare_process()
    import deepspeed
    from deepspeed.utils import safe_get_full_grad
    from transformers import AutoModelForCausalLM, LlamaConfig

    from deft.objectives import get_objective
    from deft.workers.modeling.objective_model import ObjectiveModel
    from deft.workers.spec import TrainingSpec
    from deft.workers.training.batches import collate
    from deft.workers.training.engine import build_engine

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    errors, held_whole = [], []
    initialize = deepspeed.initialize

    def recording(**arguments: Any) -> Any:
        held_whole.append(sum(p.numel() for p in arguments["model"].parameters()))
        return initialize(**arguments)

    deepspeed.initialize = recording
    for stage in range(4):
        spec = TrainingSpec(num_workers=2, batch_size=8, zero_stage=stage, dtype="bfloat16")
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        engine = build_engine(ObjectiveModel(model, get_objective("DEFT")), spec, 4)
        parameters = list(engine.module.parameters())
        sums = [
            torch.zeros(getattr(parameter, "ds_shape", parameter.shape), dtype=torch.float64)
            for parameter in parameters
        ]
        for parameter, total in zip(parameters, sums, strict=True):
            parameter.register_hook(partial(add_to, total))
        generator = torch.Generator().manual_seed(rank)
        for index in range(num_micro_batches):
            ids = torch.randint(128, (24,), generator=generator).tolist()
            rows = [{"input_ids": ids, "labels": ids}]
            batch = collate(rows, 0, torch.device("cpu"), packing=False)
            engine.set_gradient_accumulation_boundary(index == num_micro_batches - 1)
            engine.backward(engine(**batch)[0], scale_wrt_gas=False)
        difference = size = torch.zeros((), dtype=torch.float64)
        for parameter, total in zip(parameters, sums, strict=True):
            torch.distributed.all_reduce(total)
            gradient = safe_get_full_grad(parameter)
            difference = difference + (gradient - total / 2).square().sum()
            size = size + (total / 2).square().sum()
        errors.append(float((difference / size).sqrt()))
    if rank == 0:
        torch.save((errors, held_whole), out)


@pytest.mark.slow
@pytest.mark.parametrize("num_micro_batches", [16, 256])
def test_a_step_of_bfloat16_micro_batches_is_summed_in_float32(
    tmp_path: Path, num_micro_batches: int
) -> None:
    out = tmp_path / "errors.pt"
    torch.multiprocessing.spawn(
        accumulation_errors, (free_port(), num_micro_batches, str(out)), nprocs=2
    )
    errors, held_whole = torch.load(out)
    assert len(errors) == 4
    assert max(errors) <= BOUND, errors
    # At stage 3 DeepSpeed's own `initialize` would find, and move, the whole model.
    assert [elements > 0 for elements in held_whole] == [True, True, True, False]
