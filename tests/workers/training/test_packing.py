"""Packed examples are computed exactly as each on its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3NextConfig,
)

from deft.objectives import get_objective
from deft.workers.modeling.attention import PACKED_ATTENTION, require_packable, require_supported
from deft.workers.modeling.objective_model import ObjectiveModel
from deft.workers.training.batches import collate, padding_share, split_by_tokens

CPU = torch.device("cpu")
SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.2,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "qwen2": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZES),
    "sliding window": MistralConfig(**SIZES, sliding_window=4),
}


def build(config: PreTrainedConfig, attention: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    return model


def examples(*lengths: int) -> list[dict[str, list[int]]]:
    generator = torch.Generator().manual_seed(1)
    rows = []
    for length in lengths:
        ids = torch.randint(0, 97, (length,), generator=generator).tolist()
        # As in training, the prompt carries no loss.
        rows.append({"input_ids": ids, "labels": [-100] * (length // 2) + ids[length // 2 :]})
    return rows


def run(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> tuple[dict[str, Any], Any]:
    total, tokens = ObjectiveModel(model, get_objective("DEFT"))(**batch)
    total.backward()
    target = tokens.pop("target")
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return {name: column[target] for name, column in tokens.items()}, gradients


@pytest.mark.parametrize("name", CONFIGS)
def test_statistics_and_gradients_are_those_of_padded_examples(name: str) -> None:
    rows = examples(9, 2, 14, 1, 6)
    padded = run(build(CONFIGS[name], "sdpa"), collate(rows, 0, CPU, packing=False))
    packed = run(build(CONFIGS[name], PACKED_ATTENTION), collate(rows, 0, CPU, packing=True))
    assert packed[0].keys() == padded[0].keys()
    assert (
        len(packed[0]["p"]) == sum(len(row["labels"]) - len(row["labels"]) // 2 for row in rows) - 1
    )
    for column, gradient_of_row in packed[0].items():
        torch.testing.assert_close(
            gradient_of_row, padded[0][column], rtol=1e-4, atol=1e-6, msg=column
        )
    for parameter, gradient in packed[1].items():
        torch.testing.assert_close(gradient, padded[1][parameter], rtol=1e-3, atol=1e-5)


def test_an_example_does_not_see_its_neighbors() -> None:
    first, second, other = examples(8, 11, 8)
    with_first, with_other = (
        run(
            build(CONFIGS["qwen2"], PACKED_ATTENTION), collate([one, second], 0, CPU, packing=True)
        )[0]
        for one in (first, other)
    )
    # Targets of the second example, which stand last in both.
    assert torch.equal(with_first["logp"][-6:], with_other["logp"][-6:])
    assert not torch.equal(with_first["logp"][:4], with_other["logp"][:4])


def test_the_first_token_of_an_example_is_never_a_target() -> None:
    rows = [{"input_ids": [5, 6], "labels": [5, 6]}, {"input_ids": [7, 8, 9], "labels": [7, 8, 9]}]
    batch = collate(rows, 0, CPU, packing=True)
    assert batch["labels"].tolist() == [[-100, 6, -100, 8, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1, 2]]
    assert batch["cu_seq_lens"].tolist() == [0, 2, 5]


@pytest.mark.parametrize("packing", [True, False])
def test_a_micro_batch_without_examples_has_a_zero_gradient(packing: bool) -> None:
    model = build(CONFIGS["llama"], PACKED_ATTENTION if packing else "sdpa")
    tokens, gradients = run(model, collate([], 0, CPU, packing=packing))
    assert len(tokens["p"]) == 0
    # Every parameter has a gradient, or DeepSpeed would wait for it on this rank.
    assert all(g is not None and not g.any() for g in gradients.values())


def test_models_that_cannot_be_packed_are_refused() -> None:
    with pytest.raises(ValueError, match="qwen3_next has layers of kind linear_attention"):
        require_packable(Qwen3NextConfig())
    require_packable(CONFIGS["sliding window"])
    capped = build(CONFIGS["llama"], PACKED_ATTENTION)
    for layer in capped.model.layers:
        layer.self_attn.forward = _with_softcap(layer.self_attn.forward)
    with pytest.raises(ValueError, match="caps attention logits"):
        run(capped, collate(examples(4), 0, CPU, packing=True))


def _with_softcap(forward: Any) -> Any:
    return lambda *arguments, **keywords: forward(*arguments, softcap=50.0, **keywords)


def test_attention_of_a_models_own_is_refused() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=11))
    require_supported(model)
    model.config._attn_implementation = PACKED_ATTENTION
    model._supports_attention_backend = False
    with pytest.raises(ValueError, match="GPT2LMHeadModel has attention of its own"):
        require_supported(model)


@given(
    lengths=st.lists(st.integers(1, 64), min_size=1, max_size=60),
    world_size=st.integers(1, 5),
)
def test_cut_by_tokens_loses_nothing_and_overflows_nothing(
    lengths: list[int], world_size: int
) -> None:
    cut = split_by_tokens(range(len(lengths)), lengths, capacity=64, world_size=world_size)
    assert len(cut) == world_size
    assert len({len(rank) for rank in cut}) == 1
    micro_batches = [chosen for rank in cut for chosen in rank]
    assert sorted(i for chosen in micro_batches for i in chosen) == list(range(len(lengths)))
    assert max(sum(lengths[i] for i in chosen) for chosen in micro_batches) <= 64
    if len(lengths) >= world_size:
        # No two micro-batches would fit into one, but for those halved to make the number divide.
        assert len(micro_batches) < 2 * sum(lengths) / 64 + 1 + world_size
    assert padding_share(cut, lengths, packing=True) == 0


def test_best_fit_decreasing_fills_micro_batches() -> None:
    lengths = [50, 14, 30, 34, 20, 44]
    (rank,) = split_by_tokens(range(6), lengths, capacity=64, world_size=1)
    assert sorted(map(sorted, rank)) == [[0, 1], [2, 3], [4, 5]]
    # The fullest is halved where the ranks do not divide them.
    first, second = split_by_tokens(range(6), lengths, capacity=64, world_size=2)
    assert [len(first), len(second)] == [2, 2]
