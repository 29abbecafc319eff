"""Models by name, and the objective in place of the language-model head."""

from __future__ import annotations

import builtins
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from deft.objectives import get_objective, linear_objective
from deft.workers.data.chat import encode_example
from deft.workers.data.figfont import figfont_examples
from deft.workers.modeling.loading import require_trainable
from deft.workers.modeling.model_files import (
    build_smollm2,
    build_tiny,
    require_data_only,
    resolve_directory,
    train_tokenizer,
)
from deft.workers.modeling.objective_model import ObjectiveModel
from deft.workers.training.batches import collate

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


class RunsOnLoading:
    """What a pickle can do."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Name a file that exists if code out of a model directory was run."""
    return tmp_path / "code-was-run"


@pytest.mark.parametrize("length", [0, 2**40, 2**63])
def test_a_header_that_is_larger_than_its_file_is_refused(
    copy: Path, length: int, fault: Callable[..., None]
) -> None:
    file = copy / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(length.to_bytes(8, "little") + content[8:])
    with pytest.raises(ValueError, match=r"model\.safetensors: not a whole safetensors file"):
        require_data_only(copy)
    fault(
        f"a model's safetensors file says that its header has {length:,} bytes",
        "it is refused and named, before anything is read",
        seconds="another model is chosen",
    )


def test_a_tokenizer_without_measure_is_refused(copy: Path, fault: Callable[..., None]) -> None:
    with (copy / "tokenizer.json").open("wb") as file:
        file.truncate(2**33)  # a hole: it takes no space
    with pytest.raises(ValueError, match=r"tokenizer\.json: 8,589,934,592 bytes"):
        require_data_only(copy)
    fault(
        "a model's tokenizer.json has 8 GiB",
        "it is refused and named, before anything is read",
        seconds="another model is chosen",
    )


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def test_weights_as_pickles_are_refused(copy: Path, trace: Path) -> None:
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(pickle.dumps(RunsOnLoading(trace)))
    with pytest.raises(ValueError, match=r"no weights as safetensors; .*pytorch_model\.bin"):
        resolve_directory(str(copy))
    assert not trace.exists()


def test_safetensors_of_something_else_are_no_weights(copy: Path, trace: Path) -> None:
    (copy / "model.safetensors").rename(copy / "adapter_model.safetensors")
    (copy / "pytorch_model.bin").write_bytes(pickle.dumps(RunsOnLoading(trace)))
    with pytest.raises(ValueError, match=r"no weights as safetensors; .*pytorch_model\.bin"):
        resolve_directory(str(copy))
    assert not trace.exists()


def test_pickles_beside_safetensors_are_left_alone(copy: Path, trace: Path) -> None:
    (copy / "pytorch_model.bin").write_bytes(pickle.dumps(RunsOnLoading(trace)))
    AutoModelForCausalLM.from_pretrained(resolve_directory(str(copy)))
    assert not trace.exists()


@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1\n", None])
def test_damaged_weights_are_refused_by_name(copy: Path, content: bytes | None) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100] if content is None else content)
    with pytest.raises(ValueError, match=r"model\.safetensors: not a whole safetensors file .*"):
        resolve_directory(str(copy))
    weights.rename(copy / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00003-of-00003.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"00003\.safetensors: not a whole safetensors file"):
        resolve_directory(str(copy))


def test_adapters_are_no_models(copy: Path) -> None:
    (copy / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(ValueError, match="there is an adapter in it"):
        resolve_directory(str(copy))


def test_quantized_weights_are_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"its weights are quantized \(gptq\)"):
        require_trainable(copy, max_length=16)


def bring_code(model: Path, file: str, trace: Path, **settings: Any) -> None:
    """Have a model's settings name code that lies beside them."""
    (model / "own.py").write_text(f"import pathlib\npathlib.Path({str(trace)!r}).touch()\n")
    content = json.loads((model / file).read_text())
    (model / file).write_text(json.dumps({**content, **settings}))


def test_code_that_comes_with_a_model_is_refused_and_nobody_is_asked(
    copy: Path, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    bring_code(copy, "config.json", trace, model_type="own", auto_map={"AutoConfig": "own.Own"})
    with pytest.raises(ValueError, match=r"config\.json: auto_map names code"):
        resolve_directory(str(copy))
    assert not trace.exists()


def test_models_that_transformers_has_itself_run_its_code_and_not_their_own(
    copy: Path, trace: Path
) -> None:
    own = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}
    bring_code(copy, "config.json", trace, auto_map=own)
    own_tokenizer = {"AutoTokenizer": ["own.Own", None]}
    bring_code(copy, "tokenizer_config.json", trace, tokenizer_class="Own", auto_map=own_tokenizer)
    directory = resolve_directory(str(copy))
    model = AutoModelForCausalLM.from_pretrained(directory)
    assert type(model).__module__.startswith("transformers.models.qwen2")
    assert type(AutoTokenizer.from_pretrained(directory)).__module__.startswith("transformers.")
    assert not trace.exists()


def test_weights_outside_the_directory_are_refused(copy: Path, tmp_path: Path) -> None:
    (copy / "model.safetensors").rename(tmp_path / "model.safetensors")
    (copy / "part.safetensors").touch()
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "../model.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"'\.\./model\.safetensors' is not a file in the"):
        resolve_directory(str(copy))


@pytest.mark.parametrize("content", [b"[]", b"{", b"\xff", b"[" * 100_000])
def test_configuration_that_is_none_is_said(copy: Path, content: bytes) -> None:
    (copy / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.json: "):
        resolve_directory(str(copy))


def test_local_directories_are_used_as_they_are(tiny: Path) -> None:
    assert resolve_directory(str(tiny)) == tiny.resolve()


def test_model_that_the_hub_does_not_give_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="'nobody/nothing' could not be downloaded"):
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


BATCH = {"input_ids": torch.tensor([[1, 2, 3]]), "labels": torch.tensor([[-100, 2, 3]])}


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ("p", "objective p is not what is being trained: the value"),
        ("OnlyTopP-0.5", "is not what is being trained: it keeps 2 of 2 tokens .* keeps 0"),
    ],
)
def test_head_that_computes_another_objective_is_found_out(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, objective: str, message: str
) -> None:
    from deft.workers.modeling import objective_model as head

    def falls_back_to_nll(*arguments: Any, backend: str = "auto", **options: Any) -> Any:
        hidden, weight, labels, objective = arguments
        if backend != "reference":
            objective = "original"
        return linear_objective(hidden, weight, labels, objective, backend=backend, **options)

    monkeypatch.setattr(head, "linear_objective", falls_back_to_nll)
    nll = ObjectiveModel(AutoModelForCausalLM.from_pretrained(tiny), get_objective("original"))
    nll(**BATCH)
    model = ObjectiveModel(AutoModelForCausalLM.from_pretrained(tiny), get_objective(objective))
    # Neither a validation before the first step nor a micro-batch without a target proves anything.
    model.eval()(**BATCH)
    model.train()(**BATCH | {"labels": torch.full((1, 3), -100)})
    with pytest.raises(RuntimeError, match=message):
        model(**BATCH)


def test_tokens_without_finite_logits_have_probability_0_in_evaluation(tiny: Path) -> None:
    model = ObjectiveModel(AutoModelForCausalLM.from_pretrained(tiny), get_objective("DEFT"))
    model.model.get_input_embeddings().weight.data[2] = torch.inf
    _, tokens = model.eval()(**BATCH)
    assert tokens["target"].tolist() == [True, True]
    assert tokens["logp"].tolist() == [-torch.inf, -torch.inf]
    assert tokens["value"].tolist() == [torch.inf, torch.inf]


def test_cayleys_floor_follows_the_step_where_its_mean_is_given(tiny: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny)
    cayley = ObjectiveModel(model, get_objective("Cayley_Trans"))
    _, alone = cayley(**BATCH)
    same, higher = alone["p"][alone["target"]].mean(), torch.tensor(0.8)
    torch.testing.assert_close(cayley(**BATCH, step_mean_p=same)[1]["focus"], alone["focus"])
    # f = 0.5 · 0.8 lifts the focus of a token that the model does not believe in to about f.
    lifted = cayley(**BATCH, step_mean_p=higher)[1]["focus"][alone["target"]]
    torch.testing.assert_close(lifted, torch.full_like(lifted, 0.4), rtol=1e-2, atol=0)
