"""Low-rank adapters in a model and on its head."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from deft.objectives import get_objective
from deft.workers.modeling.lora import add_adapters, merged_tensors, without_adapters
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


def test_unknown_targets_are_named() -> None:
    with pytest.raises(
        ValueError, match=r"no module is called q_porj; there are: down_proj, .*v_proj"
    ):
        build(tied=True, targets=("q_porj",))
    with pytest.raises(ValueError, match="lm_head is tied to the embedding"):
        build(tied=True, targets=("lm_head",))
