"""The training loop that runs on every Ray Train worker."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import ray.train
import ray.train.torch
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from deft.objectives import TokenStats, get_objective
from deft.objectives.diagnostics import summarize
from deft.workers.common.example import IGNORE_INDEX
from deft.workers.data.example_store import open_rows
from deft.workers.data.prepare import training_example_ids
from deft.workers.modeling.objective_model import ObjectiveModel
from deft.workers.spec import TrainingSpec
from deft.workers.training.batches import collate, cut, padding_share, step_indices, token_counts
from deft.workers.training.checkpoints import Resumption, save_checkpoint
from deft.workers.training.engine import build_engine, load_model, resolve_dtype, take_step
from deft.workers.training.job import TrainJob
from deft.workers.training.preemption import PreemptionNotice
from deft.workers.training.reduction import loss_factor
from deft.workers.training.validation import validate

if TYPE_CHECKING:
    import deepspeed

MicroBatch = dict[str, torch.Tensor]
"""What `deft.workers.training.batches.collate` returns."""
TokenColumns = dict[str, torch.Tensor]
"""One value per token and statistic, as `ObjectiveHead.forward` returns them."""

MAX_SKIPPED_STEPS = {torch.float32: 3, torch.bfloat16: 3, torch.float16: 20}
"""Steps in a row without finite loss and gradient after which training stops; float16 finds its
loss scale by such steps."""


def train(job: TrainJob) -> None:
    """Train as ``job`` says, from the last checkpoint if Ray Train has one.

    The last checkpoint reported holds `model/`, the Hugging Face export, beside `engine/`.

    Raises:
        FloatingPointError: loss or gradient were not finite for several steps in a row.
    """
    spec = job.training
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()

    torch.manual_seed(job.seed)
    rows = open_rows(job.rows_dir)
    held_out = open_rows(job.validation_dir)
    lengths = token_counts(rows)
    tokenizer = AutoTokenizer.from_pretrained(job.model_dir)
    dtype, objective = resolve_dtype(spec.dtype), get_objective(job.objective)
    model = load_model(job.model_dir, spec, dtype)
    reference = (
        AutoModelForCausalLM.from_pretrained(
            job.model_dir,
            dtype=dtype,
            device_map=device,
            attn_implementation=model.config._attn_implementation,
        )
        if objective.needs_reference and spec.lora is None
        else None
    )

    def report(kind: str, step: int, metrics: Mapping[str, float | str]) -> None:
        if rank == 0 and job.events is not None:
            job.events.put({"event": kind, "step": step, "metrics": metrics})

    def report_damage(step: int, file: str) -> None:
        report("damaged_checkpoint", step, {"file": file})

    with Resumption(rank, world_size, report_damage) as resumption:
        engine = build_engine(
            ObjectiveModel(model, objective, reference),
            spec,
            job.num_steps,
            load_universal=resumption.is_universal,
        )
        first_step = resumption.load(engine)

    def report_validation(step: int) -> dict[str, float]:
        if not (len(held_out) and spec.is_validated(step, job.num_steps)):
            return {}
        metrics = validate(engine, held_out, spec, tokenizer.pad_token_id, device)
        report("validation", step, metrics)
        return {f"validation/{name}": value for name, value in metrics.items()}

    if first_step == 0:
        report_validation(0)
    notice = PreemptionNotice(device)
    skipped_in_a_row = 0
    for step in range(first_step, job.num_steps):
        started = time.perf_counter()
        # Dropout depends on the step, not on the way there: a resumed run repeats it.
        torch.manual_seed(_step_seed(job.seed, step, rank))
        indices = step_indices(len(rows), spec.batch_size, step, job.seed)
        cuts = cut(indices, lengths, spec, world_size)
        batches = [
            collate(
                [rows[index] for index in chosen],
                tokenizer.pad_token_id,
                device,
                packing=spec.packing,
            )
            for chosen in cuts[rank]
        ]
        learning_rate = engine.get_lr()[0]
        columns, grad_norm = train_step(engine, batches, spec, world_size)
        problem = find_problem(engine, grad_norm)
        if problem is None:
            skipped_in_a_row = 0
        else:
            skipped_in_a_row += 1
            report("skipped_step", step + 1, {"problem": problem})
            if skipped_in_a_row >= MAX_SKIPPED_STEPS[dtype]:
                names = training_example_ids(job.examples_dir, job.rows_dir, indices)
                raise FloatingPointError(
                    f"{problem} at step {step + 1}, and so in each of the {skipped_in_a_row} steps "
                    f"up to it; a lower learning rate may help. The examples of this step: "
                    f"{', '.join(sorted(names))}"
                )
        targets = gather_targets(columns, batches, tokenizer.eos_token_id)
        seconds = time.perf_counter() - started
        metrics = step_metrics(targets) | {
            "learning_rate": learning_rate,
            "grad_norm": grad_norm,
            "padding_share": padding_share(cuts, lengths, packing=spec.packing),
            "skipped_steps": engine.skipped_steps,
            "target_tokens": len(targets["p"]),
            "tokens_per_second": sum(lengths[i] for i in indices) / seconds,
            "target_tokens_per_second": len(targets["p"]) / seconds,
        }
        if problem is None:
            report("train", step + 1, metrics)
        metrics |= report_validation(step + 1)
        is_preempted = notice.arrived()
        if is_preempted:
            report("preemption", step + 1, {})
        if is_preempted or spec.is_saved(step + 1, job.num_steps):
            is_last = step + 1 == job.num_steps
            export = is_last or spec.keep == "best"
            save_checkpoint(engine, tokenizer if export else None, step + 1, metrics)


def train_step(
    engine: deepspeed.DeepSpeedEngine,
    batches: Sequence[MicroBatch],
    spec: TrainingSpec,
    world_size: int,
) -> tuple[list[TokenColumns], float]:
    """One optimiser step over this rank's micro-batches.

    Returns what the head said about their tokens, and the gradient norm before clipping, which is
    inf or NaN if the step was skipped.
    """
    engine.train()
    kept_in_step, mean_p = look_ahead(engine, batches, spec)
    columns = []
    for index, batch in enumerate(batches):
        engine.set_gradient_accumulation_boundary(index == len(batches) - 1)
        loss, tokens = engine(**batch, step_mean_p=mean_p)
        factor = loss_factor(
            spec.reduction,
            kept_in_step=kept_in_step,
            kept_in_micro_batch=int(tokens["kept"].sum()),
            num_micro_batches=len(batches),
            world_size=world_size,
        )
        engine.backward(loss * factor, scale_wrt_gas=False)
        columns.append(tokens)
    return columns, take_step(engine)


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


def find_problem(engine: deepspeed.DeepSpeedEngine, grad_norm: float) -> str | None:
    """Why the step was skipped, on every rank the same; None if it was not."""
    if math.isfinite(grad_norm):
        return None
    head = engine.module.model.get_output_embeddings()
    problems: list[str | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(problems, head.problem)
    head.problem = None
    found = (f"on rank {rank} {problem}" for rank, problem in enumerate(problems) if problem)
    return next(found, f"the gradient norm is {grad_norm}")


def _step_seed(seed: int, step: int, rank: int) -> int:
    return hash((seed, step, rank)) % 2**63


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
