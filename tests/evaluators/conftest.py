"""Tiny models that the tests of engines and pool share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

from deft.evaluators.generation.actor import Evaluator
from deft.evaluators.spec import EngineSpec
from deft.workers.data.figfont import TEST_START, figfont_examples
from deft.workers.modeling.model_files import train_tokenizer
from helpers import write_harness_tasks


def save_model(
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    tied: bool = True,
    # Far larger than usual, so that no two logits are close enough for rounding to decide.
    initializer_range: float = 0.2,
) -> Qwen2ForCausalLM:
    """Write a model of random weights."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=tied,
        initializer_range=initializer_range,
    )
    model = Qwen2ForCausalLM(config)  # type: ignore[no-untyped-call]
    # Like many chat models: the tokenizer's EOS ends a turn, and so does one more token.
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, 0]
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return model


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(list(figfont_examples(TEST_START, 6)))


@pytest.fixture(scope="session")
def model_paths(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    save_model(root / "first", tiny_tokenizer, seed=0)
    save_model(root / "second", tiny_tokenizer, seed=1)
    save_model(root / "first untied", tiny_tokenizer, seed=2, tied=False)
    save_model(root / "second untied", tiny_tokenizer, seed=4, tied=False)
    save_model(root / "undecided", tiny_tokenizer, seed=5, initializer_range=0.002)
    silent = save_model(root / "silent", tiny_tokenizer, seed=3)
    # All logits are zero then, and the arg max is token 0, which the generation config stops at.
    torch.nn.init.zeros_(silent.model.norm.weight)
    silent.save_pretrained(root / "silent")
    return {path.name: str(path) for path in root.iterdir()}


@pytest.fixture(scope="session")
def harness_tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_harness_tasks(tmp_path_factory.mktemp("harness"))


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    """Make an evaluator in this process, on the engine of transformers."""
    return Evaluator(EngineSpec(type="transformers"))
