"""A step without finite loss or gradient on one rank is skipped by all, and a run of them ends."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray.train
import torch
from ray.train.torch import TorchTrainer

from deft.workers.spec import TrainingSpec
from deft.workers.training.job import TrainJob

STEPS, POISONED = 5, 3
SPEC = TrainingSpec(
    batch_size=8, micro_batch_size=2, max_length=256, learning_rate=2e-3, dtype="float32"
)
PRECISIONS: tuple[dict[str, Any], ...] = (
    {"zero_stage": 0},
    {"zero_stage": 3},
    {"zero_stage": 2, "dtype": "bfloat16"},
)
MORE_PRECISIONS: tuple[dict[str, Any], ...] = (
    {"zero_stage": 1},
    {"zero_stage": 2, "offload_optimizer": True},
    {"zero_stage": 3, "offload_optimizer": True},
    {"zero_stage": 0, "dtype": "bfloat16"},
    {"zero_stage": 3, "dtype": "bfloat16"},
)


@pytest.fixture(scope="module")
def job(make_job: Callable[..., TrainJob]) -> TrainJob:
    return make_job(SPEC, objective="DEFT", num_steps=STEPS)


def poisoned_runs(config: dict[str, Any]) -> None:
    """Train every job with NaN put into rank 1's hidden states or their gradient in some steps."""
    import tempfile

    from deft.workers.training.ray_entry import prepare_process

    prepare_process()
    from deft.workers.modeling import objective_model as head
    from deft.workers.training import sft_loop

    rank = ray.train.get_context().get_world_rank()
    state: dict[str, Any] = {}
    real_hidden, real_step = head.last_hidden, sft_loop.train_step

    def last_hidden(*arguments: Any) -> Any:
        hidden = real_hidden(*arguments)
        if rank == 1 and state["step"] in state["poisoned"]:
            if state["where"] == "loss":
                return hidden * math.nan
            hidden.register_hook(lambda gradient: gradient * math.nan)
        return hidden

    def train_step(*arguments: Any) -> Any:
        state["step"] += 1
        return real_step(*arguments)

    class Events:
        def __init__(self) -> None:
            self.seen: list[dict[str, Any]] = []

        def put(self, event: dict[str, Any]) -> None:
            self.seen.append(event)

    def keep_weights(engine: Any, *_: Any) -> None:
        state["finite"] = all(
            bool(torch.isfinite(parameter).all()) for parameter in engine.module.parameters()
        )

    head.last_hidden, sft_loop.train_step = last_hidden, train_step
    sft_loop.save_checkpoint = keep_weights
    results = []
    for job, poisoned, where in config["runs"]:
        state.update(step=0, poisoned=poisoned, where=where, finite=None)
        events, error = Events(), ""
        try:
            sft_loop.train(replace(job, events=events))
        except FloatingPointError as raised:
            error = str(raised)
        results.append({"events": events.seen, "error": error, "finite": state["finite"]})
    with tempfile.TemporaryDirectory() as directory:
        torch.save(results, Path(directory, "results.pt"))
        checkpoint = ray.train.Checkpoint.from_directory(directory) if rank == 0 else None
        ray.train.report({}, checkpoint=checkpoint)


@pytest.mark.parametrize(
    "precisions",
    [PRECISIONS, pytest.param(MORE_PRECISIONS, marks=pytest.mark.slow)],
    ids=["some", "more"],
)
def test_steps_without_finite_gradient(
    ray_cluster: None, job: TrainJob, tmp_path: Path, precisions: tuple[dict[str, Any], ...]
) -> None:
    jobs = [
        replace(job, training=TrainingSpec(**{**dict(SPEC), **changes})) for changes in precisions
    ]
    once = [(one, {POISONED}, where) for one in jobs for where in ("loss", "gradient")]
    always = [(jobs[1], {2, 3, 4, 5}, where) for where in ("loss", "gradient")]
    result = TorchTrainer(
        poisoned_runs,
        train_loop_config={"runs": once + always},
        scaling_config=ray.train.ScalingConfig(num_workers=2),
        run_config=ray.train.RunConfig(storage_path=str(tmp_path)),
    ).fit()
    assert result.checkpoint is not None
    results = torch.load(Path(result.checkpoint.path, "results.pt"))

    for (one, _, where), outcome in zip(once, results, strict=False):
        what = (one.training.zero_stage, one.training.dtype, where)
        assert outcome["error"] == "", what
        assert outcome["finite"], what
        skipped = [e["step"] for e in outcome["events"] if e["event"] == "skipped_step"]
        taken = [e["step"] for e in outcome["events"] if e["event"] == "train"]
        assert skipped == [POISONED], what
        (problem,) = (
            e["metrics"]["problem"] for e in outcome["events"] if "problem" in e["metrics"]
        )
        expected = "on rank 1 the logits are not" if where == "loss" else "the gradient norm is"
        assert problem.startswith(expected), what
        assert sorted(skipped + taken) == list(range(1, STEPS + 1)), what

    in_loss, in_gradient = results[len(once) :]
    assert in_loss["error"].startswith("on rank 1 the logits are not finite in ")
    assert in_gradient["error"].startswith("the gradient norm is ")
    for outcome in (in_loss, in_gradient):
        assert "at step 4, and so in each of the 3 steps up to it" in outcome["error"]
        assert "The examples of this step: figfont/" in outcome["error"]
