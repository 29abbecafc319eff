"""The paper's table: every row is a valid spec with the paper's numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deft.platform.config.loading import load_spec, preset_note
from deft.platform.config.presets import BENCHMARKS, PAPER_RUNS, PRESETS, family_of
from deft.platform.config.spec import ExperimentSpec
from deft.platform.errors import UserError
from deft.workers.catalogs.datasets import DATASETS
from deft.workers.catalogs.models import MODELS
from deft.workers.catalogs.prompt_styles import PROMPT_STYLES


def spec_of(dataset: str, model: str) -> ExperimentSpec:
    return load_spec(None, {"dataset": dataset, "model": model, "objective": "DEFT"})


@pytest.mark.parametrize(("dataset", "model"), PRESETS)
def test_every_preset_is_valid_and_of_known_parts(dataset: str, model: str) -> None:
    spec = spec_of(dataset, model)
    assert dataset in DATASETS
    assert model in MODELS
    assert spec.training.max_length <= MODELS[model].context


@pytest.mark.parametrize(("dataset", "model", "rate"), PAPER_RUNS)
def test_rows_of_the_papers_table(dataset: str, model: str, rate: float) -> None:
    spec = spec_of(dataset, model)
    training = spec.training
    assert training.learning_rate == rate == (2e-5 if model == "llama-3.1-8b" else 5e-5)
    assert (training.batch_size, training.epochs, training.num_workers) == (256, 1, 2)
    assert training.max_length == (3072 if dataset == "math" else 800)
    assert training.micro_batch_size == (4 if dataset == "math" else 16)
    assert training.weight_decay == (1e-5 if dataset == "figfont" else 0.01)
    assert (training.betas, training.max_grad_norm, training.warmup_ratio) == ((0.9, 0.95), 1, 0.1)
    assert spec.dataset.too_long == "truncate"
    # The published numbers of steps, in spite of the examples that are held out.
    left = DATASETS[dataset].size
    left -= spec.dataset.num_validation(left)
    assert (
        training.num_steps(left, 300 * left)
        == {"math": 264, "medical": 91, "figfont": 156}[dataset]
    )


def test_prompts_are_of_the_models_family() -> None:
    for dataset, model, _ in PAPER_RUNS:
        style = spec_of(dataset, model).dataset.prompt_style
        text = PROMPT_STYLES[style].template or "the tokenizer's own"
        marker = {"llama": "<|start_header_id|>", "qwen": "<|im_start|>", "deepseek": "User: "}
        if style != "chat-bare":
            assert marker[model.split("-")[0]] in text
    assert spec_of("math", "qwen-2.5-math-7b").dataset.prompt_style == "chat-bare"
    columns = spec_of("medical", "llama-3.2-3b").dataset.columns
    assert columns is not None
    assert columns.prompt == "extra_info.llama_prompt"


PAPERS_TRAINING = {
    "reduction": "micro_batch_sum",
    "micro_batch_order": "data",
    "master_dtype": "bfloat16",
    "dtype": "bfloat16",
    "max_grad_norm": 1.0,
    "zero_stage": 3,
}
"""What the paper's trainer does, in this platform's words."""


def resolved(dataset: str, model: str, protocol: str = "fair", *settings: str) -> ExperimentSpec:
    names = {"dataset": dataset, "model": model, "objective": "DEFT", "protocol": protocol}
    return load_spec(None, names, settings)


@pytest.mark.parametrize(("dataset", "model"), PRESETS)
def test_protocols_differ_in_how_steps_are_computed_alone(dataset: str, model: str) -> None:
    paper, fair = resolved(dataset, model, "paper"), resolved(dataset, model)
    training = paper.training.model_dump()
    assert {key: training[key] for key in PAPERS_TRAINING} == PAPERS_TRAINING
    assert paper.dataset.keep_whitespace == (dataset in ("math", "medical"))
    assert fair.training.master_dtype == "float32"
    assert fair.training.reduction == "global_tokens"
    assert not fair.dataset.keep_whitespace
    others = set(training) - set(PAPERS_TRAINING)
    assert {key: training[key] for key in others} == {
        key: value for key, value in fair.training.model_dump().items() if key in others
    }
    assert paper.content_hash() != fair.content_hash()


def save_configuration(directory: Path, model: str) -> Path:
    """Make a directory with the configuration of a model of the catalog, without weights."""
    entry = MODELS[model]
    sizes = entry.dimensions
    config = {
        "model_type": "qwen2" if sizes.qkv_bias else "llama",
        "num_hidden_layers": sizes.num_layers,
        "hidden_size": sizes.hidden_size,
        "intermediate_size": sizes.intermediate_size,
        "num_attention_heads": sizes.num_heads,
        "num_key_value_heads": sizes.num_kv_heads,
        "vocab_size": sizes.vocab_size,
        "tie_word_embeddings": sizes.tied,
        "max_position_embeddings": entry.context,
    }
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def test_every_spelling_of_a_model_has_its_settings(tmp_path: Path) -> None:
    name = "qwen-2.5-math-7b"
    expected = spec_of("math", name)
    assert preset_note(expected) == ""
    copies = ["Qwen2.5-Math-7B", "models--Qwen--Qwen2.5-Math-7B/snapshots/0123"]
    local = [str(save_configuration(tmp_path / copy, name)) for copy in copies]
    for spelling in ("Qwen/Qwen2.5-Math-7B", "qwen/qwen2.5-math-7b", *local):
        spec = spec_of("math", spelling)
        assert (spec.training, spec.evaluation) == (expected.training, expected.evaluation)
        assert spec.dataset == expected.dataset
        assert name in preset_note(spec)
    renamed = str(save_configuration(tmp_path / "ours", name))
    spec = spec_of("math", renamed)
    assert spec.training != expected.training
    assert "if it is qwen-2.5-math-7b, say so by model.preset" in preset_note(spec)
    spec = resolved("math", renamed, "fair", f"model.preset={name}")
    assert (spec.training, spec.dataset) == (expected.training, expected.dataset)
    # The same sizes and another context: Qwen2.5-7B is not Qwen2.5-Math-7B.
    other = str(save_configuration(tmp_path / "Qwen2.5-Math-7B-copy" / "x", "qwen-2.5-7b"))
    assert spec_of("math", other).training != expected.training
    with pytest.raises(UserError, match=r"model\.preset: unknown model 'qwen'"):
        resolved("math", renamed, "fair", "model.preset=qwen")


@pytest.mark.parametrize("dataset", ["math", "medical", "figfont"])
@pytest.mark.parametrize("model", [name for name, entry in MODELS.items() if entry.hub])
def test_pairs_without_a_row_say_what_they_take(dataset: str, model: str) -> None:
    spec = spec_of(dataset, model)
    names = [benchmark.name for benchmark in spec.evaluation.benchmarks]
    assert names == BENCHMARKS[dataset]
    assert (preset_note(spec) == "") == ((dataset, model) in PRESETS)
    assert spec.training.batch_size == 256


def test_unknown_data_and_models_are_still_evaluated(tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text('{"prompt": "1", "response": "2"}\n')
    spec = spec_of(str(tmp_path / "own.jsonl"), "qwen-2.5-math-7b")
    assert [benchmark.name for benchmark in spec.evaluation.suite] == ["general"]
    assert "no settings are known for" in preset_note(spec)
    left_out = resolved(str(tmp_path / "own.jsonl"), "tiny", "fair", "evaluation.benchmarks=[]")
    assert left_out.evaluation.suite == ()
    assert family_of("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B") is None
    assert family_of("meta-llama/Llama-3.2-1B") == "llama"
