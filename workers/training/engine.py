"""The DeepSpeed engine: precision, ZeRO stage, optimizer, and schedule."""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import Any

import deepspeed
import torch
from transformers import AutoConfig, PreTrainedModel, get_scheduler
from transformers.modeling_layers import GradientCheckpointingLayer

from deft.workers.common.compat import (
    apply_liger_kernels,
    attention_of,
    skip_steps_without_finite_gradient,
)
from deft.workers.common.mappings import deep_merge
from deft.workers.modeling.attention import choose_attention
from deft.workers.modeling.loading import load_causal_lm, require_positions
from deft.workers.modeling.lora import add_adapters
from deft.workers.modeling.objective_model import ObjectiveModel
from deft.workers.modeling.self_check import settle_attention, unused_modules
from deft.workers.spec import TrainingSpec
from deft.workers.training.deepspeed_build import load_collectives

REDUCE_BUCKET = 200_000_000
"""Gradients that ZeRO reduces at once; by DeepSpeed's own 5e8 the buffers alone take 2 to 4 GB."""


def resolve_dtype(name: str) -> torch.dtype:
    """Return the dtype that ``name`` (auto, float32, bfloat16 or float16) means on this machine.

    Raises:
        ValueError: DeepSpeed has no float16 on it.
    """
    if name == "float16" and not deepspeed.get_accelerator().is_fp16_supported():
        raise ValueError(
            "training.dtype: DeepSpeed has no float16 on this device; give bfloat16 or float32"
        )
    if name != "auto":
        return {
            "float32": torch.float32,
            "bfloat16": torch.bfloat16,
            "float16": torch.float16,
        }[name]
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu.get_capabilities().get("avx512_bf16", False)
    return torch.bfloat16 if native else torch.float32


def agreed_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return `resolve_dtype(name)` of all workers: with auto, bfloat16 only if all compute in it.

    Every rank must call this.
    """
    dtype = resolve_dtype(name)
    if name != "auto":
        return dtype
    is_rounded = torch.tensor(dtype is torch.bfloat16, dtype=torch.int32, device=device)
    torch.distributed.all_reduce(is_rounded, torch.distributed.ReduceOp.MIN)
    return torch.bfloat16 if is_rounded else torch.float32


def load_model(model_dir: str, spec: TrainingSpec, dtype: torch.dtype) -> PreTrainedModel:
    """Load the model to train, with attention, kernels and adapters as ``spec`` says.

    Raises:
        ValueError: weights are missing, or the model cannot be trained as ``spec`` says.
    """
    config = AutoConfig.from_pretrained(model_dir)
    require_positions(config, spec.max_length)
    try:
        attention = choose_attention(config, packing=spec.packing, dtype=dtype)
    except ValueError:
        # What the message offers instead must be true.
        settle_attention(load_causal_lm(model_dir, dtype=dtype), packing=False)
        raise
    model = load_causal_lm(model_dir, dtype=dtype, attn_implementation=attention)
    settle_attention(model, packing=spec.packing)
    if torch.cuda.is_available() and find_spec("liger_kernel") is not None:
        apply_liger_kernels(model)
    if spec.optimizer == "muon":
        require_recognized_embeddings(model)
    if spec.lora is not None:
        unused = unused_modules(model, packing=spec.packing)
        add_adapters(model, spec.lora, zero_stage=spec.resolved_zero_stage, unused=unused)
    if spec.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if spec.compile:
        compile_layers(model)
    return model


def load_reference(model_dir: str, model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """Load a frozen copy of the model that is trained, with its dtype and attention."""
    return load_causal_lm(
        model_dir,
        dtype=model.dtype,
        device_map=device,
        attn_implementation=attention_of(model),
    )


def require_same_vocabulary(model: PreTrainedModel, reference: PreTrainedModel) -> None:
    """Refuse a reference model whose tokens are not those of the model that is trained.

    Raises:
        ValueError: the vocabularies differ in size.
    """
    ours, theirs = (len(each.get_output_embeddings().weight) for each in (model, reference))
    if ours != theirs:
        raise ValueError(
            f"training.reference: it has a vocabulary of {theirs:,} tokens, the model one of "
            f"{ours:,}; give a model of the same tokenizer"
        )


def compile_layers(model: PreTrainedModel) -> None:
    """Compile every decoder layer for any length; they share one compilation."""
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.compile(dynamic=True)


def deepspeed_config(
    spec: TrainingSpec, dtype: torch.dtype, *, load_universal: bool = False
) -> dict[str, Any]:
    """Build DeepSpeed's configuration for ``spec``.

    Args:
        spec: how to train.
        dtype: of the parameters.
        load_universal: whether the checkpoint to resume from is in DeepSpeed's universal format.
    """
    has_rounded_gradients = dtype.itemsize < 4
    stage = spec.resolved_zero_stage
    if has_rounded_gradients:
        # DeepSpeed's stage 0 adds up gradients in the parameters' dtype only. Stage 1 computes the
        # same in float32, and keeps no more on one worker and less on several.
        stage = max(stage, 1)
    zero: dict[str, Any] = {"stage": stage, "reduce_bucket_size": REDUCE_BUCKET}
    if stage == 2:
        # Every micro-batch is reduced: while the backward pass of the next layers runs, where the
        # device can do both.
        zero["overlap_comm"] = torch.cuda.is_available()
    if stage == 3 and spec.optimizer == "muon":
        zero["reduce_scatter"] = False  # Muon needs whole matrices
    if spec.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    if spec.offload_parameters:
        zero["offload_param"] = {"device": "cpu"}
    keeps_bfloat16 = spec.master_dtype == "bfloat16"
    config: dict[str, Any] = {
        # The loop marks the boundary of a step itself; these two only have to be valid.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": max(spec.batch_size // spec.num_workers, 1),
        # Muon makes the norm of each matrix' update a constant, and DeepSpeed would clip that.
        "gradient_clipping": 0.0 if spec.optimizer == "muon" else spec.max_grad_norm,
        "bf16": {
            "enabled": dtype is torch.bfloat16,
            "check_grad_overflow": True,
            "bf16_master_weights_and_grads": keeps_bfloat16,
            "bf16_optimizer_states": keeps_bfloat16,
        },
        "fp16": {"enabled": dtype is torch.float16},
        "zero_optimization": zero,
        # In 8 bits of precision 256 micro-batches would add up to an error of 2 %.
        "data_types": {"grad_accum_dtype": "bf16" if keeps_bfloat16 else "fp32"},
        "communication_data_type": "fp32",
        "checkpoint": {"use_node_local_storage": True, "load_universal": load_universal},
        "optimizer": optimizer_config(spec),
        "zero_allow_untested_optimizer": spec.optimizer == "nadamw",
        "steps_per_print": None,
    }
    return deep_merge(config, spec.deepspeed)


def optimizer_config(spec: TrainingSpec) -> dict[str, Any]:
    """Build the part of DeepSpeed's configuration that describes the optimizer."""
    params = {
        "lr": spec.learning_rate,
        "betas": list(spec.betas),
        "weight_decay": spec.weight_decay,
    }
    if spec.optimizer == "nadamw":
        return {"type": "NAdam", "params": params | {"decoupled_weight_decay": True}}
    # The fused kernel computes in float32 and rounds once; moments that are bfloat16 are to be
    # rounded as the optimizer of the paper rounds them.
    params |= {"torch_adam": True, "fused": spec.master_dtype != "bfloat16"}
    return {"type": "Muon" if spec.optimizer == "muon" else "AdamW", "params": params}


def require_recognized_embeddings(model: PreTrainedModel) -> None:
    """Raise ValueError if DeepSpeed's Muon would take an embedding or the head for a layer.

    It tells them by their names.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        name = names[module.weight]
        if "embed" not in name and "lm_head" not in name:
            raise ValueError(
                f"training.optimizer: muon is for layers, and DeepSpeed does not recognize {name} "
                f"of {model.config.model_type} as an embedding; give adamw or nadamw"
            )


def learning_rate_schedule(
    optimizer: torch.optim.Optimizer, spec: TrainingSpec, num_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Return the schedule of ``spec`` over ``num_steps`` steps, warm-up included."""
    decay = int(spec.decay_ratio * num_steps)
    kwargs = {"num_decay_steps": decay, "decay_type": "linear"} if spec.schedule == "wsd" else {}
    names = {"wsd": "warmup_stable_decay", "constant": "constant_with_warmup"}
    schedule: torch.optim.lr_scheduler.LRScheduler = get_scheduler(
        names.get(spec.schedule, spec.schedule),
        optimizer,
        num_warmup_steps=int(spec.warmup_ratio * num_steps),
        num_training_steps=num_steps,
        scheduler_specific_kwargs=kwargs,
    )
    return schedule


def build_engine(
    model: ObjectiveModel, spec: TrainingSpec, num_steps: int, *, load_universal: bool = False
) -> deepspeed.DeepSpeedEngine:
    """Wrap ``model``: optimizer and schedule of ``spec``, the latter over ``num_steps`` steps."""

    def schedule(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return learning_rate_schedule(optimizer, spec, num_steps)

    load_collectives()
    config = deepspeed_config(spec, model.model.dtype, load_universal=load_universal)
    if config["zero_optimization"]["stage"] == 3:
        partition_parameters(model, config)
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=[p for p in model.parameters() if p.requires_grad],
        config=config,
        lr_scheduler=schedule,
    )
    if engine.zero_optimization_stage() == 3:
        skip_steps_without_finite_gradient(engine.optimizer)
    return engine


def partition_parameters(model: ObjectiveModel, config: dict[str, Any]) -> None:
    """Move the model to the device by ZeRO-3: parameter by parameter, each worker keeps its part.

    `deepspeed.initialize` alone would move the whole model to every device before it parts it. In
    the host's memory the weights are pages of the model's files, which the workers of a node share
    as long as training has the dtype of the files.
    """
    deepspeed.zero.Init(module=model, config_dict_or_path=config)
    device = deepspeed.get_accelerator().current_device_name()
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, buffer.to(device))


def take_step(engine: deepspeed.DeepSpeedEngine) -> float:
    """Update the parameters, unless a gradient is not finite: then the step is skipped.

    Returns:
        The global gradient norm before clipping; inf or NaN where the step was skipped.
    """
    if engine.zero_optimization_stage() == 0 and engine.module.model.dtype is torch.float32:
        # DeepSpeed neither checks nor measures a gradient here, which every rank holds whole.
        gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if math.isfinite(norm):
            engine.step()
        else:
            engine.zero_grad()
            engine.skipped_steps += 1
        return norm
    engine.step()
    return float(engine.get_global_grad_norm())
