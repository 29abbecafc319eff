"""The DeepSpeed engine: precision, ZeRO stage, optimiser, schedule, and getting the model out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import deepspeed
import torch
from transformers import PreTrainedTokenizerBase, get_cosine_schedule_with_warmup

from deft.workers.head import ObjectiveModel
from deft.workers.spec import TrainingSpec


def resolve_dtype(name: str) -> torch.dtype:
    """The dtype that ``name`` (auto, float32 or bfloat16) stands for on this machine."""
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu.get_capabilities().get("avx512_bf16", False)
    return torch.bfloat16 if native else torch.float32


def deepspeed_config(spec: TrainingSpec, dtype: torch.dtype) -> dict[str, Any]:
    """DeepSpeed's configuration for ``spec``."""
    return {
        "train_batch_size": spec.batch_size,
        "train_micro_batch_size_per_gpu": spec.micro_batch_size,
        "gradient_accumulation_steps": spec.accumulation_steps,
        "gradient_clipping": spec.max_grad_norm,
        "bf16": {"enabled": dtype is torch.bfloat16},
        "zero_optimization": {"stage": spec.resolved_zero_stage},
        "checkpoint": {"use_node_local_storage": True},
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": spec.learning_rate,
                "betas": list(spec.betas),
                "weight_decay": spec.weight_decay,
                "torch_adam": True,
            },
        },
        "steps_per_print": None,
    }


def build_engine(
    model: ObjectiveModel, spec: TrainingSpec, num_steps: int
) -> deepspeed.DeepSpeedEngine:
    """Wrap ``model``: AdamW, linear warm-up and cosine decay over ``num_steps`` steps."""

    def schedule(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        cosine: torch.optim.lr_scheduler.LRScheduler = get_cosine_schedule_with_warmup(
            optimizer,
            num_warmup_steps=int(spec.warmup_ratio * num_steps),
            num_training_steps=num_steps,
        )
        return cosine

    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=[p for p in model.parameters() if p.requires_grad],
        config=deepspeed_config(spec, model.model.dtype),
        lr_scheduler=schedule,
    )
    return engine


def export_model(
    engine: deepspeed.DeepSpeedEngine, tokenizer: PreTrainedTokenizerBase, directory: Path
) -> None:
    """Write Hugging Face safetensors and tokenizer on rank 0; every rank must call this.

    Under ZeRO-3 parameters are gathered one by one, so no device ever holds the whole model.
    """
    writes = torch.distributed.get_rank() == 0
    sharded = engine.zero_optimization_stage() == 3
    # Tied parameters appear once here, under their first name, as in a Hugging Face checkpoint.
    state: dict[str, torch.Tensor] = {}
    for name, parameter in engine.module.model.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=sharded):
            if writes:
                state[name] = parameter.detach().cpu().clone()
    if writes:
        engine.module.model.save_pretrained(directory, state_dict=state)
        tokenizer.save_pretrained(directory)
