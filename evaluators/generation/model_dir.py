"""Reading a model directory (Hugging Face layout, safetensors weights)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_NO_ARCHITECTURE = {"_name_or_path", "dtype", "torch_dtype", "transformers_version", "use_cache"}
"""Keys of config.json that differ between checkpoints of one architecture."""


@dataclass(frozen=True)
class Architecture:
    """Configuration and tensor shapes; equal where one's weights fit into the other's engine."""

    config: dict[str, Any]
    tensors: dict[str, tuple[int, ...]]
    """Name → shape of the stored tensors."""


def read_architecture(model_path: Path) -> Architecture:
    """Read config.json and the headers of the weight files, not the weights.

    Raises:
        FileNotFoundError: there is no config.json or no safetensors file.
    """
    from safetensors import safe_open

    config = _read_json(model_path / "config.json")
    weight_files = sorted(model_path.glob("*.safetensors"))
    if not weight_files:
        raise FileNotFoundError(f"there are no weights (*.safetensors) in {model_path}")
    tensors: dict[str, tuple[int, ...]] = {}
    for file in weight_files:
        with safe_open(file, framework="numpy") as weights:
            for name in weights.keys():  # noqa: SIM118 (safe_open is no mapping)
                tensors[name] = tuple(weights.get_slice(name).get_shape())
    return Architecture(
        config={key: value for key, value in config.items() if key not in _NO_ARCHITECTURE},
        tensors=tensors,
    )


def read_stop_token_ids(model_path: Path, eos_token_id: int | None) -> list[int]:
    """Read the token ids that end a response: the tokenizer's EOS and the generation config's.

    Chat models often name several there. Without a generation_config.json, config.json counts.
    """
    generation_config = model_path / "generation_config.json"
    source = generation_config if generation_config.is_file() else model_path / "config.json"
    declared = _read_json(source).get("eos_token_id")
    token_ids = declared if isinstance(declared, list) else [declared]
    return sorted({token_id for token_id in [*token_ids, eos_token_id] if token_id is not None})


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} is no model directory: it has no {path.name}")
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
