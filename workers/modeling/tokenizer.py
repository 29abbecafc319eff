"""Reading the tokenizer of a model directory. Importing this module loads no model library."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(model_dir: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer in a model directory.

    Raises:
        FileNotFoundError: there is no such model directory.
        ValueError: its tokenizer cannot be read.
    """
    from transformers import AutoTokenizer

    if not (model_dir / "config.json").is_file():
        raise FileNotFoundError(f"{model_dir} is no model directory: it has no config.json")
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model_dir)
    except (OSError, ValueError) as error:
        raise ValueError(f"the tokenizer in {model_dir} cannot be read: {error}") from error
    return tokenizer
