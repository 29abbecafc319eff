"""Every architecture is trained or refused with a true sentence; the table in the documentation.

Tiny models with random weights are built from the configuration classes of transformers. To write
`docs/architectures.md` anew, which takes minutes:

    python -m pytest tests/workers/modeling/test_architectures.py -m slow --rewrite-table
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MIXTURE: dict[str, Any] = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
LATENT: dict[str, Any] = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
}
GPT: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "n_inner": 64}

FAMILIES: dict[str, dict[str, Any]] = {
    "afmoe": MIXTURE,
}


def build(kind: str, **settings: Any) -> PreTrainedModel:
    """A tiny random model in which every parameter and persistent buffer matters."""
    torch.manual_seed(0)
    accepted = {key: value for key, value in {**SIZES, **settings}.items() if value is not ...}
    config = AutoConfig.for_model(kind, **accepted)
    with torch.device("meta"):
        size = AutoModelForCausalLM.from_config(config).num_parameters()
    assert size < 3e6, f"{kind} has {size:,} parameters"
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
    stored = model.state_dict()
    with torch.no_grad():
        for tensor in stored.values():
            if tensor.is_floating_point():
                tensor += 0.1 * torch.randn(tensor.shape, dtype=tensor.dtype)
    return model
