"""Identity of a model in a directory: by its files as they lie there, or by their content."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from deft.workers.common.checksums import hash_files, hash_parts


def fingerprint(model_path: Path) -> str:
    """Hash names, sizes and times of a model's files to 12 hexadecimal digits.

    It changes when the model in a directory is written anew. Weights are too large to be read.

    Raises:
        FileNotFoundError: there is no such directory.
    """
    stats = [(file.name, file.stat()) for file in _model_files(model_path)]
    return hash_parts(*(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats))


def model_digest(model_path: Path) -> str:
    """Hash names and contents of a model's files (SHA-256); the same for every copy.

    Reads all weights, once per process.

    Raises:
        FileNotFoundError: there is no such directory.
    """
    return _model_digest(model_path, fingerprint(model_path))


@lru_cache
def _model_digest(model_path: Path, fingerprint: str) -> str:
    return hash_files((file.name, file) for file in _model_files(model_path))


def _model_files(model_path: Path) -> list[Path]:
    """List weights, configuration and tokenizer files, sorted."""
    suffixes = (".safetensors", ".json", ".model", ".txt", ".jinja")
    return sorted(file for file in model_path.iterdir() if file.suffix in suffixes)
