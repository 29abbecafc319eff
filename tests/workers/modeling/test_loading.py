"""What is loaded is what was asked for, and what cannot be saved afterwards is not trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, GenerationConfig

from deft.workers.data.figfont import figfont_examples
from deft.workers.data.prepare import prepare
from deft.workers.dataset_spec import DatasetSpec
from deft.workers.modeling.loading import (
    fill_token_id,
    load_causal_lm,
    require_embeddings,
    require_exportable,
    require_trainable,
)
from deft.workers.modeling.model_files import build_tiny
from deft.workers.spec import ModelSpec
from deft.workers.training.batches import collate


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    build_tiny(directory, figfont_examples(0, 40), seed=0)
    return directory


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def rewrite_weights(directory: Path, change: Any) -> None:
    file = directory / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def test_missing_and_unexpected_weights_are_named(copy: Path) -> None:
    def without_a_layer(weights: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in weights.items() if "layers.3.mlp" not in name}

    rewrite_weights(copy, without_a_layer)
    message = (
        r"3 weights of Qwen2ForCausalLM are missing \(model\.layers\.3\.mlp\.down_proj\.weight"
    )
    with pytest.raises(ValueError, match=message):
        load_causal_lm(copy)
    with pytest.raises(ValueError, match=message):
        require_trainable(copy, max_length=256)


def test_weights_of_a_compiled_model_are_named(copy: Path) -> None:
    rewrite_weights(copy, lambda weights: {f"_orig_mod.{k}": v for k, v in weights.items()})
    with pytest.raises(ValueError, match=r"are missing .* do not belong to .*\(_orig_mod\.model"):
        load_causal_lm(copy)


def test_weights_of_another_shape_are_named(copy: Path) -> None:
    def longer(weights: dict[str, Any]) -> dict[str, Any]:
        return {**weights, "model.norm.weight": torch.ones(129)}

    rewrite_weights(copy, longer)
    with pytest.raises(ValueError, match=r"1 weights have another shape \(model\.norm\.weight\)"):
        load_causal_lm(copy)


def test_a_tied_head_is_not_missing(tiny: Path) -> None:
    assert "lm_head.weight" not in load_file(tiny / "model.safetensors")
    model = load_causal_lm(tiny)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    require_trainable(tiny, max_length=2048)


def test_more_positions_than_the_model_has_are_refused(tiny: Path) -> None:
    with pytest.raises(
        ValueError, match=r"training\.max_length: 2049 is longer than the 2048 positions"
    ):
        require_trainable(tiny, max_length=2049)


def test_token_ids_beyond_the_embedding_are_refused(copy: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(copy)
    tokenizer.add_tokens([f"<more{i}>" for i in range(1100 - len(tokenizer))])
    tokenizer.save_pretrained(copy)
    for name, ids in (("unused", [3, 1023]), ("used", [3, 1099])):
        rows = Dataset.from_list([{"input_ids": [5]}, {"input_ids": ids}])
        rows.save_to_disk(str(tmp_path / name))
    require_embeddings(copy, tmp_path / "unused")
    with pytest.raises(ValueError, match=r"token id 1099 \('<more\d+>'\), .* only 1024 rows"):
        require_embeddings(copy, tmp_path / "used")


def test_sampling_flags_are_saved(copy: Path, tmp_path: Path) -> None:
    """Flags of sampling without `do_sample`, as many models have them."""
    flags = {"temperature": 0.9, "top_p": 0.6}
    (copy / "generation_config.json").write_text(json.dumps(flags))
    require_trainable(copy, max_length=256)
    load_causal_lm(copy).save_pretrained(tmp_path / "saved")
    saved = GenerationConfig.from_pretrained(tmp_path / "saved")
    assert (saved.temperature, saved.top_p, saved.do_sample) == (0.9, 0.6, True)


def test_a_configuration_that_cannot_be_saved_is_refused(tiny: Path) -> None:
    model, tokenizer = load_causal_lm(tiny), AutoTokenizer.from_pretrained(tiny)
    require_exportable(model, tokenizer)
    model.generation_config.num_return_sequences = 3
    model.generation_config.do_sample = False
    with pytest.raises(ValueError, match=r"generation_config\.json cannot be saved with the tr"):
        require_exportable(model, tokenizer)


def test_any_token_fills_up_rows(tiny: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.pad_token = None
    assert fill_token_id(tokenizer) == tokenizer.eos_token_id
    rows = [{"input_ids": [3, 4], "labels": [-100, 4]}, {"input_ids": [3], "labels": [3]}]
    batch = collate(rows, fill_token_id(tokenizer), torch.device("cpu"), packing=False)
    assert batch["input_ids"].tolist() == [[3, 4], [3, tokenizer.eos_token_id]]
    assert batch["labels"].tolist() == [[-100, 4], [3, -100]]
    tokenizer.eos_token = None
    assert fill_token_id(tokenizer) == 0


def test_the_prepare_stage_refuses_what_cannot_be_trained(copy: Path, tmp_path: Path) -> None:
    def prepared(max_length: int) -> None:
        prepare(
            DatasetSpec(name="figfont", size=20),
            ModelSpec(name=str(copy)),
            max_length=max_length,
            seed=0,
            cache=tmp_path / "cache",
        )

    with pytest.raises(ValueError, match=r"training\.max_length: 4096 is longer"):
        prepared(4096)
    prepared(256)
    rewrite_weights(copy, lambda weights: {**weights, "foo.bar": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"1 weights do not belong to .* \(foo\.bar\)"):
        prepared(256)
