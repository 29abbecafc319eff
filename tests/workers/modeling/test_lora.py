"""Low-rank adapters in a model and on its head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from deft.objectives import get_objective
from deft.workers.modeling.lora import (
    adapter_tensors,
    add_adapters,
    merged_tensors,
    save_adapter,
    without_adapters,
)
from deft.workers.modeling.objective_model import ObjectiveModel
from deft.workers.spec import LoraSpec
from deft.workers.training.batches import collate

ROWS = [{"input_ids": [3, 1, 4, 1, 5], "labels": [-100, -100, 4, 1, 5]}]
BATCH = collate(ROWS, 0, torch.device("cpu"), packing=False)


def build(*, tied: bool, targets: tuple[str, ...]) -> Any:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=31,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
        initializer_range=0.2,
    )
    model = Qwen2ForCausalLM(config)  # type: ignore[no-untyped-call]
    base = {name: p.detach().clone() for name, p in model.named_parameters()}
    add_adapters(model, LoraSpec(rank=2, alpha=8, targets=targets))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at first, which would hide everything
            torch.nn.init.normal_(parameter, std=0.3)
    return model, base


@pytest.mark.parametrize(
    ("tied", "targets"),
    [
        (True, ("all-linear",)),
        (False, ("q_proj", "lm_head")),
        (False, ("lm_head",)),
    ],
)
def test_merged_tensors_are_the_adapted_model(tied: bool, targets: tuple[str, ...]) -> None:
    adapted, base = build(tied=tied, targets=targets)
    objective_model = ObjectiveModel(adapted, get_objective("DEFT"))
    total, _ = objective_model(**BATCH)
    total.backward()
    merged = {p.name: p.value().detach() for p in merged_tensors(adapted)}
    assert merged.keys() == base.keys()
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    assert changed == {
        name
        for name in base
        if name.endswith(".weight")
        and (
            name.split(".")[-2] in targets
            or (targets == ("all-linear",) and name.split(".")[-2].endswith("_proj"))
        )
    }

    plain: PreTrainedModel = type(adapted)(adapted.config)
    plain.load_state_dict({**plain.state_dict(), **merged})
    if tied:
        plain.tie_weights()
    expected, _ = ObjectiveModel(plain, get_objective("DEFT"))(**BATCH)
    torch.testing.assert_close(total, expected)

    trainable = {n for n, p in objective_model.named_parameters() if p.requires_grad}
    assert trainable
    assert all("lora_" in name for name in trainable)
    assert all(
        dict(objective_model.named_parameters())[name].grad is not None for name in trainable
    )


def test_the_base_model_is_the_reference() -> None:
    """SFT_KL is anchored to the model without its adapters, the head's among them."""
    adapted, base = build(tied=False, targets=("q_proj", "lm_head"))
    anchored, _ = ObjectiveModel(adapted, get_objective("SFT_KL-0.5"))(**BATCH)

    frozen: PreTrainedModel = type(adapted)(adapted.config)
    frozen.load_state_dict({**frozen.state_dict(), **base})
    labels = BATCH["labels"][0, 1:]
    target = labels != -100
    log_reference = frozen(BATCH["input_ids"]).logits[0, :-1][target].log_softmax(-1)
    merged = {p.name: p.value().detach() for p in merged_tensors(adapted)}
    frozen.load_state_dict({**frozen.state_dict(), **merged})
    log_probs = frozen(BATCH["input_ids"]).logits[0, :-1][target].log_softmax(-1)
    nll = -log_probs.gather(1, labels[target][:, None]).sum()
    divergence = (log_reference.exp() * (log_reference - log_probs)).sum()
    torch.testing.assert_close(anchored, nll + 0.5 * divergence)


def test_switching_adapters_off_leaves_gradients_on() -> None:
    adapted, _ = build(tied=True, targets=("q_proj",))
    with torch.no_grad():
        on = adapted(BATCH["input_ids"]).logits
        with without_adapters(adapted):
            off = adapted(BATCH["input_ids"]).logits
        again = adapted(BATCH["input_ids"]).logits
    assert not torch.allclose(on, off)
    assert torch.equal(on, again)
    assert any(parameter.requires_grad for parameter in adapted.parameters())


def adapted_layers(model: PreTrainedModel) -> set[str]:
    names = (name for name, _ in model.named_parameters() if "lora_" in name)
    return {name.split(".lora_")[0].removesuffix(".base_layer") for name in names}


def test_unknown_targets_are_named() -> None:
    with pytest.raises(
        ValueError, match=r"no module is called q_porj; there are: down_proj, .*v_proj"
    ):
        build(tied=True, targets=("q_porj",))
    with pytest.raises(ValueError, match=r"no module is called v_prj; .* Did you mean v_proj"):
        build(tied=True, targets=("q_proj", "v_prj"))
    with pytest.raises(ValueError, match="lm_head is tied to the embedding"):
        build(tied=True, targets=("lm_head",))
    with pytest.raises(ValueError, match="embed_tokens is tied to the head"):
        build(tied=True, targets=("embed_tokens",))


def test_all_linear_beside_other_names_means_both() -> None:
    linear = adapted_layers(build(tied=False, targets=("all-linear",))[0])
    assert len(linear) == 14
    assert not any("embed" in name or "lm_head" in name for name in linear)
    more = adapted_layers(build(tied=False, targets=("all-linear", "lm_head", "embed_tokens"))[0])
    assert more == linear | {"lm_head", "model.embed_tokens"}
    assert adapted_layers(build(tied=False, targets=("layers.1.mlp.up_proj",))[0]) == {
        "model.layers.1.mlp.up_proj"
    }


def small(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind,
        vocab_size=31,
        hidden_size=16,
        n_embd=16,
        intermediate_size=32,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        n_layer=2,
        num_attention_heads=2,
        n_head=2,
        num_key_value_heads=1,
        num_local_experts=4,
        n_routed_experts=4,
        n_shared_experts=1,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        initializer_range=0.2,
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
    return model


def test_all_linear_takes_the_experts_and_the_layers_beside_them() -> None:
    model = small("glm4_moe")
    add_adapters(model, LoraSpec(rank=2))
    names = adapted_layers(model)
    dense = {f"model.layers.0.mlp.{name}_proj" for name in ("gate", "up", "down")}
    shared = {f"model.layers.1.mlp.shared_experts.{name}_proj" for name in ("gate", "up", "down")}
    attention = {
        f"model.layers.{i}.self_attn.{name}_proj" for i in (0, 1) for name in ("q", "k", "v", "o")
    }
    assert names == dense | shared | attention | {"model.layers.1.mlp.experts"}
    factors = [name for name, _ in model.named_parameters() if "mlp.experts" in name]
    assert sum("lora_A" in name for name in factors) == 2  # gate_up_proj and down_proj


@pytest.mark.parametrize(
    ("kind", "targets"),
    [
        ("mixtral", ("all-linear",)),
        ("glm4_moe", ("all-linear", "lm_head", "embed_tokens")),
        ("gpt2", ("all-linear",)),
        ("qwen2", ("embed_tokens", "q_proj")),
    ],
)
def test_peft_loads_a_kept_adapter(kind: str, targets: tuple[str, ...], tmp_path: Path) -> None:
    model = small(kind)
    add_adapters(model, LoraSpec(rank=2, alpha=8, targets=targets))
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "lora_embedding_A" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    tokens = torch.tensor([[3, 1, 4, 1, 5, 9]])
    with torch.no_grad():
        expected = model(tokens).logits
        assert not torch.allclose(small(kind)(tokens).logits, expected)
    factors = {tensor.name: tensor.value().clone() for tensor in adapter_tensors(model)}
    save_adapter(model, factors, tmp_path)
    loaded = PeftModel.from_pretrained(small(kind), tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, expected)
    merged = small(kind)
    state = {tensor.name: tensor.value().detach() for tensor in merged_tensors(model)}
    merged.load_state_dict(state, strict=False)
    with torch.no_grad():
        torch.testing.assert_close(merged(tokens).logits, expected, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_adapted_is_refused() -> None:
    with pytest.raises(ValueError, match=r"lora\.dropout: the experts of a mixture"):
        add_adapters(small("mixtral"), LoraSpec(dropout=0.1))
    add_adapters(small("mixtral"), LoraSpec(dropout=0.1, targets=("q_proj",)))
    with pytest.raises(ValueError, match=r"experts\.down_proj cannot be adapted under ZeRO"):
        add_adapters(small("mixtral"), LoraSpec(), zero_stage=3)
    embedding = LoraSpec(targets=("embed_tokens",))
    with pytest.raises(ValueError, match=r"embed_tokens cannot be adapted under ZeRO stage 3"):
        add_adapters(small("glm4_moe"), embedding, zero_stage=3)
    with pytest.raises(ValueError, match=r"x_proj cannot be adapted: the model does not call"):
        add_adapters(
            small("mamba"),
            LoraSpec(targets=("x_proj",)),
            unused={"backbone.layers.0.mixer.x_proj"},
        )
    with pytest.raises(ValueError, match=r"peft refuses: .*'out_proj' is incompatible"):
        add_adapters(small("mamba"), LoraSpec(targets=("out_proj",)))
    # An embedding that works out positions from a mask is called otherwise than peft calls it.
    with pytest.raises(ValueError, match="no module is called embed_positions"):
        add_adapters(small("opt"), LoraSpec(targets=("embed_positions",)))
