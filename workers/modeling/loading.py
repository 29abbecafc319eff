"""Loading a causal language model: all of its weights, and nothing else."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from deft.workers.data.example_store import BATCH_SIZE, open_rows
from deft.workers.modeling.attention import padded_attention

MAX_NAMED = 5
"""Weights that a message names."""


def load_causal_lm(directory: str | Path, **options: Any) -> PreTrainedModel:
    """Load the model in ``directory`` from its safetensors.

    Args:
        directory: local directory of a prepared or exported model.
        options: further arguments of `from_pretrained`, such as dtype or device_map; the attention
            is `padded_attention` if not given.

    Raises:
        ValueError: weights of the model are missing, or files hold weights that it does not have.
    """
    if "attn_implementation" not in options:
        config = AutoConfig.from_pretrained(directory)
        options["attn_implementation"] = padded_attention(config)
    model, report = AutoModelForCausalLM.from_pretrained(
        directory,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are refused by name below
        **options,
    )
    problems = [
        f"{len(report[key])} weights {meaning} ({_some(report[key])})"
        for key, meaning in (
            ("missing_keys", f"of {type(model).__name__} are missing"),
            ("unexpected_keys", f"do not belong to {type(model).__name__}"),
            ("mismatched_keys", "have another shape"),
        )
        if report[key]
    ]
    if problems:
        raise ValueError(
            f"model {directory}: {'; '.join(problems)}; save the model anew with save_pretrained, "
            "from the object that was trained"
        )
    loaded: PreTrainedModel = model
    allow_sampling_flags(loaded)
    return loaded


def _some(keys: Any) -> str:
    names = sorted(key if isinstance(key, str) else str(key[0]) for key in keys)
    return ", ".join(names[:MAX_NAMED]) + (", …" if len(names) > MAX_NAMED else "")


def allow_sampling_flags(model: PreTrainedModel) -> None:
    """Turn sampling on where the generation config has flags of it, such as a temperature.

    Older models have such flags without `do_sample`, which transformers reads but does not save.
    """
    config = model.generation_config
    try:
        config.validate(strict=True)
    except ValueError:
        config.do_sample = True


def require_trainable(directory: str | Path, *, max_length: int) -> None:
    """Check what would fail in training or in the export afterwards; loads no weights.

    Raises:
        ValueError: weights are missing or quantized, the model has fewer positions than
            ``max_length``, or its configuration cannot be saved.
    """
    require_unquantized(directory)
    model = load_causal_lm(directory, device_map="meta")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    require_positions(model.config, max_length)
    require_exportable(model, tokenizer)


def require_unquantized(directory: str | Path) -> None:
    """Raise ValueError if the model's weights are quantized."""
    settings = getattr(AutoConfig.from_pretrained(directory), "quantization_config", None)
    if settings:
        method = settings.get("quant_method") if isinstance(settings, dict) else settings
        raise ValueError(
            f"model {directory}: its weights are quantized ({method}), which cannot be trained; "
            "give the same model with weights of 16 or 32 bits"
        )


def require_embeddings(directory: str | Path, rows_dir: str | Path) -> None:
    """Check that the model has an embedding for every token id of some prepared rows.

    A tokenizer may well have more ids than the model, for images for instance, if none is used.

    Raises:
        ValueError: an id is beyond the embedding.
    """
    import pyarrow.compute as pc

    num_rows = AutoConfig.from_pretrained(directory).get_text_config().vocab_size
    batches = open_rows(rows_dir).with_format("arrow").iter(batch_size=BATCH_SIZE)
    largest = max(
        (pc.max(pc.list_flatten(batch["input_ids"])).as_py() or 0 for batch in batches), default=0
    )
    if largest >= num_rows:
        token = AutoTokenizer.from_pretrained(directory).convert_ids_to_tokens(largest)
        raise ValueError(
            f"model: the examples hold token id {largest} ({token!r}), but the embedding has only "
            f"{num_rows} rows; resize it with model.resize_token_embeddings(len(tokenizer)) and "
            "save the model anew"
        )


def require_positions(config: PreTrainedConfig, max_length: int) -> None:
    """Raise ValueError if ``max_length`` is longer than the model's positions."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if isinstance(positions, int) and 0 < positions < max_length:
        raise ValueError(
            f"training.max_length: {max_length} is longer than the {positions} positions of the "
            f"model (max_position_embeddings); give at most {positions}"
        )


def require_exportable(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the small files of an export somewhere, so that what cannot be saved fails now.

    Raises:
        ValueError: config, generation config or tokenizer cannot be saved; the message says why.
    """
    parts = {
        "config.json": model.config,
        "generation_config.json": getattr(model, "generation_config", None),
        "the tokenizer": tokenizer,
    }
    with tempfile.TemporaryDirectory() as directory:
        for name, part in parts.items():
            if part is None:
                continue
            try:
                part.save_pretrained(directory)
            except Exception as error:
                raise ValueError(
                    f"model: {name} cannot be saved with the trained model: "
                    f"{' '.join(str(error).split()):.300}; correct it in the model's directory"
                ) from error


def fill_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id that fills up padded rows: any will do, since no token sees it."""
    candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(token_id for token_id in candidates if token_id is not None)
