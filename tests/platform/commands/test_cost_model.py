"""The plan's arithmetic: by hand, and against real models, adapters and autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from deft.objectives import CATALOG, get_objective
from deft.objectives.head import gpu_blocks, triton_head
from deft.platform.commands.cost_model import (
    BLOCKS_COLUMNS,
    BUCKET,
    CARDS,
    GIB,
    HEAD_BLOCK,
    HEADS,
    MAX_LIVE,
    TILES,
    TILES_COLUMNS,
    DataSize,
    HeadKind,
    activation_bytes,
    gpu_hours,
    memory_per_device,
    trained_parameters,
    trained_tokens,
    training_flops,
)
from deft.workers.catalogs.models import MODELS, ModelDimensions, read_dimensions
from deft.workers.spec import LoraSpec, TrainingSpec
from deft.workers.training.engine import deepspeed_config


def config_of(model: ModelDimensions) -> PreTrainedConfig:
    """Build a configuration of the same sizes and kind."""
    kind = Qwen3Config if model.qk_norm else Qwen2Config if model.qkv_bias else LlamaConfig
    return kind(
        num_hidden_layers=model.num_layers,
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_attention_heads=model.num_heads,
        num_key_value_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        vocab_size=model.vocab_size,
        tie_word_embeddings=model.tied,
    )


def on_meta(config: PreTrainedConfig) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_those_of_the_real_architecture(name: str) -> None:
    model = MODELS[name].dimensions
    real = on_meta(config_of(model))
    assert model.num_parameters == real.num_parameters()
    assert read_dimensions(real.config.to_dict()) == model


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("qwen-2.5-math-1.5b", 1.54),
        ("qwen-2.5-math-7b", 7.62),
        ("llama-3.1-8b", 8.03),
        ("llama-3.2-3b", 3.21),
        ("deepseek-math-7b", 6.91),
    ],
)
def test_parameters_are_the_published_ones(name: str, billions: float) -> None:
    assert MODELS[name].dimensions.num_parameters / 1e9 == pytest.approx(billions, abs=0.005)


def test_other_configurations_are_read_or_said_to_be_unknown() -> None:
    qwen3 = Qwen3Config(num_hidden_layers=2, vocab_size=1000, tie_word_embeddings=True)
    model = read_dimensions(qwen3.to_dict())
    assert model is not None
    assert model.num_parameters == on_meta(qwen3).num_parameters()
    assert read_dimensions({"model_type": "mamba"}) is None


# L 2, width 8, feed-forward 16, 2 heads of 4, 1 key-value head, vocabulary 32, tied, no bias:
# embedding 256; a layer 8·8 + 2·8·4 + 8·8 + 3·8·16 + 2·8 = 592; last norm 8; together 1,448.
SMALL = ModelDimensions(2, 8, 16, 2, 1, 4, 32, True, False)
SPEC = TrainingSpec(num_workers=2, batch_size=4, micro_batch_size=2, max_length=10)


def test_memory_by_stage_worked_out_by_hand() -> None:
    n = SMALL.num_parameters
    assert n == 1448
    by_stage = [
        memory_per_device(SMALL, SPEC, stage=stage, checkpointed=False, itemsize=2)
        for stage in range(4)
    ]
    assert [memory.weights for memory in by_stage] == [2 * n, 2 * n, 2 * n, n]
    # A micro-batch's gradients in 16 bits and their sums in 32, or the half of the sums.
    assert [memory.gradients for memory in by_stage] == [6 * n, 6 * n, 2 * n, 2 * n]
    # Stage 0 is computed as stage 1.
    assert [memory.optimizer for memory in by_stage] == [6 * n, 6 * n, 6 * n, 6 * n]
    # Two buckets and a float32 copy; one in float32, and the gathered weights or half the sums.
    assert [memory.buffers for memory in by_stage] == [0, 0, 8 * BUCKET, 4 * BUCKET + 2 * n]
    # 20 tokens of 2 bytes; a layer keeps 4·8 + 2·8 + 2·4 + 3·16 = 104 numbers of each.
    assert {memory.activations for memory in by_stage} == {20 * 2 * 2 * 104}
    assert {memory.head for memory in by_stage} == {20 * 32 * 2 + 2 * 32 * 8 + 8 * 20 * 8}
    assert {memory.reference for memory in by_stage} == {0}
    again = memory_per_device(SMALL, SPEC, stage=0, checkpointed=True, itemsize=2)
    assert again.activations == 20 * 2 * (2 * 8 + 104)
    first = by_stage[0]
    assert first.total == 14 * n + first.activations + first.head


def test_float32_has_no_master_weights_without_zero() -> None:
    n = SMALL.num_parameters
    plain = memory_per_device(SMALL, SPEC, stage=0, checkpointed=False, itemsize=4)
    assert (plain.weights, plain.gradients, plain.optimizer) == (4 * n, 4 * n, 8 * n)
    sharded = memory_per_device(SMALL, SPEC, stage=2, checkpointed=False, itemsize=4)
    assert (sharded.weights, sharded.gradients, sharded.optimizer) == (4 * n, 2 * n, 6 * n)


def test_buffers_of_large_models_are_deepspeeds() -> None:
    model = MODELS["qwen-2.5-math-7b"].dimensions
    spec = TrainingSpec(num_workers=64)
    for stage, size in ((2, 8 * BUCKET), (3, 4 * BUCKET + 2 * MAX_LIVE)):
        memory = memory_per_device(model, spec, stage=stage, checkpointed=True, itemsize=2)
        assert memory.buffers == size
    options = deepspeed_config(spec, torch.bfloat16)["zero_optimization"]
    assert options["reduce_bucket_size"] == BUCKET


def test_every_objective_is_planned_with_the_head_that_a_gpu_runs() -> None:
    for name, info in CATALOG.items():
        given = {info.parameter: 0.5} if info.parameter else {}
        objective = get_objective({"name": name, **given})
        in_tiles = triton_head.unsupported_request(objective, torch.bfloat16) is None
        expected = HeadKind(not in_tiles, objective.needs_reference)
        assert HEADS.get(name, TILES) == expected, name
    assert triton_head._BLOCK_BYTES == gpu_blocks.BLOCK_BYTES == HEAD_BLOCK
    assert triton_head._MIN_BLOCK_COLUMNS == TILES_COLUMNS
    assert gpu_blocks.LEAST_COLUMNS == BLOCKS_COLUMNS


def test_an_anchored_objective_keeps_a_frozen_model_and_blocks_of_two_distributions() -> None:
    n, kind = SMALL.num_parameters, HEADS["ASFT"]
    memory = memory_per_device(SMALL, SPEC, stage=1, checkpointed=False, itemsize=2, head=kind)
    assert memory.reference == 2 * n
    # 20 rows of 32 logits in float32, twice in the second pass; the gradients of the weight in
    # bfloat16 and of the hidden states. The first pass has 3 of them and no gradient.
    assert memory.head == max(3 * 20 * 32 * 4, 2 * 20 * 32 * 4 + 2 * 32 * 8 + 8 * 20 * 8)
    adapted = SPEC.model_copy(update={"lora": LoraSpec()})
    memory = memory_per_device(SMALL, adapted, stage=1, checkpointed=False, itemsize=2, head=kind)
    assert memory.reference == 0


def test_offloaded_parts_are_not_on_the_device() -> None:
    spec = TrainingSpec(zero_stage=3, offload_optimizer=True, offload_parameters=True)
    memory = memory_per_device(SMALL, spec, stage=3, checkpointed=False, itemsize=2)
    assert memory.optimizer == memory.weights == 0
    assert memory.gradients > 0


def test_adapters_have_the_parameters_that_peft_gives_them() -> None:
    for targets, rank in ((("all-linear",), 8), (("q_proj", "v_proj", "lm_head"), 4)):
        model = on_meta(config_of(SMALL))
        target_modules = targets[0] if targets == ("all-linear",) else list(targets)
        adapted = get_peft_model(model, LoraConfig(r=rank, target_modules=target_modules))
        real = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
        assert trained_parameters(SMALL, LoraSpec(rank=rank, targets=targets)) == real
    spec = TrainingSpec(lora=LoraSpec(rank=8), num_workers=1, batch_size=4, micro_batch_size=1)
    memory = memory_per_device(SMALL, spec, stage=0, checkpointed=False, itemsize=2)
    assert memory.weights == 2 * SMALL.num_parameters
    assert memory.optimizer == 12 * trained_parameters(SMALL, spec.lora)


def test_activations_are_of_the_size_that_autograd_keeps() -> None:
    """Plain PyTorch modules keep what is counted, and float32 copies in the norms besides."""
    model = ModelDimensions(4, 64, 256, 4, 2, 16, 128, True, False)
    real = AutoModelForCausalLM.from_config(config_of(model), dtype=torch.bfloat16)
    parameters = {p.untyped_storage().data_ptr() for p in real.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens = 512
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = real.model(input_ids=torch.zeros((1, tokens), dtype=torch.long))
    measured = sum(kept.values())
    assert output.last_hidden_state.requires_grad
    planned = activation_bytes(model, tokens, itemsize=2, checkpointed=False)
    assert planned < measured < 2 * planned


def test_operations_tokens_and_hours_worked_out_by_hand() -> None:
    data = DataSize(num_examples=10, num_tokens=1000, source="")
    assert trained_tokens(SPEC, data) == 2 * 4 * 100
    assert training_flops(SMALL, SPEC, 800) == 6 * 1448 * 800
    again = TrainingSpec(gradient_checkpointing=True)
    assert training_flops(SMALL, again, 800) == 8 * 1448 * 800
    assert training_flops(SMALL, TrainingSpec(lora=LoraSpec()), 800) == 4 * 1448 * 800
    untied = ModelDimensions(2, 8, 16, 2, 1, 4, 32, False, False)
    assert untied.num_parameters == 1448 + 256
    assert training_flops(untied, SPEC, 800) == 6 * 1448 * 800
    # 40 % of 989e12 operations a second for an hour.
    assert gpu_hours(0.4 * 989e12 * 3600, CARDS[0]) == pytest.approx(1)
    assert CARDS[0].memory * GIB > 80e9
