"""Before training, a model run as training runs it is compared with the model itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from deft.workers.common.compat import attention_of
from deft.workers.modeling.lora import resolve_targets
from deft.workers.modeling.self_check import settle_attention, unused_modules
from deft.workers.spec import TrainingSpec

os.environ.setdefault("DS_ACCELERATOR", "cpu")
from deft.workers.training.engine import load_model

SMALL: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.5,
    "pad_token_id": 0,
}


def build(kind: str, attention: str = "sdpa", **settings: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SMALL | settings)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        config, attn_implementation=attention
    ).eval()
    return model


def spec(**settings: Any) -> TrainingSpec:
    return TrainingSpec(num_workers=1, batch_size=4, **{"max_length": 64, **settings})


def test_attention_that_leaves_something_out_is_exchanged() -> None:
    """The sdpa of transformers ignores a cap of the attention's logits."""
    model = build("gemma2", attn_logit_softcapping=0.5)
    settle_attention(model, packing=False)
    assert attention_of(model) == "eager"
    plain = build("llama")
    settle_attention(plain, packing=False)
    assert attention_of(plain) == "sdpa"


def test_attention_in_both_directions_is_refused() -> None:
    """What stands to the right, padding included, would change a token's prediction."""
    with pytest.raises(ValueError, match="cannot be trained: examples padded to one length do not"):
        settle_attention(build("bert-generation", is_decoder=False), packing=False)


def test_state_that_carries_over_is_refused_with_what_works(tmp_path: Path) -> None:
    model = build("recurrent_gemma", lru_width=16, block_types=("recurrent", "attention"))
    model.save_pretrained(tmp_path)
    message = r"packed into one row do not .* set training\.packing to false: .* sdpa attention"
    with pytest.raises(ValueError, match=message):
        load_model(str(tmp_path), spec(), torch.float32)
    load_model(str(tmp_path), spec(packing=False), torch.float32)


def test_attention_of_a_models_own_is_refused_with_what_works(tmp_path: Path) -> None:
    build("bloom", "eager").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"bloom has attention of its own; .* eager attention"):
        load_model(str(tmp_path), spec(), torch.float32)
    model = load_model(str(tmp_path), spec(packing=False), torch.float32)
    assert attention_of(model) == "eager"


def test_more_positions_than_the_model_has_are_refused(tmp_path: Path) -> None:
    build("gpt2", n_embd=16, n_head=2, n_layer=1, n_positions=64).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"training\.max_length: 65 is longer than the 64"):
        load_model(str(tmp_path), spec(max_length=65), torch.float32)


def test_layers_whose_weight_is_read_without_a_call_are_not_adapted() -> None:
    model = build("jamba", num_experts=1, attn_layer_period=2, attn_layer_offset=1)
    unused = unused_modules(model, packing=False)
    read = "model.layers.0.mamba.dt_proj"
    assert read in unused
    assert not any(name.endswith(("q_proj", "in_proj", "down_proj")) for name in unused)
    modules, _ = resolve_targets(model, ("all-linear",), unused)
    assert read not in modules
    assert "model.layers.0.mamba.in_proj" in modules
    with pytest.raises(ValueError, match=rf"dt_proj cannot be adapted: .* does not call {read}"):
        resolve_targets(model, ("dt_proj",), unused)
