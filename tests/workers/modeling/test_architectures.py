"""Every architecture is trained as it is or refused with a true sentence; the table in the docs.

Tiny models with random weights are built from the configuration classes of transformers. To write
`docs/architectures.md` anew, which takes minutes:

    PYTHONPATH=tests python tests/workers/modeling/test_architectures.py
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from deft.objectives import get_objective
from deft.workers.common.compat import attention_of
from deft.workers.modeling.lora import merged_tensors
from deft.workers.modeling.objective_model import ObjectiveModel
from deft.workers.spec import LoraSpec, TrainingSpec
from deft.workers.training.batches import collate
from helpers import ROOT

os.environ.setdefault("DS_ACCELERATOR", "cpu")
from deft.workers.training.engine import load_model
from deft.workers.training.export import find_difference

TABLE = ROOT / "docs" / "architectures.md"
CPU = torch.device("cpu")

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
    "shared_expert_intermediate_size": 32,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
LATENT: dict[str, Any] = MIXTURE | {
    "head_dim": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
}
GPT: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "n_inner": 64}
MAMBA: dict[str, Any] = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_d_ssm": 64,
    "mamba_num_heads": 8,
    "mamba_head_dim": 8,
    "ssm_state_size": 8,
}
LINEAR: dict[str, Any] = {
    "linear_num_value_heads": 2,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
SLIDING: dict[str, Any] = {
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention"],
}
DENSE = (
    "apertus arcee biogpt bitnet bloom cohere cwm diffllama doge ernie4_5 exaone4 falcon_mamba"
    " fuyu gemma glm glm4 gpt_neox gpt_neox_japanese granite helium hrm_text hunyuan_v1_dense "
    "hyperclovax jais2 llama mamba ministral3 modernbert-decoder mpt nanochat nemotron olmo olmo2 "
    "openai-gpt persimmon phi phi3 qwen2 qwen3 recurrent_gemma rwkv seed_oss smollm3 stablelm "
    "starcoder2 xlstm"
)
MIXTURES = (
    "afmoe aria_text cohere2_moe dots1 ernie4_5_moe exaone_moe flex_olmo glm4_moe granitemoe "
    "granitemoeshared granitemoe_swa hunyuan_v1_moe hy_v3 jetmoe laguna llama4_text mellum minimax "
    "minimax_m2 mixtral olmoe phimoe qwen2_moe qwen3_moe solar_open"
)
LATENT_MIXTURES = (
    "axk1 deepseek_v2 deepseek_v3 deepseek_v32 glm4_moe_lite glm_moe_dsa longcat_flash minicpm3 "
    "youtu"
)
FAMILIES: dict[str, dict[str, Any]] = {
    **{name: {} for name in DENSE.split()},
    **dict.fromkeys(MIXTURES.split(), MIXTURE),
    **dict.fromkeys(LATENT_MIXTURES.split(), LATENT),
    **dict.fromkeys(("gpt2", "gpt-sw3", "gpt_bigcode"), GPT),
    **{name: GPT | {"rotary_dim": 4} for name in ("codegen", "gptj")},
    **dict.fromkeys(("bamba", "falcon_h1"), MAMBA),
    **dict.fromkeys(("cohere2", "gemma3_text", "ministral", "olmo3", "granite_swa"), SLIDING),
    "bert": {},
    "cpmant": {},
    "ctrl": GPT | {"dff": 64},
    "falcon": {"head_dim": ...},
    "gemma2": SLIDING | {"attn_logit_softcapping": 1.0},
    "gemma4_text": SLIDING | {"vocab_size_per_layer_input": 97, "hidden_size_per_layer_input": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "window_size": 4},
    "gpt_oss": MIXTURE | SLIDING,
    "granitemoehybrid": MIXTURE | MAMBA | {"layer_types": ["mamba", "attention"]},
    "jamba": MIXTURE | {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 8},
    "mistral": {"sliding_window": 4},
    "moshi": {"head_dim": 8, "audio_vocab_size": 16, "ffn_dim": 64},
    "nemotron_h": MIXTURE | MAMBA,
    "olmo_hybrid": LINEAR,
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "qwen3_5_moe_text": MIXTURE | LINEAR,
    "qwen3_5_text": LINEAR,
    "qwen3_next": MIXTURE | LINEAR,
    "roberta": {},
    "roformer": {"is_decoder": True},
    "vaultgemma": SLIDING | {"attn_logit_softcapping": 1.0},
    "xglm": {"d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4},
}
CHECKED_BY_CI = (
    "bert bloom falcon gemma2 glm4_moe gpt2 gpt_oss jetmoe llama mamba mistral mixtral nemotron "
    "phimoe qwen2 qwen3_next"
)

EXAMPLES = ([5, 17, 3, 60], [11, 4, 9, 88, 30, 2, 7, 41, 6], [23, 8])
"""Token ids; the longest is longer than a sliding window."""


@dataclass(frozen=True)
class Row:
    """What is done with one architecture."""

    family: str
    packed: str
    padded: str
    loss: str
    export: str
    lora: str
    refusal: str

    @property
    def line(self) -> str:
        return "| " + " | ".join(astuple(self)) + " |"


def build(family: str) -> PreTrainedModel:
    """Build a tiny model in which every parameter and persistent buffer matters."""
    torch.manual_seed(0)
    settings = {key: value for key, value in (SIZES | FAMILIES[family]).items() if value != ...}
    config = AutoConfig.for_model(family, **settings)
    with torch.device("meta"):
        size = AutoModelForCausalLM.from_config(config).num_parameters()
    assert size < 3e6, f"{family} has {size:,} parameters"
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        config, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            # MiniMax keeps its causal mask in buffers.
            if tensor.is_floating_point() and not name.endswith(("_decay", "slope_rate")):
                tensor += 0.1 * torch.randn(tensor.shape)
    return model


def own_loss(model: PreTrainedModel) -> float:
    """Sum of the model's own loss over the tokens of all examples, each alone."""
    with torch.no_grad():
        return sum(
            float(model(input_ids=ids, labels=ids, use_cache=False).loss) * (ids.shape[1] - 1)
            for ids in (torch.tensor([ids]) for ids in EXAMPLES)
        )


def objective_loss(model: PreTrainedModel, *, packing: bool) -> tuple[float, torch.Tensor]:
    """NLL of all examples in one batch, as training computes it, and its log-probabilities."""
    rows = [{"input_ids": ids, "labels": ids} for ids in EXAMPLES]
    objective_model = ObjectiveModel(model, get_objective("original")).eval()
    with torch.no_grad():
        loss, tokens = objective_model(**collate(rows, 0, CPU, packing=packing))
    return float(loss), tokens["logp"][tokens["target"]]


def exported(model: PreTrainedModel, logp: torch.Tensor) -> str:
    """Say whether the files of the export give ``logp``, which the model in memory gave."""
    state = {
        tensor.name: tensor.value().detach().clone().contiguous()
        for tensor in merged_tensors(model)
    }
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory, state_dict=dict(state))
        return find_difference(Path(directory), state, EXAMPLES, logp, torch.float32) or "equal"


def examine(family: str) -> Row:
    """Train nothing, but do all that comes before it and after it."""
    model = build(family)
    expected = own_loss(model)
    layouts: dict[bool, str] = {}
    refusals, losses = [], []
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        specs = {
            packing: TrainingSpec(packing=packing, num_workers=1, batch_size=4, max_length=64)
            for packing in (True, False)
        }
        export = lora = "no"
        for packing, spec in specs.items():
            try:
                loaded = load_model(directory, spec, torch.float32)
            except ValueError as error:
                layouts[packing] = "no"
                refusals.append(str(error))
                continue
            layouts[packing] = attention_of(loaded)
            loss, logp = objective_loss(loaded, packing=packing)
            losses.append(loss == pytest.approx(expected, rel=1e-4))
            export = exported(loaded, logp)
        if losses:
            try:
                lora = examine_lora(directory, packing=layouts[True] != "no")
            except ValueError as error:
                refusals.append(str(error))
    # A model that cannot be trained at all is refused in the same words either way.
    refusal = " / ".join(dict.fromkeys(refusals))
    loss = "no" if not losses else "equal" if all(losses) else "differs"
    packed, padded = ("yes" if layouts[True] != "no" else "no"), layouts[False]
    return Row(family, packed, padded, loss, export, lora, without_numbers(refusal))


def examine_lora(directory: str, *, packing: bool) -> str:
    """Compare an adapted model with its export."""
    spec = TrainingSpec(
        packing=packing,
        num_workers=1,
        batch_size=4,
        max_length=64,
        lora=LoraSpec(rank=2, alpha=8),
    )
    model = load_model(directory, spec, torch.float32)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at first, which would hide everything
            torch.nn.init.normal_(parameter, std=0.1)
    _, logp = objective_loss(model, packing=packing)
    return exported(model, logp)


def without_numbers(sentence: str) -> str:
    """Leave out what depends on the machine, and what would break a table."""
    sentence = re.sub(r" \(they differ by [^)]*\)", "", sentence)
    return " ".join(sentence.split()).replace("|", "\\|")


HEADING = """# Architectures

Every family of causal language models in the installed transformers that was tried with a tiny
model of random weights. The table is written by `tests/workers/modeling/test_architectures.py`,
which also checks it.

- **packed**: examples can stand in one row without seeing each other (`training.packing: true`).
- **padded**: the attention that `training.packing: false` uses.
- **loss**: the NLL of a batch, packed and padded, is the model's own loss over each example alone.
- **export**: the exported files give the log-probabilities of the model in memory.
- **LoRA**: the same with adapters on all linear layers (`all-linear`) merged.
- **refusal**: what is said, before anything is trained, about the rest.

| family | packed | padded | loss | export | LoRA | refusal |
|---|---|---|---|---|---|---|
"""


def table_rows() -> dict[str, str]:
    lines = TABLE.read_text().splitlines()
    return {line.split("|")[1].strip(): line for line in lines if line.startswith("| ")}


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=[] if name in CHECKED_BY_CI.split() else pytest.mark.slow)
        for name in sorted(FAMILIES)
    ],
)
def test_table_of_architectures(family: str) -> None:
    assert examine(family).line == table_rows()[family]


def test_table_names_every_family_and_hides_no_difference() -> None:
    rows = {family: line for family, line in table_rows().items() if family != "family"}
    assert rows.keys() == FAMILIES.keys()
    assert sum("| equal | equal |" in line for line in rows.values()) >= 60
    for line in rows.values():
        _, _, packed, padded, loss, export, lora, refusal, _ = map(str.strip, line.split("|"))
        assert {loss, export, lora} <= {"equal", "no"}, line
        assert bool(refusal) == ("no" in (packed, padded, loss, export, lora)), line


if __name__ == "__main__":
    findings = []
    for name in sorted(FAMILIES):
        findings.append(examine(name))
        print(findings[-1].line, file=sys.stderr)
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text(HEADING + "".join(f"{row.line}\n" for row in findings))
