"""The prepare stage: model and token ids on disk, each made once and found again by its content."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from deft.workers.chat import Example
from deft.workers.datasets import load_examples, tokenize
from deft.workers.models import MODELS, build_smollm2, build_tiny, resolve_directory
from deft.workers.spec import DatasetSpec, ModelSpec
from deft.workers.storage import atomic_directory, write_atomic


@dataclass(frozen=True)
class Prepared:
    """What training and evaluation start from."""

    model_dir: str
    rows_dir: str
    validation_dir: str
    num_examples: int
    """Training examples that fit `max_length`."""
    num_too_long: int
    """Training examples that were left out because they did not fit."""
    num_tokens: int
    """Tokens in the examples that fit, prompts included."""
    num_target_tokens: int
    """Tokens among them that carry loss."""


def prepare(
    dataset: DatasetSpec, model: ModelSpec, *, max_length: int, seed: int, cache: Path
) -> Prepared:
    """Build or find the model's directory and the tokenised training rows under ``cache``.

    Raises:
        ValueError: the data or the model cannot be used; the message says why.
    """
    from transformers import AutoTokenizer

    examples = load_examples(dataset)
    digest = _hash(*(json.dumps([example.prompt, example.response]) for example in examples))
    model_dir = prepare_model(model, examples, digest, seed, cache / "models")
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    tokenizer_hash = _hash(tokenizer.backend_tokenizer.to_str(), str(tokenizer.chat_template))
    rows_dir = cache / "rows" / _hash(digest, tokenizer_hash, str(max_length))
    if not rows_dir.is_dir():
        tokenized = tokenize(examples, tokenizer, max_length)
        with atomic_directory(rows_dir) as aside:
            tokenized.rows.save_to_disk(aside)
            write_atomic(aside / "counts.json", json.dumps(tokenized.counts()))
    counts = json.loads((rows_dir / "counts.json").read_text())
    return Prepared(model_dir=str(model_dir), rows_dir=str(rows_dir), validation_dir=str(rows_dir), **counts)


def prepare_model(
    model: ModelSpec, examples: list[Example], digest: str, seed: int, cache: Path
) -> Path:
    """The local directory of ``model``, built under ``cache`` if it is one of ours.

    ``digest`` stands for the content of ``examples``.
    """
    if model.name not in MODELS:
        return resolve_directory(model.name)
    if model.name == "tiny":
        directory = cache / f"tiny-{_hash(digest, str(seed))}"
    else:
        directory = cache / model.name
    if not directory.is_dir():
        with atomic_directory(directory) as aside:
            if model.name == "tiny":
                build_tiny(aside, examples, seed)
            else:
                build_smollm2(aside)
    return directory


def _hash(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode())
        digest.update(b"\0")
    return digest.hexdigest()[:12]
