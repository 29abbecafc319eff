"""Sweeps on real parts: killed and started again, failures isolated, everything given back."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import ray
import yaml
from mlflow import MlflowClient
from ray.util import placement_group_table

from deft.platform.console import RunConsole
from deft.platform.records.manifests import (
    EvaluateManifest,
    ModelResult,
    RecordManifest,
    manifest_file,
    require_manifest,
    save_manifest,
)
from deft.sweeps.cells import Plan, load_sweep
from deft.sweeps.directory import SweepDirectory
from deft.sweeps.progress import SweepView
from deft.sweeps.run import run_cells
from deft.sweeps.watch import CellWatch
from helpers import make_evaluate_manifest, wait_until

BASE = {
    "dataset": {"name": "figfont", "size": 60},
    "model": "tiny",
    "training": {"num_workers": 1, "max_steps": 4, "batch_size": 8, "max_length": 256},
    "evaluation": {
        "general": False,
        "benchmarks": [{"name": "figfont", "size": 4, "max_tokens": 8}],
        "engine": {"kv_cache_gib": 0.25, "cpus": 1},
    },
}

FAILING = """
import torch
from deft.objectives import objective
from deft.objectives.functions.deformed import original

@objective()
def fragile(stats):
    # The check before training runs in no process group.
    if torch.distributed.is_initialized():
        raise RuntimeError("the objective of this test fails on purpose")
    return original(stats)
"""

FINISHED = (
    make_evaluate_manifest({"eval": ModelResult(directory="model")}),
    RecordManifest(mlflow_run_id="0" * 32),
)
"""What tells that a run was evaluated and recorded."""

Deft = Callable[..., CompletedProcess[str]]


def write_sweep(tmp_path: Path, **sweep: Any) -> Path:
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump({"base": BASE, **sweep}, sort_keys=False))
    return file


def taken_placement_groups() -> list[str]:
    return [
        group["placement_group_id"]
        for group in placement_group_table().values()
        if group["state"] != "REMOVED"
    ]


@pytest.mark.slow
def test_killed_sweep_goes_on_and_a_failing_cell_fails_alone(
    deft: Deft, tmp_path: Path, ray_address: str, fault: Callable[..., None]
) -> None:
    (tmp_path / "fragile_objective.py").write_text(FAILING)
    objectives = ["original", "DEFT", "fragile_objective:fragile"]
    file = write_sweep(
        tmp_path, grid={"objective": objectives, "seed": [0]}, retries=0, max_concurrent=2
    )
    root = tmp_path / "runs"
    taken = taken_placement_groups()
    free = ray.cluster_resources()["CPU"]
    finished_before = kill_after_a_cell(file, root, ray_address)
    wait_until(lambda: ray.available_resources().get("CPU") == free, "devices given back")

    done = deft("sweep", file.name, RAY_ADDRESS=ray_address)
    assert done.returncode == 1
    assert "1 of 3 cells failed" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert "fails on purpose" in done.stdout
    assert "finished already" in done.stdout
    (directory,) = (root / "sweeps").iterdir()
    (failure,) = (directory / "failures").iterdir()
    assert "fails on purpose" in json.loads(failure.read_text())["cause"]

    for manifest, written in finished_before.items():
        assert manifest.stat().st_mtime_ns == written, "a finished cell was run again"
    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("deft")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "params.objective LIKE '%'")
    assert sorted(run.data.params["objective"] for run in runs) == sorted(objectives)
    for run in runs:
        if run.data.params["objective"] != "fragile_objective:fragile":
            history = client.get_metric_history(run.info.run_id, "train/nll")
            assert [point.step for point in history] == [1, 2, 3, 4]

    wait_until(lambda: ray.available_resources().get("CPU") == free, "devices given back")
    wait_until(lambda: taken_placement_groups() == taken, "placement groups given back")
    # The base model is the same for all cells, so it was asked once.
    bases = list((root / "cache" / "evaluations").glob("*/evaluate.json"))
    assert len(bases) == 1

    whole = deft("sweep", file.name, "--root", "whole", RAY_ADDRESS=ray_address)
    assert whole.returncode == 1
    (undisturbed,) = (tmp_path / "whole" / "sweeps").iterdir()
    assert results_in(directory) == results_in(undisturbed)
    fault(
        "kill -9 of a sweep's driver",
        "the same command ends in the same report; no finished cell is run again",
        seconds="it is started again",
    )


def results_in(sweep: Path) -> str:
    """Return the report without when and how long, which is from its chapter on cost on."""
    report = (sweep / "report" / "report.md").read_text()
    results, cost, _ = report.partition("## Cost")
    assert cost
    return results.partition("## Answer")[2]


def kill_after_a_cell(file: Path, root: Path, ray_address: str) -> dict[Path, int]:
    """Kill -9 the driver at a random moment after its first cell; what was finished, and when."""
    command = [Path(sys.executable).with_name("deft"), "sweep", file.name]
    with subprocess.Popen(
        command,
        cwd=file.parent,
        env={**os.environ, "RAY_ADDRESS": ray_address},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as driver:
        finished = lambda: list(root.glob("*/stages/record.json"))  # noqa: E731
        wait_until(
            lambda: bool(finished()) or driver.poll() is not None, "a finished cell", seconds=300
        )
        time.sleep(random.Random(str(file)).uniform(0, 5))
        driver.kill()
    assert finished()
    return {manifest: manifest.stat().st_mtime_ns for manifest in finished()}


def laid_out(file: Path, root: Path) -> tuple[Plan, SweepDirectory]:
    """Create a sweep's directory, with nothing run yet."""
    plan = load_sweep(file, root)
    directory = SweepDirectory.of(plan, root)
    directory.create(plan)
    return plan, directory


def run_stubs(
    plan: Plan, directory: SweepDirectory, stub: Callable[[dict[str, Any]], None], *, at_once: int
) -> list[str]:
    """Run ``stub`` for every cell; return the runs that have ended, in that order."""
    ended: list[str] = []
    view = SweepView(directory, {cell.run: cell for cell in plan.cells}, RunConsole())
    watch = CellWatch(directory, view, ended.append)
    run_cells(plan.spec, plan.cells, stub, watch, num_parallel=at_once)
    return ended


def test_many_cells_run_on_a_few_actors(ray_cluster: None, tmp_path: Path) -> None:
    """With a trial that only leaves what a finished run leaves; one fails at first, one dies."""
    grid = {"objective": ["original", "DEFT"], "seed": list(range(5))}
    plan, directory = laid_out(write_sweep(tmp_path, grid=grid), tmp_path / "runs")
    root = str(directory.root)
    failing, dying = plan.cells[1].run, plan.cells[7].run

    def stub(config: dict[str, Any]) -> None:
        from pathlib import Path

        run = Path(root, config["run"])
        failed_before = run.exists()
        run.mkdir(parents=True, exist_ok=True)
        if config["run"] == failing and not failed_before:
            raise RuntimeError("not this time")
        if config["run"] == dying and not failed_before:
            os._exit(1)
        for manifest in FINISHED:
            save_manifest(manifest_file(run, manifest.stage), manifest)

    ended = run_stubs(plan, directory, stub, at_once=8)
    assert all(directory.is_finished(cell.run) for cell in plan.cells)
    assert sorted(ended) == sorted(cell.run for cell in plan.cells)


def test_asha_stops_a_cell_that_others_are_ahead_of(ray_cluster: None, tmp_path: Path) -> None:
    """With a trial that only reports; its held-out loss grows with the seed."""
    asha = {"grace_steps": 2, "reduction_factor": 2}
    file = write_sweep(
        tmp_path, grid={"objective": ["DEFT"], "seed": [0, 1]}, asha=asha, max_concurrent=1
    )
    plan, directory = laid_out(file, tmp_path / "runs")
    root, sweep = directory.root, directory.path.name

    def stub(config: dict[str, Any]) -> None:
        from deft.sweeps.trial import report_validation

        run = config["run"]
        spec = SweepDirectory(root, sweep).read_spec(run)
        for step in (0, 1, 2, 3):
            report_validation(step, {"nll": 2.0 + spec.seed - step / 10})
        for manifest in FINISHED:
            save_manifest(manifest_file(root / run, manifest.stage), manifest)

    ended = run_stubs(plan, directory, stub, at_once=1)
    ahead, behind = (cell.run for cell in plan.cells)
    assert ended == [ahead, behind]
    assert directory.is_finished(ahead)
    assert directory.failure(ahead) is None
    assert not directory.is_evaluated(behind)
    assert "others were ahead of it" in str(directory.failure(behind))


@pytest.mark.slow
def test_a_model_of_the_sweep_is_trained_first(
    deft: Deft, tmp_path: Path, ray_address: str
) -> None:
    file = write_sweep(
        tmp_path,
        models={"strong": {"objective": "original", "training": {"max_steps": 8}}},
        grid={"model": ["strong", "tiny"], "objective": ["p", "DEFT"]},
        exclude=[{"objective": "p"}],
        overrides=[{"match": {"model": "tiny"}, "set": {"training.warmup_ratio": 0.2}}],
    )
    done = deft("sweep", file.name, RAY_ADDRESS=ray_address)
    assert done.returncode == 0, done.stderr
    plan = load_sweep(file, tmp_path / "runs")
    strong, tiny = plan.cells
    losses = {}
    for cell in (strong, tiny):
        manifest = require_manifest(tmp_path / "runs" / cell.run, EvaluateManifest)
        losses[cell.run] = manifest.models["base"].heldout["nll"]
    assert losses[strong.run] < losses[tiny.run]
