"""The training loop that runs on every Ray Train worker."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import datasets
import ray.train
import ray.train.torch
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from deft.objectives import TokenStats, get_objective
from deft.objectives.diagnostics import summarize
from deft.workers.batches import collate, micro_batches, step_indices
from deft.workers.chat import IGNORE_INDEX
from deft.workers.engine import build_engine, export_model, resolve_dtype
from deft.workers.head import ObjectiveModel
from deft.workers.job import TrainJob
from deft.workers.reduction import loss_factor
from deft.workers.spec import TrainingSpec

if TYPE_CHECKING:
    import deepspeed

MicroBatch = dict[str, torch.Tensor]
"""input_ids and labels, int64 [B, T]."""
TokenColumns = dict[str, torch.Tensor]
"""One value per token and statistic, as `ObjectiveHead.forward` returns them."""


def train(job: TrainJob) -> None:
    """Train as ``job`` says, from the last checkpoint if Ray Train has one.

    The last checkpoint reported holds `model/`, the Hugging Face export, beside `engine/`.
    """
    spec = job.training
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()

    torch.manual_seed(job.seed)
    rows = datasets.load_from_disk(job.rows_dir)
    lengths = [len(ids) for ids in rows["input_ids"]]
    tokenizer = AutoTokenizer.from_pretrained(job.model_dir)
    dtype, objective = resolve_dtype(spec.dtype), get_objective(job.objective)
    model = AutoModelForCausalLM.from_pretrained(job.model_dir, dtype=dtype)
    reference = (
        AutoModelForCausalLM.from_pretrained(job.model_dir, dtype=dtype, device_map=device)
        if objective.needs_reference
        else None
    )
    engine = build_engine(ObjectiveModel(model, objective, reference), spec, job.num_steps)

    for step in range(resume(engine), job.num_steps):
        started = time.perf_counter()
        indices = step_indices(len(rows), spec.batch_size, step, job.seed)
        batches = [
            collate([rows[index] for index in chosen], tokenizer.pad_token_id, device)
            for chosen in micro_batches(
                indices,
                lengths,
                rank=rank,
                world_size=world_size,
                micro_batch_size=spec.micro_batch_size,
            )
        ]
        learning_rate = engine.get_lr()[0]
        columns, grad_norm = train_step(engine, batches, spec, world_size)
        targets = gather_targets(columns, batches, tokenizer.eos_token_id)
        metrics = step_metrics(targets) | {
            "learning_rate": learning_rate,
            "grad_norm": grad_norm,
            "tokens_per_second": sum(lengths[i] for i in indices) / (time.perf_counter() - started),
        }
        require_finite(metrics, step + 1)
        if rank == 0 and job.events is not None:
            job.events.put({"event": "train_step", "step": step + 1, "metrics": metrics})
        is_last = step + 1 == job.num_steps
        if is_last or (spec.checkpoint_every and (step + 1) % spec.checkpoint_every == 0):
            save_checkpoint(engine, tokenizer, step + 1, metrics, export=is_last)


def train_step(
    engine: deepspeed.DeepSpeedEngine,
    batches: Sequence[MicroBatch],
    spec: TrainingSpec,
    world_size: int,
) -> tuple[list[TokenColumns], float]:
    """One optimiser step over this rank's micro-batches.

    Returns what the head said about their tokens, and the gradient norm before clipping.
    """
    kept_in_step, mean_p = look_ahead(engine, batches, spec)
    columns = []
    grad_norm = math.nan
    for batch in batches:
        loss, tokens = engine(**batch, step_mean_p=mean_p)
        factor = loss_factor(
            spec.reduction,
            kept_in_step=kept_in_step,
            kept_in_micro_batch=int(tokens["kept"].sum()),
            accumulation_steps=len(batches),
            world_size=world_size,
        )
        engine.backward(loss * factor)
        columns.append(tokens)
        if engine.zero_optimization_stage() == 0 and engine.is_gradient_accumulation_boundary():
            grad_norm = local_grad_norm(engine)
        engine.step()
    if engine.get_global_grad_norm() is not None:
        grad_norm = float(engine.get_global_grad_norm())
    return columns, grad_norm


def look_ahead(
    engine: deepspeed.DeepSpeedEngine, batches: Sequence[MicroBatch], spec: TrainingSpec
) -> tuple[int, torch.Tensor | None]:
    """What a step must know of all its tokens, on all ranks, before its first backward pass.

    Returns the number of tokens that the objective keeps, and the mean p of all target tokens if
    `floor_scope` asks for it. Both may take a pass without gradients: an objective that drops
    tokens by their probability must be asked which.
    """
    objective = engine.module.objective
    wants_mean_p = spec.floor_scope == "step" and not objective.token_local
    if not (objective.drops_tokens or wants_mean_p):
        kept = sum((batch["labels"][:, 1:] != IGNORE_INDEX).sum() for batch in batches)
        torch.distributed.all_reduce(kept)
        return int(kept), None
    with torch.no_grad():
        tokens = [engine(**batch)[1] for batch in batches]
    sums = torch.stack(
        [
            torch.stack([seen["kept"].sum(), seen["target"].sum(), seen["p"].double().sum()])
            for seen in tokens
        ]
    ).sum(0)
    torch.distributed.all_reduce(sums)
    kept, targets, p = sums
    return int(kept), (p / targets.clamp(min=1)).float() if wants_mean_p else None


def gather_targets(
    columns: Sequence[TokenColumns], batches: Sequence[MicroBatch], eos_token_id: int
) -> TokenColumns:
    """The step's target tokens of all ranks, so that means and quantiles over them are exact.

    Adds the column `eos`, which marks the tokens that end a response.
    """
    target = torch.cat([tokens["target"] for tokens in columns])
    labels = torch.cat([batch["labels"][:, 1:].flatten() for batch in batches])
    local = {
        name: torch.cat([tokens[name] for tokens in columns])[target]
        for name in columns[0]
        if name != "target"
    }
    local["eos"] = labels[target] == eos_token_id
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
    """What is logged of a step: the objective's mean over kept tokens, the rest over targets."""
    kept, eos = tokens["kept"].bool(), tokens["eos"].bool()
    stats = TokenStats(
        logp=tokens["logp"],
        p=tokens["p"],
        mask=torch.ones_like(kept),
        concentration=tokens["concentration"],
        entropy=tokens["entropy"],
    )
    summary = summarize(stats, gate=tokens["gate"], kept=kept, focus=tokens.get("focus"))
    averaged = {"p", "gate", "focus", "concentration", "entropy"}
    metrics = {"objective": float(tokens["value"].double().sum() / kept.sum().clamp(min=1))}
    metrics |= {f"mean_{k}" if k in averaged else k: value for k, value in summary.items()}
    if eos.any():
        metrics["eos_logp"] = float(tokens["logp"][eos].double().mean())
    return metrics


def local_grad_norm(engine: deepspeed.DeepSpeedEngine) -> float:
    """Global gradient norm where DeepSpeed reports none: without ZeRO every rank holds it whole."""
    gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients))


def require_finite(metrics: dict[str, float], step: int) -> None:
    """Raise FloatingPointError if the loss or the gradient norm of a step is inf or NaN."""
    for name in ("objective", "grad_norm"):
        if not math.isfinite(metrics[name]):
            raise FloatingPointError(
                f"{name} is {metrics[name]} at step {step}; a lower learning rate may help"
            )


def resume(engine: deepspeed.DeepSpeedEngine) -> int:
    """Restore Ray Train's latest checkpoint, if any; returns the number of steps already done."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0
    with checkpoint.as_directory() as directory:
        _, state = engine.load_checkpoint(f"{directory}/engine")
    return int(state["step"])


def save_checkpoint(
    engine: deepspeed.DeepSpeedEngine,
    tokenizer: PreTrainedTokenizerBase,
    step: int,
    metrics: dict[str, float],
    *,
    export: bool,
) -> None:
    """Hand this rank's part of a checkpoint to Ray Train, which merges and stores the parts."""
    with tempfile.TemporaryDirectory() as directory:
        engine.save_checkpoint(f"{directory}/engine", client_state={"step": step})
        if export:
            export_model(engine, tokenizer, Path(directory, "model"))
        ray.train.report(
            {"step": step, **metrics}, checkpoint=ray.train.Checkpoint.from_directory(directory)
        )
