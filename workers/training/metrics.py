"""What is logged of an optimizer step, over the target tokens of all ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from deft.objectives import TokenStats
from deft.objectives.diagnostics import summarize_tokens
from deft.workers.training.step import MicroBatch, TokenColumns


def gather_targets(
    columns: Sequence[TokenColumns], micro_batches: Sequence[MicroBatch], eos_token_id: int | None
) -> TokenColumns:
    """Gather the step's target tokens of all ranks, so that means and quantiles are exact.

    Adds the column `eos`, which marks the tokens that end a response.
    """
    target = torch.cat([tokens["target"] for tokens in columns])
    labels = torch.cat([micro_batch["labels"][:, 1:].flatten() for micro_batch in micro_batches])
    local = {
        name: torch.cat([tokens[name] for tokens in columns])[target]
        for name in columns[0]
        if name != "target"
    }
    # A tokenizer without an EOS token ends no response; -1 is no token.
    local["eos"] = labels[target] == (-1 if eos_token_id is None else eos_token_id)
    stacked = torch.stack([column.float() for column in local.values()])
    ranks = range(torch.distributed.get_world_size())
    sizes = [torch.zeros(1, dtype=torch.int64, device=stacked.device) for _ in ranks]
    torch.distributed.all_gather(sizes, torch.full_like(sizes[0], stacked.shape[1]))
    widest = max(map(int, sizes))
    padded = torch.nn.functional.pad(stacked, (0, widest - stacked.shape[1]))
    parts = [torch.empty_like(padded) for _ in ranks]
    torch.distributed.all_gather(parts, padded)
    joined = torch.cat([part[:, :size] for part, size in zip(parts, sizes, strict=True)], dim=1)
    return dict(zip(local, joined, strict=True))


def step_metrics(tokens: TokenColumns) -> dict[str, float]:
    """Summarize a step: the objective's mean over kept tokens, the rest over targets."""
    kept, eos = tokens["kept"].bool(), tokens["eos"].bool()
    stats = TokenStats(
        logp=tokens["logp"],
        p=tokens["p"],
        mask=torch.ones_like(kept),
        concentration=tokens["concentration"],
        entropy=tokens["entropy"],
    )
    summary = summarize_tokens(stats, gate=tokens["gate"], kept=kept, focus=tokens.get("focus"))
    averaged = {"p", "gate", "focus", "concentration", "entropy"}
    metrics = {"objective": float(tokens["value"].double().sum() / kept.sum().clamp(min=1))}
    metrics |= {f"mean_{k}" if k in averaged else k: value for k, value in summary.items()}
    if eos.any():
        metrics["eos_logp"] = float(tokens["logp"][eos].double().mean())
    return metrics
