"""Models that scale or cap their logits: objectives see what the model itself computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from deft.objectives import get_objective
from deft.workers.modeling.logit_transform import LogitTransform, logit_transform
from deft.workers.modeling.objective_model import ObjectiveModel

SMALL: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    # Logits large enough to be bent by a cap.
    "initializer_range": 0.5,
}
FAMILIES: dict[str, tuple[dict[str, Any], LogitTransform]] = {
    "llama": ({}, LogitTransform()),
    "gemma2": ({"final_logit_softcapping": 5.0}, LogitTransform(softcap=5.0)),
    "gemma3_text": ({"final_logit_softcapping": None}, LogitTransform()),
    "granite": ({"logits_scaling": 8.0}, LogitTransform(scale=1 / 8)),
    "hyperclovax": ({"logits_scaling": 0.25}, LogitTransform(scale=0.25)),
    "opt": ({"ffn_dim": 48, "word_embed_proj_dim": 32}, LogitTransform()),
    "cohere": ({"logit_scale": 0.0625}, LogitTransform(scale=0.0625)),
}


def build(kind: str, **settings: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SMALL, **settings)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", FAMILIES)
def test_transform_is_found(kind: str, dtype: torch.dtype) -> None:
    settings, expected = FAMILIES[kind]
    model = build(kind, **settings).to(dtype)
    assert logit_transform(model) == expected
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("kind", FAMILIES)
def test_loss_and_gradients_are_the_models_own(kind: str) -> None:
    settings, _ = FAMILIES[kind]
    tokens = torch.arange(1, 13).reshape(2, 6)
    labels = tokens.clone()
    labels[0, :3] = -100
    plain = build(kind, **settings)
    expected = plain(input_ids=tokens, labels=labels).loss
    expected.backward()

    model = ObjectiveModel(build(kind, **settings), get_objective("original"))
    total, seen = model(tokens, labels)
    loss = total / seen["kept"].sum()
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    gradients = dict(plain.named_parameters())
    for name, parameter in model.model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad, rtol=1e-3, atol=1e-4)


def test_frozen_reference_is_transformed_as_the_model_is() -> None:
    """A model is at no distance from itself."""
    tokens = torch.arange(1, 13).reshape(2, 6)
    for kind, (settings, _) in FAMILIES.items():
        anchored = ObjectiveModel(
            build(kind, **settings), get_objective("SFT_KL-0.5"), build(kind, **settings)
        )
        nll = ObjectiveModel(build(kind, **settings), get_objective("original"))
        actual, expected = anchored(tokens, tokens)[0], nll(tokens, tokens)[0]
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-4)


def test_head_with_weights_that_are_not_finite_is_named() -> None:
    model = build("llama")
    model.get_output_embeddings().weight.data[7, 3] = torch.nan
    with pytest.raises(ValueError, match="the weights of its head are not finite"):
        logit_transform(model)


def test_logits_made_in_a_way_of_their_own_are_refused() -> None:
    model = build("llama")
    own = type(model).forward

    class Squared(type(model)):  # type: ignore[misc]
        def forward(self, *arguments: Any, **keywords: Any) -> Any:
            output = own(self, *arguments, **keywords)
            output.logits = output.logits.square()
            return output

    model.__class__ = Squared
    with pytest.raises(ValueError, match="Squared makes its logits in a way of its own"):
        logit_transform(model)
    model.set_output_embeddings(nn.Sequential(model.get_output_embeddings(), nn.Tanh()))
    with pytest.raises(ValueError, match="no linear head"):
        logit_transform(model)
