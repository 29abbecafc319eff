"""Models by name, and the objective in place of the language-model head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from deft.objectives import get_objective, linear_objective
from deft.workers.batches import collate
from deft.workers.chat import encode_example
from deft.workers.figfont import figfont_examples
from deft.workers.head import ObjectiveModel
from deft.workers.models import build_smollm2, build_tiny, resolve_directory, train_tokenizer

EXAMPLES = list(figfont_examples(0, 40))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    build_tiny(directory, EXAMPLES, seed=0)
    return directory


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(directory).state_dict())


def test_tiny_has_about_a_million_parameters_and_comes_from_its_seed(
    tiny: Path, tmp_path: Path
) -> None:
    assert 5e5 < AutoModelForCausalLM.from_pretrained(tiny).num_parameters() < 2e6
    build_tiny(tmp_path / "same", EXAMPLES, seed=0)
    build_tiny(tmp_path / "other", EXAMPLES, seed=1)
    first, same, other = weights(tiny), weights(tmp_path / "same"), weights(tmp_path / "other")
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_tokenizer_survives_saving_and_loses_nothing(tiny: Path) -> None:
    loaded, trained = AutoTokenizer.from_pretrained(tiny), train_tokenizer(EXAMPLES)
    assert loaded.eos_token == "<|im_end|>"
    for example in EXAMPLES[:5]:
        text = example.prompt[1]["content"]
        assert loaded(text)["input_ids"] == trained(text)["input_ids"]
        assert loaded.decode(loaded(text)["input_ids"]) == text


def test_nll_head_equals_the_models_own_cross_entropy(tiny: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    rows = [
        dict(zip(("input_ids", "labels"), encode_example(tokenizer, example), strict=True))
        for example in EXAMPLES[:4]
    ]
    batch = collate(rows, tokenizer.pad_token_id, torch.device("cpu"), packing=False)
    plain = AutoModelForCausalLM.from_pretrained(tiny)
    # The padding is masked here and not there: no token may see it all the same.
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    mask = torch.arange(batch["input_ids"].shape[1]) < lengths[:, None]
    assert not mask.all()
    expected = plain(**batch, attention_mask=mask.long()).loss
    expected.backward()

    model = ObjectiveModel(AutoModelForCausalLM.from_pretrained(tiny), get_objective("original"))
    total, tokens = model(**batch)
    loss = total / tokens["kept"].sum()
    loss.backward()
    torch.testing.assert_close(loss, expected)
    gradients = dict(plain.named_parameters())
    # The embedding is tied to the head and gets a gradient from both.
    for name, parameter in model.model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad, rtol=1e-3, atol=1e-5)


def test_local_directories_are_used_as_they_are(tiny: Path) -> None:
    assert resolve_directory(str(tiny)) == tiny.resolve()


def test_model_that_the_hub_does_not_give_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="'nobody/nothing' could not be had"):
        resolve_directory("nobody/nothing")


@pytest.mark.slow
def test_smollm2_answers_after_dequantisation(tmp_path: Path) -> None:
    build_smollm2(tmp_path / "smollm2")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "smollm2")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "smollm2")
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0])


def test_head_that_computes_another_objective_is_found_out(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deft.workers import head

    def falls_back_to_nll(*arguments: Any, backend: str = "auto", **options: Any) -> Any:
        hidden, weight, labels, objective = arguments
        if backend != "reference":
            objective = "original"
        return linear_objective(hidden, weight, labels, objective, backend=backend, **options)

    monkeypatch.setattr(head, "linear_objective", falls_back_to_nll)
    batch = {
        "input_ids": torch.tensor([[1, 2, 3]]),
        "labels": torch.tensor([[-100, 2, 3]]),
    }
    nll = ObjectiveModel(AutoModelForCausalLM.from_pretrained(tiny), get_objective("original"))
    nll(**batch)
    p = ObjectiveModel(AutoModelForCausalLM.from_pretrained(tiny), get_objective("p"))
    with pytest.raises(RuntimeError, match="objective p is not what is being trained: the value"):
        p(**batch)


def test_cayleys_floor_follows_the_step_where_its_mean_is_given(tiny: Path) -> None:
    batch = {
        "input_ids": torch.tensor([[1, 2, 3]]),
        "labels": torch.tensor([[-100, 2, 3]]),
    }
    model = AutoModelForCausalLM.from_pretrained(tiny)
    cayley = ObjectiveModel(model, get_objective("Cayley_Trans"))
    _, alone = cayley(**batch)
    same, higher = alone["p"][alone["target"]].mean(), torch.tensor(0.8)
    torch.testing.assert_close(cayley(**batch, step_mean_p=same)[1]["focus"], alone["focus"])
    # f = 0.5 · 0.8 lifts the focus of a token that the model does not believe in to about f.
    lifted = cayley(**batch, step_mean_p=higher)[1]["focus"][alone["target"]]
    torch.testing.assert_close(lifted, torch.full_like(lifted, 0.4), rtol=1e-2, atol=0)
