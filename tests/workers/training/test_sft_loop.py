"""Real DeepSpeed on Ray Train workers against a plain PyTorch loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, PreTrainedModel, get_cosine_schedule_with_warmup

from deft.objectives import CATALOG, get_objective
from deft.platform.config.presets import PAPER_PROTOCOL
from deft.workers.data.example_store import open_rows, write_table
from deft.workers.data.tokenization import row_fields
from deft.workers.spec import LoraSpec, TrainingSpec
from deft.workers.training.batches import split_into_micro_batches, step_indices, token_counts
from deft.workers.training.job import TrainJob
from helpers import deepspeed_runs

STEPS = 20
SPEC = TrainingSpec(
    batch_size=8,
    micro_batch_size=2,
    max_length=256,
    learning_rate=2e-3,
    dtype="float32",
    floor_scope="step",
)


@pytest.fixture(scope="module")
def job(make_job: Callable[..., TrainJob]) -> TrainJob:
    return make_job(SPEC, objective="original", num_steps=STEPS)


def with_training(job: TrainJob, **changes: Any) -> TrainJob:
    return replace(job, training=TrainingSpec(**{**dict(job.training), **changes}))


def nll(logp: Tensor, p: Tensor, probs: Tensor) -> Tensor:
    return -logp


def prob(logp: Tensor, p: Tensor, probs: Tensor) -> Tensor:
    return 1 - p


def deft(logp: Tensor, p: Tensor, probs: Tensor) -> Tensor:
    focus = probs.square().sum(-1).detach()
    return -((focus * logp).exp() - 1) / (focus + 1e-6)


def cayley(logp: Tensor, p: Tensor, probs: Tensor) -> Tensor:
    floor, distance = 0.5 * p.detach().mean(), 1 - p.detach() + 1e-8
    focus = floor + (1 - floor) * (1 - distance) / (1 + distance + 1e-8)
    focus = focus.clamp(0.001, 1)
    return -((focus * logp).exp() - 1) / (focus + 1e-8)


PLAIN: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "original": nll,
    "p": prob,
    "Cayley_Trans": cayley,
    "DEFT": deft,
}
"""Objectives written on materialized probabilities: (log p [N], p [N], P [N, V]) → values [N]."""


def plain_curve(job: TrainJob) -> list[float]:
    """Objective per step of a single-process float32 trainer, one example at a time: the yardstick.

    It shares no code with what it is compared to, but for the order of the examples.
    """
    spec, value = job.training, PLAIN[job.objective]
    rows = open_rows(job.rows_dir)
    model = AutoModelForCausalLM.from_pretrained(job.model_dir, dtype=torch.float32)
    optimizer = plain_optimizer(model, spec)
    warmup = int(spec.warmup_ratio * job.num_steps)
    schedule = get_cosine_schedule_with_warmup(optimizer, warmup, job.num_steps)
    curve = []
    for step in range(job.num_steps):
        logits, targets = [], []
        for index in step_indices(len(rows), spec.batch_size, step, job.seed):
            ids, labels = (torch.tensor(rows[index][key]) for key in ("input_ids", "labels"))
            trained = labels[1:] != -100
            logits.append(model(input_ids=ids[None]).logits[0, :-1][trained])
            targets.append(labels[1:][trained])
        log_probs = torch.cat(logits).log_softmax(-1)
        logp = log_probs.gather(1, torch.cat(targets)[:, None])[:, 0]
        loss = value(logp, logp.exp(), log_probs.exp()).mean()
        loss.backward()
        if spec.optimizer != "muon":
            torch.nn.utils.clip_grad_norm_(model.parameters(), spec.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        curve.append(loss.item())
    return curve


def plain_optimizer(model: PreTrainedModel, spec: TrainingSpec) -> torch.optim.Optimizer:
    settings: dict[str, Any] = {
        "lr": spec.learning_rate,
        "betas": spec.betas,
        "weight_decay": spec.weight_decay,
    }
    if spec.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), **settings)
    if spec.optimizer == "nadamw":
        return torch.optim.NAdam(model.parameters(), decoupled_weight_decay=True, **settings)
    from deepspeed.runtime.zero.muon.original_muon import SingleDeviceMuonWithAuxAdam

    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.dim() != 2 or "embed" in n]
    common = {"lr": spec.learning_rate, "weight_decay": spec.weight_decay}
    groups = [
        {"params": matrices, "use_muon": True, "momentum": 0.95, **common},
        {"params": others, "use_muon": False, "betas": spec.betas, "eps": 1e-8, **common},
    ]
    optimizer: torch.optim.Optimizer = SingleDeviceMuonWithAuxAdam(groups)
    return optimizer


@pytest.mark.slow
def test_optimizers_are_those_of_their_names(
    ray_cluster: None, job: TrainJob, tmp_path: Path
) -> None:
    jobs = [
        with_training(job, optimizer=name, zero_stage=stage)
        for name, stages in (("nadamw", (0, 2)), ("muon", (1, 2, 3)))
        for stage in stages
    ]
    for each, result in zip(jobs, deepspeed_runs(jobs, tmp_path), strict=True):
        assert result["objective"] == pytest.approx(plain_curve(each), rel=1e-3), each.training
        assert result["objective"][-1] < 0.99 * result["objective"][0]


CUTS: tuple[dict[str, Any], ...] = (
    {"zero_stage": 0},
    {"zero_stage": 1, "micro_batch_size": 1},
    {"zero_stage": 3, "packing": False, "micro_batch_size": 1},
    {"zero_stage": 2, "packing": False, "offload_optimizer": True},
    {"zero_stage": 3, "gradient_checkpointing": True},
)
MORE_CUTS: tuple[dict[str, Any], ...] = (
    {"zero_stage": 3},
    {"zero_stage": 2, "packing": False},
    {"zero_stage": 2, "offload_optimizer": True},
    {"zero_stage": 3, "offload_optimizer": True, "offload_parameters": True},
    {"zero_stage": 2, "micro_batch_size": 4, "gradient_checkpointing": True},
    {"zero_stage": 2, "compile": True},
    {"zero_stage": 3, "compile": True, "gradient_checkpointing": True},
)


@pytest.mark.parametrize(
    "cuts", [CUTS, pytest.param(MORE_CUTS, marks=pytest.mark.slow)], ids=["some", "more"]
)
def test_parity_with_plain_pytorch(
    ray_cluster: None, job: TrainJob, tmp_path: Path, cuts: tuple[dict[str, Any], ...]
) -> None:
    """Every ZeRO stage, two workers, packed and padded, with and without accumulation."""
    by_objective = [replace(job, objective=name) for name in PLAIN]
    by_cut = [with_training(replace(job, objective="DEFT"), **changes) for changes in cuts]
    results = deepspeed_runs(by_objective + by_cut, tmp_path)
    curves = {}
    for name, plain, result in zip(PLAIN, by_objective, results, strict=False):
        curves[name] = plain_curve(plain)
        assert result["objective"] == pytest.approx(curves[name], rel=2e-4), name
        assert curves[name][-1] < 0.99 * curves[name][0], f"{name} did not train"
        assert result["validation"][-1] < result["validation"][0]

    packed = results[list(PLAIN).index("DEFT")]
    assert packed["metrics"]["padding_share"] == 0
    for changes, result in zip(cuts, results[len(PLAIN) :], strict=True):
        assert result["objective"] == pytest.approx(curves["DEFT"], rel=2e-4), changes
        assert result["grad_norm"] == pytest.approx(packed["grad_norm"], rel=2e-3), changes
        assert result["validation"] == pytest.approx(packed["validation"], rel=1e-3), changes
        for name, weight in packed["weights"].items():
            torch.testing.assert_close(result["weights"][name], weight, rtol=1e-2, atol=1e-4)
        assert (result["metrics"]["padding_share"] > 0) == (
            not changes.get("packing", True) and changes.get("micro_batch_size") != 1
        )


def plain_gradient_norm(job: TrainJob) -> float:
    """Of the first step, whose loss is the mean over micro-batches of their means of NLL."""
    spec, rows = job.training, open_rows(job.rows_dir)
    model = AutoModelForCausalLM.from_pretrained(job.model_dir, dtype=torch.float32)
    indices = step_indices(len(rows), spec.batch_size, 0, job.seed)
    (micro_batches,) = split_into_micro_batches(indices, token_counts(rows), spec, world_size=1)
    for chosen in micro_batches:
        values = []
        for index in chosen:
            ids, labels = (torch.tensor(rows[index][key]) for key in ("input_ids", "labels"))
            logits = model(input_ids=ids[None]).logits[0, :-1]
            values.append(cross_entropy(logits, labels[1:], reduction="none")[labels[1:] != -100])
        (torch.cat(values).mean() / len(micro_batches)).backward()
    return float(torch.nn.utils.get_total_norm(p.grad for p in model.parameters()))


def test_parity_on_one_worker(ray_cluster: None, job: TrainJob, tmp_path: Path) -> None:
    alone = with_training(job, num_workers=1)
    jobs = [replace(alone, objective=name) for name in ("original", "Cayley_Trans")]
    jobs += [with_training(replace(alone, objective="DEFT"), zero_stage=3, packing=False)]
    first = with_training(replace(alone, num_steps=1), packing=False, micro_batch_size=1)
    reductions = [
        with_training(first, reduction=name)
        for name in ("global_tokens", "micro_batch", "micro_batch_sum")
    ]
    results = deepspeed_runs(jobs + reductions, tmp_path, num_workers=1)
    for plain, result in zip(jobs, results, strict=False):
        assert result["objective"] == pytest.approx(plain_curve(plain), rel=2e-4), plain.objective

    over_tokens, mean, total = (result["grad_norm"][0] for result in results[len(jobs) :])
    assert mean == pytest.approx(plain_gradient_norm(first), rel=1e-3)
    assert mean != pytest.approx(over_tokens, rel=3e-3)
    assert total == pytest.approx(SPEC.batch_size * mean, rel=1e-3)


def with_weights(job: TrainJob, directory: Path, *weights: float) -> TrainJob:
    """Give rows in turn a weight for all their tokens; none to a row whose turn is 1."""
    directory.mkdir()
    rows = open_rows(job.rows_dir)
    drawn = [weights[i % len(weights)] for i in range(len(rows))]
    columns = {
        "input_ids": rows["input_ids"][:],
        "labels": rows["labels"][:],
        "weights": [
            None if weight == 1 else [weight] * len(ids)
            for weight, ids in zip(drawn, rows["input_ids"], strict=True)
        ],
    }
    schema = pa.schema(row_fields())
    batch = pa.RecordBatch.from_pydict(columns, schema=schema)
    write_table([batch], schema, directory / "rows.arrow")
    return replace(job, rows_dir=str(directory))


def plain_first_step(job: TrainJob) -> tuple[float, float]:
    """Mean of the weighted values of the first step, and the norm of the reduction's gradient."""
    spec, rows, value = job.training, open_rows(job.rows_dir), PLAIN[job.objective]
    model = AutoModelForCausalLM.from_pretrained(job.model_dir, dtype=torch.float32)
    indices = step_indices(len(rows), spec.batch_size, 0, job.seed)
    plan = split_into_micro_batches(indices, token_counts(rows), spec, world_size=2)
    sums, counts, loss = [], [], torch.zeros(())
    for chosen in (micro_batch for rank in plan for micro_batch in rank):
        values = []
        for row in map(rows.__getitem__, chosen):
            ids, labels = torch.tensor(row["input_ids"]), torch.tensor(row["labels"])[1:]
            log_probs = model(input_ids=ids[None]).logits[0, :-1][labels != -100].log_softmax(-1)
            logp = log_probs.gather(1, labels[labels != -100][:, None])[:, 0]
            weights = torch.tensor(row["weights"] or [1.0] * len(ids))[1:][labels != -100]
            values.append(weights * value(logp, logp.exp(), log_probs.exp()))
        sums.append(torch.cat(values).sum())
        counts.append(len(torch.cat(values)))
    if spec.reduction == "global_tokens":
        loss = torch.stack(sums).sum() / sum(counts)
    else:
        loss = torch.stack([s / n for s, n in zip(sums, counts, strict=True)]).mean()
        loss = loss * (len(plan[0]) if spec.reduction == "micro_batch_sum" else 1)
    loss.backward()
    norm = torch.nn.utils.get_total_norm(p.grad for p in model.parameters())
    return torch.stack(sums).detach().sum().item() / sum(counts), float(norm)


WEIGHTED: tuple[dict[str, Any], ...] = (
    {"zero_stage": 2},
    {"zero_stage": 3, "packing": False, "reduction": "micro_batch"},
)
MORE_WEIGHTED: tuple[dict[str, Any], ...] = (
    {"zero_stage": 0, "reduction": "micro_batch_sum"},
    {"zero_stage": 3, "reduction": "micro_batch", "micro_batch_order": "data"},
    {"zero_stage": 1, "packing": False, "micro_batch_size": 1},
)


@pytest.mark.slow
@pytest.mark.parametrize("cuts", [WEIGHTED, MORE_WEIGHTED], ids=["some", "more"])
def test_weights_multiply_gradients_and_leave_the_number_of_tokens(
    ray_cluster: None, job: TrainJob, tmp_path: Path, cuts: tuple[dict[str, Any], ...]
) -> None:
    one_step = replace(job, num_steps=1)
    mixed = with_weights(one_step, tmp_path / "mixed", 0.5, 2.0, 1.0)
    jobs = [one_step, with_weights(one_step, tmp_path / "doubled", 2.0)]
    jobs += [
        with_training(replace(mixed, objective=name), **changes)
        for name, changes in zip(("original", "DEFT", "p"), cuts, strict=False)
    ]
    plain, doubled, *others = deepspeed_runs(jobs, tmp_path)
    assert doubled["objective"][0] == pytest.approx(2 * plain["objective"][0], rel=1e-6)
    assert doubled["grad_norm"][0] == pytest.approx(2 * plain["grad_norm"][0], rel=1e-5)
    assert doubled["validation"][0] == plain["validation"][0]
    for each, result in zip(jobs[2:], others, strict=True):
        objective, norm = plain_first_step(each)
        assert result["objective"][0] == pytest.approx(objective, rel=2e-4), each.training
        assert result["grad_norm"][0] == pytest.approx(norm, rel=1e-3), each.training


@pytest.mark.slow
def test_weights_multiply_the_gradients_of_adapters(
    ray_cluster: None, job: TrainJob, tmp_path: Path
) -> None:
    lora = LoraSpec(rank=4, alpha=8, targets=("q_proj", "down_proj"))
    one_step = replace(job, num_steps=1, objective="SFT_KL-0.1")
    doubled = with_weights(one_step, tmp_path / "doubled", 2.0)
    jobs = [
        with_training(each, lora=lora, zero_stage=stage)
        for stage in (2, 3)
        for each in (one_step, doubled)
    ]
    results = deepspeed_runs(jobs, tmp_path)
    for plain, weighted in zip(results[::2], results[1::2], strict=True):
        assert weighted["grad_norm"][0] == pytest.approx(2 * plain["grad_norm"][0], rel=1e-4)


# An untrained model gives every token about 1/1024: thresholds there split the tokens.
TOKEN_LOCAL = [
    info.example.replace("-0.5", "-0.00098") if info.name.startswith("Only") else info.example
    for info in CATALOG.values()
    if get_objective(info.example).token_local
]


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["DEFT", "OnlyTopP-0.00098", "EAFT", "GEM", "SFT_KL-0.1"], id="some"),
        pytest.param(TOKEN_LOCAL, id="all", marks=pytest.mark.slow),
    ],
)
def test_gradient_does_not_depend_on_the_cut(
    ray_cluster: None, job: TrainJob, tmp_path: Path, names: list[str]
) -> None:
    """Objectives that read one token at a time, under two cuts and two ZeRO stages."""
    changes: tuple[dict[str, Any], ...] = (
        {"micro_batch_size": 4, "zero_stage": 2},
        {"micro_batch_size": 1, "zero_stage": 3, "packing": False},
    )
    jobs = [
        with_training(replace(job, objective=name, num_steps=2), **change)
        for name in names
        for change in changes
    ]
    results = deepspeed_runs(jobs, tmp_path)
    for name, coarse, fine in zip(names, results[::2], results[1::2], strict=True):
        # The second step's objective is measured after an update by the first step's gradient.
        assert fine["objective"] == pytest.approx(coarse["objective"], rel=1e-4, abs=1e-9), name
        assert fine["grad_norm"] == pytest.approx(coarse["grad_norm"], rel=2e-3, abs=1e-9), name


def test_adapters_train_alone_and_are_merged_on_export(
    ray_cluster: None, job: TrainJob, tmp_path: Path
) -> None:
    lora = LoraSpec(rank=4, alpha=8, targets=("q_proj", "down_proj"))
    stages = [
        with_training(replace(job, objective=name), lora=lora, zero_stage=stage)
        for name, stage in (("DEFT", 0), ("DEFT", 2), ("DEFT", 3), ("SFT_KL-0.1", 2))
    ]
    results = deepspeed_runs(stages, tmp_path)
    base = AutoModelForCausalLM.from_pretrained(job.model_dir).state_dict()
    first = results[0]
    assert first["weights"].keys() == base.keys()
    for name, weight in base.items():
        adapted = name.endswith(("q_proj.weight", "down_proj.weight"))
        assert torch.equal(first["weights"][name], weight) != adapted, name
    assert first["objective"][-1] < 0.99 * first["objective"][0]
    for result in results[1:3]:
        assert result["objective"] == pytest.approx(first["objective"], rel=2e-4)
        for name, weight in first["weights"].items():
            torch.testing.assert_close(result["weights"][name], weight, rtol=1e-2, atol=1e-4)
    # Before the first update the model is its own reference, and the divergence is zero.
    assert results[3]["objective"][0] == pytest.approx(first_nll(job), rel=1e-4)


def first_nll(job: TrainJob) -> float:
    return plain_curve(replace(job, objective="original", num_steps=1))[0]


PAPER = TrainingSpec(
    **{**PAPER_PROTOCOL["training"], "learning_rate": 1e-3},
    batch_size=8,
    micro_batch_size=2,
    max_length=256,
)


def original_trainer(job: TrainJob, world_size: int) -> tuple[list[float], list[float]]:
    """Objective and gradient norm per step as the trainer of arXiv 2602.11424 is described.

    The sampler deals examples out to the ranks; a rank's share of a step is cut in order into
    micro-batches, each padded to `max_length`; the mean of a micro-batch is backpropagated, so a
    step has the sum of their gradients, averaged over ranks in float32; it is clipped, and AdamW
    updates the weights in their own dtype.
    """
    spec, value = job.training, PLAIN[job.objective]
    rows = open_rows(job.rows_dir)
    dtype = {"bfloat16": torch.bfloat16, "float32": torch.float32}[spec.dtype]
    model = AutoModelForCausalLM.from_pretrained(job.model_dir, dtype=dtype)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        parameters, spec.learning_rate, spec.betas, weight_decay=spec.weight_decay
    )
    warmup = int(spec.warmup_ratio * job.num_steps)
    schedule = get_cosine_schedule_with_warmup(optimizer, warmup, job.num_steps)
    curve, norms = [], []
    for step in range(job.num_steps):
        order = step_indices(len(rows), spec.batch_size, step, job.seed)
        shares = [order[rank::world_size] for rank in range(world_size)]
        total = [torch.zeros_like(p) for p in parameters]
        values_of_step = []
        for start in range(0, len(shares[0]), spec.micro_batch_size):
            on_ranks = []
            for share in shares:
                chosen = share[start : start + spec.micro_batch_size]
                ids = torch.zeros(len(chosen), spec.max_length, dtype=torch.long)
                labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
                for place, index in enumerate(chosen):
                    length = len(rows[index]["input_ids"])
                    ids[place, :length] = torch.tensor(rows[index]["input_ids"])
                    labels[place, :length] = torch.tensor(rows[index]["labels"])
                    mask[place, :length] = 1
                logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].flatten(0, 1)
                targets = labels[:, 1:].flatten()
                kept = targets != -100
                log_probs = logits[kept].float().log_softmax(-1)
                logp = log_probs.gather(1, targets[kept][:, None])[:, 0]
                values = value(logp, logp.exp(), log_probs.exp())
                (values.sum() / (kept.sum() + 1e-8)).backward()
                on_ranks.append([p.grad.float() for p in parameters])  # type: ignore[union-attr]
                optimizer.zero_grad()
                values_of_step.append(values.detach())
            for summed, *gradients in zip(total, *on_ranks, strict=True):
                summed += torch.stack(gradients).mean(0).to(dtype)
        for parameter, gradient in zip(parameters, total, strict=True):
            parameter.grad = gradient
        norms.append(float(torch.nn.utils.clip_grad_norm_(parameters, spec.max_grad_norm)))
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        curve.append(float(torch.cat(values_of_step).mean()))
    return curve, norms


@pytest.mark.parametrize(
    ("names", "num_steps"),
    [
        pytest.param(["Cayley_Trans"], 4, id="some"),
        pytest.param(list(PLAIN), STEPS, id="all", marks=pytest.mark.slow),
    ],
)
def test_protocol_of_the_paper_is_its_trainer(
    ray_cluster: None,
    make_job: Callable[..., TrainJob],
    tmp_path: Path,
    names: list[str],
    num_steps: int,
) -> None:
    job = make_job(PAPER, objective="original", num_steps=num_steps)
    rounded = [replace(job, objective=name) for name in names]
    exact = [with_training(each, dtype="float32", master_dtype="float32") for each in rounded]
    results = deepspeed_runs([*exact, *rounded], tmp_path)
    for each, result in zip([*exact, *rounded], results, strict=True):
        curve, norms = original_trainer(each, world_size=2)
        is_exact = each in exact
        name = f"{each.objective}, {each.training.dtype}"
        assert result["objective"] == pytest.approx(curve, rel=2e-4 if is_exact else 1e-2), name
        assert result["grad_norm"] == pytest.approx(norms, rel=2e-3 if is_exact else 5e-2), name
