"""Loss on held-out text, which is comparable between training objectives.

Runs through transformers and the platform's fused head, one forward pass over each row. Shapes: N
target tokens of one batch, D width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from deft.evaluators.generation.model_dir import read_architecture
from deft.evaluators.scores import statistics
from deft.evaluators.scores.heldout_table import RowLoss, summarize_losses, write_losses
from deft.evaluators.scores.token_table import HeldoutToken, write_tokens
from deft.workers.common.checksums import hash_parts
from deft.workers.common.example import IGNORE_INDEX, Example
from deft.workers.data.chat import encode_examples
from deft.workers.data.datasets import read_examples
from deft.workers.data.example_store import open_rows
from deft.workers.data.readers import BadRecord
from deft.workers.data.tokenization import target_bytes
from deft.workers.dataset_spec import DatasetSpec
from deft.workers.modeling.loading import load_causal_lm
from deft.workers.modeling.logit_transform import LogitTransform, logit_transform
from deft.workers.modeling.objective_model import target_statistics
from deft.workers.modeling.tokenizer import load_tokenizer
from deft.workers.training.batches import collate
from deft.workers.training.engine import resolve_dtype

BATCH_SIZE = 4
"""Rows of one forward pass."""

WEIGHTS_SHARE = 0.8
"""Share of a GPU's memory that weights may take; the rest is for a batch."""

NUM_TOKEN_ROWS = 5
"""Rows of which the single tokens are kept."""
MAX_ROW_TOKENS = 256
"""Target tokens of each of them that are kept at most."""
MAX_TEXT_BEFORE = 1500
"""Characters that are kept of text before a target."""
DECODED_BEFORE = 16
"""Tokens that are decoded together with a token, for it may spell part of a character."""

HeldoutRow = Mapping[str, Any]
"""input_ids and labels, lists of int of equal length, labels not shifted and `IGNORE_INDEX` where
there is no target; target_bytes, UTF-8 bytes of the text that the targets spell."""


def encode_rows(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], style: str
) -> list[HeldoutRow]:
    """Encode examples as rows; raises what `encode_examples` does."""
    encoded = list(encode_examples(tokenizer, examples, style=style))
    sizes = target_bytes(tokenizer, [labels for _, labels in encoded])
    return [
        {"input_ids": ids, "labels": labels, "target_bytes": size}
        for (ids, labels), size in zip(encoded, sizes, strict=True)
    ]


def read_rows(
    model_dir: Path, *, file: str | None, rows_dir: str | None, style: str, size: int | None
) -> Sequence[HeldoutRow]:
    """Read the first ``size`` rows of a file of prompts and responses, or of a prepared directory.

    Raises:
        ValueError: the file cannot be read, or the prompt style does not fit the model.
    """
    if file is not None:
        examples = []
        for example in read_examples(DatasetSpec(name=file, size=size)):
            if isinstance(example, BadRecord):
                raise ValueError(f"heldout: {example.where}: {example.message}")
            examples.append(example)
        return encode_rows(load_tokenizer(model_dir), examples, style)
    assert rows_dir is not None
    return list(islice(open_rows(rows_dir), size))


def measure_losses(
    model_dir: Path,
    rows: Sequence[HeldoutRow],
    out: Path,
    tokens_out: Path,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    dtype: str | None = None,
) -> dict[str, float]:
    """Measure loss and calibration of a model on rows, and write them to Parquet tables.

    Args:
        model_dir: directory of the model and its tokenizer.
        rows: encoded with that tokenizer.
        out: table of `RowLoss`, one for each row.
        tokens_out: table of `HeldoutToken`, of the first `NUM_TOKEN_ROWS` rows.
        on_progress: called with the numbers of rows that are done and of all rows.
        dtype: of the parameters, as training agreed on; if not given, what this machine computes
            in. Losses in different dtypes are not to be compared.

    Returns:
        ``nll`` (mean over target tokens, nats) and ``bits_per_byte`` (the same sum in bits, for
        each byte of text: comparable across tokenizers), both with standard error and 95 %
        interval over rows; ``control_nll``, the mean over EOS and its like; ``token_accuracy``;
        ``ece``, the expected calibration error of the most likely token; ``entropy_gap``, nll minus
        mean entropy: 0 for a model as certain as it should be on average, positive for an
        overconfident one (Braverman et al. 2020, arXiv 1906.05664); the counts ``num_items`` and
        ``num_tokens``.
    """
    tokenizer = load_tokenizer(model_dir)
    control = torch.tensor(sorted(tokenizer.all_special_ids), dtype=torch.int64)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    parameters = getattr(torch, dtype) if dtype else resolve_dtype("auto")
    # Several GPUs hold some of the layers each.
    device_map = device if fits_one_device(model_dir, parameters) else "auto"
    model = load_causal_lm(model_dir, dtype=parameters, device_map=device_map).eval()
    transform = logit_transform(model)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    losses: dict[int, RowLoss] = {}
    confidences, hits = [], []
    for start in range(0, len(order), BATCH_SIZE):
        chosen = order[start : start + BATCH_SIZE]
        batch = collate(
            [dict(rows[i]) for i in chosen], tokenizer.pad_token_id or 0, device, packing=False
        )
        tokens = _token_losses(model, transform, batch["input_ids"], batch["labels"])
        is_control = torch.isin(tokens["target"], control)
        confidences.append(tokens["confidence"].numpy())
        hits.append(tokens["correct"].numpy())
        sizes = (batch["labels"][:, 1:] != IGNORE_INDEX).sum(1).tolist()
        ends = np.cumsum(sizes).tolist()
        for i, size, end in zip(chosen, sizes, ends, strict=True):
            span = slice(end - size, end)
            nll = -tokens["logp"][span]
            losses[i] = RowLoss(
                row=i,
                nll=float(nll.sum()),
                control_nll=float(nll[is_control[span]].sum()),
                entropy=float(tokens["entropy"][span].sum()),
                n_tokens=size,
                n_control=int(is_control[span].sum()),
                n_bytes=int(rows[i]["target_bytes"]),
                num_correct=int(tokens["correct"][span].sum()),
            )
        on_progress(len(losses), len(rows))
    table = [losses[i] for i in range(len(rows))]
    write_losses(table, out)
    examples = rows[:NUM_TOKEN_ROWS]
    write_tokens(
        [
            token
            for row in range(len(examples))
            for token in _single_tokens(model, transform, tokenizer, row, examples[row])
        ],
        tokens_out,
    )
    ece = statistics.expected_calibration_error(np.concatenate(confidences), np.concatenate(hits))
    return summarize_losses(table) | {"ece": ece}


def fits_one_device(model_dir: Path, dtype: torch.dtype) -> bool:
    """Estimate whether the first GPU, if there are several, holds a model and a batch beside it."""
    if torch.cuda.device_count() < 2:
        return True
    shapes = read_architecture(model_dir).tensors.values()
    num_bytes = sum(map(math.prod, shapes)) * dtype.itemsize
    total: int = torch.cuda.get_device_properties(0).total_memory
    return num_bytes < WEIGHTS_SHARE * total


def _token_losses(
    model: Any, transform: LogitTransform, input_ids: Tensor, labels: Tensor
) -> dict[str, Tensor]:
    """Compute target, logp, entropy, confidence and correct of target tokens, [N] on the CPU."""
    stats = target_statistics(model, transform, input_ids, labels, ("entropy", "top_logp"))
    targets = labels[:, 1:]
    tokens = {
        "target": targets[targets != IGNORE_INDEX],
        "logp": stats.logp.double(),
        "entropy": stats.require("entropy").double(),
        "confidence": stats.require("top_logp").double().exp(),
        "correct": stats.correct,
    }
    return {name: column.cpu() for name, column in tokens.items()}


def _single_tokens(
    model: Any,
    transform: LogitTransform,
    tokenizer: PreTrainedTokenizerBase,
    number: int,
    row: HeldoutRow,
) -> list[HeldoutToken]:
    """Compute what the model predicts at the first targets of one row."""
    device = model.get_input_embeddings().weight.device
    ids, labels = list(row["input_ids"]), list(row["labels"])
    statistics_read = ("entropy", "entropy_top", "concentration", "top_logp")
    inputs, targets = (torch.tensor([column], device=device) for column in (ids, labels))
    stats = target_statistics(model, transform, inputs, targets, statistics_read)
    columns = {"logp": stats.logp} | {name: stats.require(name) for name in statistics_read}
    positions = [i for i in range(1, len(ids)) if labels[i] != IGNORE_INDEX][:MAX_ROW_TOKENS]
    digest, end = hash_parts(*map(str, ids)), 0
    tokens = []
    for index, position in enumerate(positions):
        tokens.append(
            HeldoutToken(
                row=number,
                digest=digest,
                before=_decode(tokenizer, ids[end:position])[-MAX_TEXT_BEFORE:],
                text=_spelled(tokenizer, ids, position),
                **{name: float(column[index]) for name, column in columns.items()},
            )
        )
        end = position + 1
    return tokens


def _spelled(tokenizer: PreTrainedTokenizerBase, ids: list[int], position: int) -> str:
    """Return the text that the token at ``position`` adds to that of the tokens before it."""
    before = ids[max(position - DECODED_BEFORE, 0) : position]
    text = _decode(tokenizer, [*before, ids[position]])
    pairs = zip(_decode(tokenizer, before), text, strict=False)
    num_shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return text[num_shared:]


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
