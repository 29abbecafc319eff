"""What a model believes about the tokens of a dataset, without training it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import fields
from typing import Any

import torch
from transformers import AutoTokenizer

from deft.objectives import TokenStats
from deft.objectives.head.interface import join_stats
from deft.workers.data.example_store import open_rows
from deft.workers.modeling.loading import fill_token_id, load_causal_lm
from deft.workers.modeling.logit_transform import logit_transform
from deft.workers.modeling.objective_model import target_statistics
from deft.workers.training.batches import collate
from deft.workers.training.engine import resolve_dtype

BATCH_SIZE = 4
"""Rows of a forward pass."""


def token_statistics(
    model_dir: str,
    rows_dir: str,
    statistics: Collection[str],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    num_rows: int | None = None,
) -> TokenStats:
    """Compute statistics of the target tokens of prepared rows, under the model as it is.

    Args:
        model_dir: directory of a prepared model.
        rows_dir: directory of a prepared dataset.
        statistics: names of optional fields of `TokenStats` to compute.
        on_progress: called with the number of rows done and the number of all.
        num_rows: number of rows to look at, from the first on; all if not given.

    Returns:
        Tensors float32 [N] on the CPU, over the N target tokens.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = open_rows(rows_dir)
    rows = rows.select(range(min(len(rows), num_rows or len(rows))))
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = load_causal_lm(model_dir, dtype=resolve_dtype("auto"), device_map=device).eval()
    transform = logit_transform(model)
    parts: list[TokenStats] = []
    for start in range(0, len(rows), BATCH_SIZE):
        chosen = [rows[i] for i in range(start, min(start + BATCH_SIZE, len(rows)))]
        batch = collate(chosen, fill_token_id(tokenizer), device, packing=False)
        stats = target_statistics(model, transform, batch["input_ids"], batch["labels"], statistics)
        parts.append(_on_cpu(stats))
        on_progress(start + len(chosen), len(rows))
    return join_stats(parts)


def _on_cpu(stats: TokenStats) -> TokenStats:
    columns: dict[str, Any] = {
        field.name: None if column is None else column.cpu()
        for field in fields(TokenStats)
        for column in [getattr(stats, field.name)]
    }
    return TokenStats(**columns)
