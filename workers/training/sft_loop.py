"""The training loop that runs on every Ray Train worker."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import ray.train
import ray.train.torch
import torch
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from deft.objectives import Objective, get_objective
from deft.workers.data.example_store import open_rows
from deft.workers.data.prepare import training_example_ids
from deft.workers.modeling.attention import describe_attention
from deft.workers.modeling.known_logp import KnownLogp, stored_logp
from deft.workers.modeling.loading import fill_token_id, require_exportable
from deft.workers.modeling.objective_model import ObjectiveModel
from deft.workers.training.batches import (
    MicroBatchPlan,
    collate,
    padding_share,
    pinned,
    split_into_micro_batches,
    step_indices,
    to_device,
    token_counts,
)
from deft.workers.training.checkpoints import Resumption, clear_scratch, save_checkpoint
from deft.workers.training.engine import (
    agreed_dtype,
    build_engine,
    load_model,
    load_reference,
    require_same_vocabulary,
)
from deft.workers.training.export import export_model
from deft.workers.training.job import TrainJob
from deft.workers.training.metrics import gather_targets, step_metrics
from deft.workers.training.preemption import EndNotice
from deft.workers.training.prefetch import prefetched
from deft.workers.training.step import (
    MicroBatch,
    TokenColumns,
    find_problem,
    policy_logp,
    train_step,
)
from deft.workers.training.validation import validate

if TYPE_CHECKING:
    import deepspeed

MAX_SKIPPED_STEPS = {torch.float32: 3, torch.bfloat16: 3, torch.float16: 20}
"""Steps in a row without finite loss and gradient after which training stops; float16 finds its
loss scale by such steps."""


def train(job: TrainJob) -> None:
    """Train as ``job`` says, from the last checkpoint if Ray Train has one.

    The last checkpoint reported holds `model/`, the Hugging Face export.

    It ends before the last step if the driver asks for it.

    Raises:
        FloatingPointError: loss or gradient were not finite for several steps in a row.
    """
    worker = setup_worker(job)
    data = setup_data(job)
    clear_scratch(job.scratch_dir)

    def report_damage(step: int, file: str) -> None:
        worker.report("damaged_checkpoint", step, {"file": file})

    with Resumption(worker.rank, worker.world_size, job.scratch_dir, report_damage) as resumption:
        if resumption.step == job.num_steps:
            return
        engine, data = setup_engine(job, worker, data, load_universal=resumption.is_universal)
        first_step = resumption.load(engine)
    notice = EndNotice(worker.device)
    if first_step == 0:
        validate_if_due(job, worker, engine, data, step=0)
    model = engine.module.model
    numerics = {"attention": describe_attention(model), "dtype": str(model.dtype)}
    worker.report("numerics", first_step, numerics)

    steps = range(first_step, job.num_steps)
    batches = prefetched(partial(fetch, job, worker, data), steps)
    skipped_in_a_row = 0
    old_logp: dict[int, list[torch.Tensor]] = {}
    for step in steps:
        started = time.perf_counter()
        seed_dropout(job.seed, step, worker.rank)
        batch = next(batches).to(worker.device)
        if "old_logp" in engine.module.objective.context:
            old_logp = old_logp if step in old_logp else refresh(job, worker, engine, data, step)
            for micro_batch, logp in zip(batch.micro_batches, old_logp[step], strict=True):
                micro_batch["old_logp"] = logp
        learning_rate = engine.get_lr()[0]
        columns, grad_norm = train_step(
            engine, batch.micro_batches, job.training, worker.world_size
        )
        problem = find_problem(engine, grad_norm)
        skipped_in_a_row = 0 if problem is None else skipped_in_a_row + 1
        metrics = measure_step(job, engine, data, batch, columns, started)
        metrics |= {"learning_rate": learning_rate, "grad_norm": grad_norm}
        if problem is None:
            worker.report("train", step + 1, metrics)
        else:
            worker.report("skipped_step", step + 1, {"problem": problem})
            if skipped_in_a_row >= MAX_SKIPPED_STEPS[engine.module.model.dtype]:
                stop_training(job, step, batch, problem, skipped_in_a_row)
        metrics |= validate_if_due(job, worker, engine, data, step=step + 1)
        save_if_due(job, worker, engine, data, notice, metrics, step=step + 1)
        if notice.is_stop:
            return


@dataclass(frozen=True)
class Worker:
    """This process among the data-parallel workers, and where it reports."""

    job: TrainJob
    rank: int
    world_size: int
    device: torch.device

    def report(self, event: str, step: int, metrics: Mapping[str, float | str]) -> None:
        """Send an event to the driver; only rank 0 does."""
        if self.rank == 0 and self.job.events is not None:
            self.job.events.put({"event": event, "step": step, "metrics": metrics})


@dataclass(frozen=True)
class Data:
    """The prepared rows and their tokenizer."""

    rows: Dataset
    held_out: Dataset
    lengths: list[int]
    """Tokens of each of the rows."""
    tokenizer: PreTrainedTokenizerBase
    known: KnownLogp | None = None
    """Log-probabilities of the rows under other models, if the objective reads any."""
    known_held_out: KnownLogp | None = None
    """The same of the held-out rows."""


@dataclass(frozen=True)
class Batch:
    """The examples of one optimizer step."""

    indices: list[int]
    """Rows of the step, on all ranks."""
    plan: MicroBatchPlan
    micro_batches: list[MicroBatch]
    """This rank's part of the plan, as tensors."""

    def to(self, device: torch.device) -> Batch:
        """Return the same with its tensors on the device."""
        return replace(self, micro_batches=[to_device(each, device) for each in self.micro_batches])


def setup_worker(job: TrainJob) -> Worker:
    """Find this worker's rank and device, and seed it."""
    torch.manual_seed(job.seed)
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    return Worker(job, rank, world_size, ray.train.torch.get_device())


def setup_data(job: TrainJob) -> Data:
    """Open the prepared rows and the tokenizer."""
    rows = open_rows(job.rows_dir)
    held_out = open_rows(job.validation_dir)
    tokenizer = AutoTokenizer.from_pretrained(job.model_dir)
    return Data(rows, held_out, token_counts(rows), tokenizer)


def setup_engine(
    job: TrainJob, worker: Worker, data: Data, *, load_universal: bool
) -> tuple[deepspeed.DeepSpeedEngine, Data]:
    """Build the engine with the model as prepared.

    Returns:
        The engine, and the data with what the objective reads of other models.
    """
    dtype = agreed_dtype(job.training.dtype, worker.device)
    objective = get_objective(job.objective)
    model = load_model(job.model_dir, job.training, dtype)
    require_exportable(model, data.tokenizer)
    other_dir = job.training.reference
    needs_copy = objective.needs_reference and (job.training.lora is None or other_dir is not None)
    reads_other = other_dir is not None and "reference_logp" in objective.context
    reference = None
    if needs_copy or reads_other:
        reference = load_reference(other_dir or job.model_dir, model, worker.device)
        require_same_vocabulary(model, reference)
    data = with_known_logp(job, worker, data, objective, model, reference)
    engine = build_engine(
        ObjectiveModel(model, objective, reference if needs_copy else None),
        job.training,
        job.num_steps,
        load_universal=load_universal,
    )
    return engine, data


def with_known_logp(
    job: TrainJob,
    worker: Worker,
    data: Data,
    objective: Objective,
    model: PreTrainedModel,
    reference: PreTrainedModel | None,
) -> Data:
    """Return the data with the log-probabilities that the objective reads of other models."""
    sources = {"initial_logp": (model, job.model_dir)}
    if reference is None:
        sources["reference_logp"] = sources["initial_logp"]
    else:
        sources["reference_logp"] = (reference, job.training.reference or job.model_dir)
    if not objective.context & set(sources):
        return data

    def compute(rows: Dataset, rows_dir: str, indices: list[int]) -> KnownLogp:
        return KnownLogp(
            {
                name: stored_logp(
                    *source,
                    rows,
                    rows_dir,
                    indices,
                    fill_token_id=fill_token_id(data.tokenizer),
                    device=worker.device,
                    packing=job.training.packing,
                )
                for name, source in sources.items()
                if name in objective.context
            }
        )

    size = job.training.batch_size
    steps = (step_indices(len(data.rows), size, s, job.seed) for s in range(job.num_steps))
    trained = sorted({index for indices in steps for index in indices})
    return replace(
        data,
        known=compute(data.rows, job.rows_dir, trained),
        known_held_out=compute(data.held_out, job.validation_dir, list(range(len(data.held_out)))),
    )


def seed_dropout(seed: int, step: int, rank: int) -> None:
    """Make dropout depend on the step, not on the way there: a resumed run repeats it."""
    torch.manual_seed(hash((seed, step, rank)) % 2**63)


def fetch(job: TrainJob, worker: Worker, data: Data, step: int) -> Batch:
    """Choose the examples of a step and collate this rank's micro-batches in the host's memory."""
    spec = job.training
    indices = step_indices(len(data.rows), spec.batch_size, step, job.seed)
    plan = split_into_micro_batches(indices, data.lengths, spec, worker.world_size)
    micro_batches = [
        collate(
            [data.rows[index] for index in chosen],
            fill_token_id(data.tokenizer),
            torch.device("cpu"),
            packing=spec.packing,
        )
        for chosen in plan[worker.rank]
    ]
    if data.known is not None:
        for micro_batch, chosen in zip(micro_batches, plan[worker.rank], strict=True):
            micro_batch |= data.known.of(chosen, torch.device("cpu"))
    if worker.device.type == "cuda":
        micro_batches = [pinned(micro_batch) for micro_batch in micro_batches]
    return Batch(indices, plan, micro_batches)


def refresh(
    job: TrainJob, worker: Worker, engine: deepspeed.DeepSpeedEngine, data: Data, step: int
) -> dict[int, list[torch.Tensor]]:
    """Compute the old policy's log-probabilities for the steps from ``step`` to the next refresh.

    Returns:
        By step, those of the target tokens of each of this rank's micro-batches.
    """
    every = job.training.old_policy_every
    last = min(step - step % every + every, job.num_steps)
    return {
        later: policy_logp(engine, fetch(job, worker, data, later).to(worker.device).micro_batches)
        for later in range(step, last)
    }


def measure_step(
    job: TrainJob,
    engine: deepspeed.DeepSpeedEngine,
    data: Data,
    batch: Batch,
    columns: list[TokenColumns],
    started: float,
) -> dict[str, float]:
    """Return the metrics of a step that began at ``started``; every rank must call this."""
    targets = gather_targets(columns, batch.micro_batches, data.tokenizer.eos_token_id)
    seconds = time.perf_counter() - started
    return step_metrics(targets) | {
        "padding_share": padding_share(batch.plan, data.lengths, packing=job.training.packing),
        "skipped_steps": engine.skipped_steps,
        "target_tokens": len(targets["p"]),
        "tokens_per_second": sum(data.lengths[index] for index in batch.indices) / seconds,
        "target_tokens_per_second": len(targets["p"]) / seconds,
    }


def stop_training(
    job: TrainJob, step: int, batch: Batch, problem: str, skipped_in_a_row: int
) -> NoReturn:
    """Raise FloatingPointError with the examples of the step that could not be taken."""
    names = training_example_ids(job.examples_dir, job.rows_dir, batch.indices)
    advice = "a lower learning rate may help"
    if f"of {job.objective} is" in problem:
        advice = f"the logits are finite, so it is the objective: deft check '{job.objective}'"
    raise FloatingPointError(
        f"{problem} at step {step + 1}, and so in each of the {skipped_in_a_row} steps up to it; "
        f"{advice}. The examples of this step: {', '.join(sorted(names))}"
    )


def validate_if_due(
    job: TrainJob, worker: Worker, engine: deepspeed.DeepSpeedEngine, data: Data, *, step: int
) -> dict[str, float]:
    """Evaluate the held-out rows if it is time to; returns metrics named `validation/…`."""
    if not (len(data.held_out) and job.training.is_validated(step, job.num_steps)):
        return {}
    metrics = validate(
        engine,
        data.held_out,
        job.training,
        fill_token_id(data.tokenizer),
        worker.device,
        data.known_held_out,
    )
    worker.report("validation", step, metrics)
    return {f"validation/{name}": value for name, value in metrics.items()}


def save_if_due(
    job: TrainJob,
    worker: Worker,
    engine: deepspeed.DeepSpeedEngine,
    data: Data,
    notice: EndNotice,
    metrics: dict[str, float],
    *,
    step: int,
) -> None:
    """Save a checkpoint if it is time to or this worker is about to go away."""
    ending = notice.arrived()
    if ending is not None:
        worker.report(ending, step, {})
    if ending is not None or job.training.is_saved(step, job.num_steps):
        is_exported = step == job.num_steps or job.training.keep == "best"
        lora = job.training.lora
        export = partial(
            export_model,
            engine,
            data.tokenizer,
            style=job.prompt_style,
            rows=data.held_out if len(data.held_out) else data.rows,
            packing=job.training.packing,
            keep_adapter=lora is not None and lora.keep_adapter,
        )
        save_checkpoint(
            engine,
            export if is_exported else None,
            step,
            metrics,
            Path(job.scratch_dir),
            job.training.keeps_optimizer(step, job.num_steps),
        )
