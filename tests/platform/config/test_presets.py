"""The paper's table: every row is a valid spec with the paper's numbers."""

from __future__ import annotations

import pytest

from deft.platform.config.loading import load_spec
from deft.platform.config.presets import PAPER_RUNS, PRESETS
from deft.platform.config.spec import ExperimentSpec
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
