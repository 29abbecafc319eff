"""Real DeepSpeed on two Ray Train workers against a plain PyTorch loop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import load_from_disk
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    get_cosine_schedule_with_warmup,
)

from deft.objectives import CATALOG, get_objective
from deft.workers.batches import collate, micro_batches, step_indices
from deft.workers.head import ObjectiveModel
from deft.workers.job import TrainJob
from deft.workers.prepare import prepare
from deft.workers.spec import DatasetSpec, ModelSpec, TrainingSpec

STEPS = 20
SPEC = TrainingSpec(
    batch_size=8, micro_batch_size=2, max_length=256, learning_rate=2e-3, dtype="float32"
)
OBJECTIVES = ("original", "p", "Cayley_Trans", "DEFT", "OnlyTopLogP-0.0009", "ASFT")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TrainJob:
    prepared = prepare(
        DatasetSpec(name="figfont", size=60),
        ModelSpec(name="tiny"),
        max_length=SPEC.max_length,
        seed=0,
        cache=tmp_path_factory.mktemp("cache"),
    )
    return TrainJob(
        training=SPEC,
        objective="original",
        model_dir=prepared.model_dir,
        rows_dir=prepared.rows_dir,
        num_steps=STEPS,
        seed=0,
        events=None,
    )


def plain_curve(job: TrainJob, world_size: int) -> list[float]:
    """Objective per step of a single-process float32 trainer; what all others must match."""
    spec = job.training
    rows = load_from_disk(job.rows_dir)
    lengths = [len(ids) for ids in rows["input_ids"]]
    pad = AutoTokenizer.from_pretrained(job.model_dir).pad_token_id
    objective = get_objective(job.objective)
    model, reference = (
        AutoModelForCausalLM.from_pretrained(job.model_dir, dtype=torch.float32) for _ in range(2)
    )
    model = ObjectiveModel(model, objective, reference if objective.needs_reference else None)
    optimizer = torch.optim.AdamW(
        model.parameters(), spec.learning_rate, spec.betas, weight_decay=spec.weight_decay
    )
    warmup = int(spec.warmup_ratio * job.num_steps)
    schedule = get_cosine_schedule_with_warmup(optimizer, warmup, job.num_steps)
    curve = []
    for step in range(job.num_steps):
        indices = step_indices(len(rows), spec.batch_size, step, job.seed)
        outputs = [
            model(**collate([rows[i] for i in chosen], pad, torch.device("cpu")))
            for rank in range(world_size)
            for chosen in micro_batches(
                indices,
                lengths,
                rank=rank,
                world_size=world_size,
                micro_batch_size=spec.micro_batch_size,
            )
        ]
        kept = sum(tokens["kept"].sum() for _, tokens in outputs)
        loss = sum(total for total, _ in outputs) / kept.clamp(min=1)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), spec.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        curve.append(loss.item())
    return curve


def deepspeed_runs(jobs: list[TrainJob], storage: Path) -> list[dict[str, Any]]:
    """Train several jobs in one pair of workers; the last step of each exports the model.

    Returns for each job its objective per step, its gradient norms, and its exported weights.
    """
    import ray.train
    from ray.train.torch import TorchTrainer

    def run_all(config: dict[str, Any]) -> None:
        import tempfile

        from deft.workers.job import prepare_process

        prepare_process()
        from deft.workers import sft_loop

        class Events:
            def __init__(self) -> None:
                self.metrics: list[dict[str, float]] = []

            def put(self, event: dict[str, Any]) -> None:
                self.metrics.append(event["metrics"])

        results = []
        for job in config["jobs"]:
            events = Events()
            with tempfile.TemporaryDirectory() as directory:

                def export(
                    engine: Any, tokenizer: Any, *_: Any, directory: str = directory, **__: Any
                ) -> None:
                    sft_loop.export_model(engine, tokenizer, Path(directory))

                # One Ray Train run stands for many here: none resumes from another's checkpoint.
                sft_loop.resume = lambda engine: 0
                sft_loop.save_checkpoint = export
                sft_loop.train(replace(job, events=events))
                if ray.train.get_context().get_world_rank() == 0:
                    exported = AutoModelForCausalLM.from_pretrained(directory)
                    results.append(
                        {
                            "objective": [m["objective"] for m in events.metrics],
                            "grad_norm": [m["grad_norm"] for m in events.metrics],
                            "weights": exported.state_dict(),
                        }
                    )
        with tempfile.TemporaryDirectory() as directory:
            torch.save(results, Path(directory, "results.pt"))
            rank = ray.train.get_context().get_world_rank()
            checkpoint = ray.train.Checkpoint.from_directory(directory) if rank == 0 else None
            ray.train.report({}, checkpoint=checkpoint)

    result = TorchTrainer(
        run_all,
        train_loop_config={"jobs": jobs},
        scaling_config=ray.train.ScalingConfig(num_workers=2),
        run_config=ray.train.RunConfig(storage_path=str(storage)),
    ).fit()
    assert result.checkpoint is not None
    loaded: list[dict[str, Any]] = torch.load(Path(result.checkpoint.path, "results.pt"))
    return loaded


def test_deepspeed_matches_plain_pytorch(ray_cluster: None, job: TrainJob, tmp_path: Path) -> None:
    by_objective = [replace(job, objective=name) for name in OBJECTIVES]
    by_stage = [
        replace(
            job,
            objective="DEFT",
            training=SPEC.model_copy(update={"zero_stage": stage, "micro_batch_size": size}),
        )
        for stage, size in ((0, 2), (1, 4), (3, 2), (3, 1))
    ]
    by_cut = [
        replace(
            job,
            objective="Cayley_Trans",
            training=SPEC.model_copy(update={"floor_scope": "step", "micro_batch_size": size}),
        )
        for size in (4, 1)
    ]
    results = deepspeed_runs(by_objective + by_stage + by_cut, tmp_path)
    for name, job_, result in zip(OBJECTIVES, by_objective, results, strict=False):
        curve = plain_curve(job_, world_size=2)
        assert result["objective"] == pytest.approx(curve, rel=2e-4), name
        assert curve[-1] != pytest.approx(curve[0], rel=1e-2), f"{name} did not train"

    deft = results[OBJECTIVES.index("DEFT")]
    for job_, result in zip(by_stage, results[len(OBJECTIVES) : -2], strict=True):
        stage, size = job_.training.zero_stage, job_.training.micro_batch_size
        where = f"ZeRO-{stage}, micro-batches of {size}"
        # DEFT reads no batch statistic: neither the cut nor the sharding may matter.
        assert result["objective"] == pytest.approx(deft["objective"], rel=2e-4), where
        assert result["grad_norm"] == pytest.approx(deft["grad_norm"], rel=2e-3), where
        for name, weight in deft["weights"].items():
            torch.testing.assert_close(result["weights"][name], weight, rtol=1e-2, atol=1e-4)

    coarse, fine = results[-2:]
    assert fine["objective"] == pytest.approx(coarse["objective"], rel=2e-4)


def test_gradient_does_not_depend_on_the_cut(
    ray_cluster: None, job: TrainJob, tmp_path: Path
) -> None:
    """Every objective that reads one token at a time, under two cuts and two ZeRO stages."""
    # An untrained model gives every token about 1/1024: thresholds there split the tokens.
    names = [
        info.example.replace("-0.5", "-0.00098") if info.name.startswith("Only") else info.example
        for info in CATALOG.values()
        if get_objective(info.example).token_local
    ]
    assert len(names) > 15
    jobs = [
        replace(
            job,
            objective=name,
            num_steps=2,
            training=SPEC.model_copy(update={"micro_batch_size": size, "zero_stage": stage}),
        )
        for name in names
        for size, stage in ((4, 2), (1, 3))
    ]
    results = deepspeed_runs(jobs, tmp_path)
    for name, coarse, fine in zip(names, results[::2], results[1::2], strict=True):
        # The second step's objective is measured after an update by the first step's gradient.
        assert fine["objective"] == pytest.approx(coarse["objective"], rel=1e-4, abs=1e-9), name
        assert fine["grad_norm"] == pytest.approx(coarse["grad_norm"], rel=2e-3, abs=1e-9), name
