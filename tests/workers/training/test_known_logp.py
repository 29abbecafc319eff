"""Objectives that read other models or examples, by DeepSpeed and by a plain PyTorch loop."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, get_cosine_schedule_with_warmup

from deft.objectives import get_objective
from deft.workers.data.example_store import open_rows
from deft.workers.modeling.known_logp import FOLDER, KnownLogp
from deft.workers.modeling.objective_model import example_and_position
from deft.workers.spec import TrainingSpec
from deft.workers.training.batches import collate, step_indices
from deft.workers.training.job import TrainJob
from helpers import deepspeed_runs

SPEC = TrainingSpec(
    batch_size=8,
    micro_batch_size=2,
    micro_batch_order="data",
    max_length=256,
    learning_rate=2e-3,
    dtype="float32",
    old_policy_every=3,
)
NUM_STEPS = 9
"""More than the seven steps of an epoch: what is stored is read a second time."""

Values = Callable[[dict[str, Tensor]], tuple[Tensor, Tensor]]
"""One example's statistics, [T] each, → values and which tokens are kept, [T] each."""


def everything(values: Tensor) -> tuple[Tensor, Tensor]:
    return values, torch.ones_like(values, dtype=torch.bool)


def sequence_ratio(stats: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    ratio = (stats["logp"].detach() - stats["reference"]).mean().exp().clamp(0, 16)
    return everything(-ratio * stats["logp"])


def token_ratio(stats: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    ratio = (stats["logp"].detach() - stats["reference"]).exp().clamp(0.2, 1.8)
    return everything(-ratio * stats["logp"])


def proximal(stats: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    ratio = (stats["logp"] - stats["old"]).exp()
    return everything(-torch.minimum(ratio, ratio.clamp(0.8, 1.28)))


def cleaned(stats: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    score = stats["reference"] - stats["initial"]
    kept = torch.zeros_like(score, dtype=torch.bool)
    kept[score.topk(int(0.6 * len(score))).indices] = True
    return -stats["logp"], kept


def reweighted(stats: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    weight = (stats["logp"].detach() / stats["tau"]).exp().clamp(min=0.01)
    return everything(-weight * stats["logp"])


def polylog(stats: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    gamma = (-(stats["logp"] + stats["entropy"]).detach()).exp().clamp(0.1, 2)
    return everything(-(stats["logp"].exp() ** gamma) * stats["logp"])


def banded(stats: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return everything(-stats["logp"] * (stats["logp"].detach().exp() >= 0.001))


PLAIN: dict[str, Values] = {
    "iwSFT": sequence_ratio,
    "PSFT": proximal,
    "TALR": reweighted,
    "TokenCleaning": cleaned,
    "iwSFT_token": token_ratio,
    "IDFT": polylog,
    "ProFit-0.001": banded,
}
DEFAULT = ("PSFT", "TokenCleaning")
"""Those that the default suite trains; the others are slow."""


def predicted(model: PreTrainedModel, row: dict[str, list[int]]) -> dict[str, Tensor]:
    ids, labels = (torch.tensor(row[key]) for key in ("input_ids", "labels"))
    log_probs = model(input_ids=ids[None]).logits[0, :-1][labels[1:] != -100].log_softmax(-1)
    targets = labels[1:][labels[1:] != -100]
    return {
        "logp": log_probs.gather(1, targets[:, None])[:, 0],
        "entropy": -(log_probs.exp() * log_probs).sum(-1),
    }


def plain_curve(job: TrainJob) -> list[float]:
    """Objective per step of a single-process float32 trainer, one example at a time."""
    spec, values_of, rows = job.training, PLAIN[job.objective], open_rows(job.rows_dir)
    model = AutoModelForCausalLM.from_pretrained(job.model_dir, dtype=torch.float32)
    initial = AutoModelForCausalLM.from_pretrained(job.model_dir, dtype=torch.float32)
    reference = AutoModelForCausalLM.from_pretrained(spec.reference or job.model_dir)
    optimizer = torch.optim.AdamW(
        model.parameters(), spec.learning_rate, spec.betas, weight_decay=spec.weight_decay
    )
    warmup = int(spec.warmup_ratio * job.num_steps)
    schedule = get_cosine_schedule_with_warmup(optimizer, warmup, job.num_steps)
    curve = []
    for step in range(job.num_steps):
        if step % spec.old_policy_every == 0:
            old = copy.deepcopy(model)
        order = step_indices(len(rows), spec.batch_size, step, job.seed)
        parts = []
        for rank in range(2):
            share = order[rank::2]
            for start in range(0, len(share), spec.micro_batch_size):
                micro_batch = [rows[i] for i in share[start : start + spec.micro_batch_size]]
                stats = [predicted(model, row) for row in micro_batch]
                losses = torch.stack([-each["logp"].mean() for each in stats])
                for row, each in zip(micro_batch, stats, strict=True):
                    with torch.no_grad():
                        others = {"reference": reference, "initial": initial, "old": old}
                        each |= {name: predicted(m, row)["logp"] for name, m in others.items()}
                    parts.append(values_of(each | {"tau": losses.median().detach()}))
        values, kept = (torch.cat(column) for column in zip(*parts, strict=True))
        loss = values[kept].mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), spec.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        curve.append(loss.item())
    return curve


@pytest.fixture(scope="module")
def other_model(make_job: Callable[..., TrainJob], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Make a model of the same tokenizer with other weights."""
    job = make_job(SPEC, objective="original", num_steps=1)
    model = AutoModelForCausalLM.from_pretrained(job.model_dir)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    directory = tmp_path_factory.mktemp("other")
    model.save_pretrained(directory)
    return str(directory)


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(DEFAULT, id="some"),
        pytest.param(
            [name for name in PLAIN if name not in DEFAULT], id="others", marks=pytest.mark.slow
        ),
    ],
)
def test_curves_are_those_of_a_plain_trainer(
    ray_cluster: None,
    make_job: Callable[..., TrainJob],
    other_model: str,
    tmp_path: Path,
    names: tuple[str, ...],
) -> None:
    jobs = []
    for index, name in enumerate(names):
        reads_reference = "reference_logp" in get_objective(name).context
        changes = {
            "reference": other_model if reads_reference else None,
            "zero_stage": (3, 2)[index % 2],
            "packing": index % 2 == 0,
        }
        training = TrainingSpec(**{**dict(SPEC), **changes})
        jobs.append(make_job(training, objective=name, num_steps=NUM_STEPS))
    for job, result in zip(jobs, deepspeed_runs(jobs, tmp_path), strict=True):
        curve = result["objective"]
        assert curve == pytest.approx(plain_curve(job), rel=5e-4), job.objective
    stored = list((Path(jobs[0].rows_dir).parent / FOLDER).glob("*/*-of-2.npz"))
    assert len(stored) % 2 == 0
    assert stored


@pytest.mark.parametrize("packing", [True, False])
def test_tokens_are_numbered_within_their_example(packing: bool) -> None:
    rows = [
        {"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]},
        {"input_ids": [5, 6, 7], "labels": [-100, 6, -100]},
        {"input_ids": [9, 9, 9, 9, 9], "labels": [-100, 9, -100, 9, 9]},
    ]
    batch = collate(rows, 0, torch.device("cpu"), packing=packing)
    targets = batch["labels"][:, 1:]
    places = example_and_position(targets, batch.get("cu_seq_lens"))
    kept = (targets != -100).flatten()
    assert places["example"][kept].tolist() == [0, 0, 1, 2, 2, 2]
    assert places["position"][kept].tolist() == [0, 1, 0, 0, 1, 2]


def test_known_values_follow_the_rows() -> None:
    by_row = {i: torch.arange(i, 2 * i, dtype=torch.float32).numpy() for i in (3, 1, 2)}
    known = KnownLogp({"old_logp": by_row})
    device = torch.device("cpu")
    assert known.of([2, 3], device)["old_logp"].tolist() == [2, 3, 3, 4, 5]
    assert known.of([], device)["old_logp"].shape == (0,)
