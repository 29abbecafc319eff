"""What a sweep costs beside its training and generation.

    python tests/bench/sweep.py                       # sweeps/quickstart.yaml
    python tests/bench/sweep.py my-sweep.yaml

Runs `deft sweep` under a run root of its own and reads from what it leaves how long training steps
and generation took, cell by cell. What is beside them: starting workers and engines, preparing
data, checkpoints, losses on held-out examples, MLflow and the report.

With --trials N it measures how fast N cells of nothing go through Ray Tune instead.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from deft.platform.records.manifests import (
    EvaluateManifest,
    ModelResult,
    RecordManifest,
    Timings,
    TrainManifest,
    load_manifest,
    manifest_file,
    require_manifest,
    save_manifest,
)
from deft.platform.records.run_directory import read_events

ROOT = Path(__file__).resolve().parents[2]


def training_seconds(run: Path) -> float:
    """Return the seconds of all optimizer steps, validations between them included."""
    times = [event.time / 1000 for event in read_events(run) if "train/nll" in event.metrics]
    steps = len(times) - 1
    return (times[-1] - times[0]) * (steps + 1) / steps


def measure_sweep(file: Path, root: Path) -> None:
    began = time.monotonic()
    command = [Path(sys.executable).with_name("deft"), "sweep", file, "--root", root]
    done = subprocess.run(command, check=False, env={**os.environ, "RAY_ADDRESS": "local"})
    wall = time.monotonic() - began
    if done.returncode:
        raise SystemExit(done.returncode)
    (directory,) = (root / "sweeps").iterdir()
    runs = [
        root / json.loads(line)["run"]
        for line in (directory / "cells.jsonl").read_text().splitlines()
    ]
    bases = sorted((root / "cache" / "evaluations").glob("*/evaluate.json"))
    base_seconds = sum(load_manifest(base, EvaluateManifest).timings.work for base in bases)
    rows, engine_starts = [], []
    for run in sorted(runs, key=lambda run: require_manifest(run, TrainManifest).finished_at):
        train = require_manifest(run, TrainManifest)
        timings = require_manifest(run, EvaluateManifest).timings
        pure = training_seconds(run)
        rows.append((run.name, pure, train.seconds - pure, timings.work))
        engine_starts.append(timings.engine_start)
    starts = [rows[0][2], max(engine_starts)]
    print("\n| cell | training steps, s | rest of the training stage, s | generation, s |")
    print("|---|---|---|---|")
    for name, pure, rest, generation in rows:
        print(f"| {name} | {pure:.1f} | {rest:.1f} | {generation:.1f} |")
    training = sum(row[1] for row in rows)
    generation = sum(row[3] for row in rows)
    total = training + generation + sum(starts)
    print(
        f"\n{wall:.0f} s for {len(rows)} cells; training steps {training:.0f} s, generation and "
        f"grading {generation:.0f} s (of it {base_seconds:.0f} s for base models), one start of "
        f"training {starts[0]:.0f} s and of an engine {starts[1]:.0f} s: {wall / total:.2f}x"
    )


def measure_trials(number: int, root: Path) -> None:
    """Time and memory of Ray Tune with ``number`` cells that do nothing."""
    import ray

    from deft.platform.console import RunConsole
    from deft.sweeps.cells import load_sweep
    from deft.sweeps.directory import SweepDirectory
    from deft.sweeps.progress import SweepView
    from deft.sweeps.run import CellWatch, run_cells

    file = root / "trials.yaml"
    base = {"dataset": "figfont", "model": "tiny", "objective": "original"}
    file.write_text(json.dumps({"base": base, "grid": {"seed": list(range(number))}}))
    began = time.monotonic()
    plan = load_sweep(file, root)
    directory = SweepDirectory.of(plan, root)
    directory.create(plan)
    planned = time.monotonic() - began
    ray.init("local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    path = str(directory.root)

    def stub(config: dict[str, Any]) -> None:
        run = Path(path, config["run"])
        evaluated = EvaluateManifest(
            models={"eval": ModelResult(directory="")},
            num_generated=0,
            num_resumed=0,
            timings=Timings(),
        )
        for manifest in (evaluated, RecordManifest(mlflow_run_id="")):
            save_manifest(manifest_file(run, manifest.stage), manifest)

    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    view = SweepView(directory, {cell.run: cell for cell in plan.cells}, RunConsole())
    watch = CellWatch(directory, view, lambda run: None)
    run_cells(plan.spec, plan.cells, stub, watch, num_parallel=4)
    seconds = time.monotonic() - began
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert all(directory.is_finished(cell.run) for cell in plan.cells)
    print(
        f"{number} cells: planned in {planned:.1f} s, through Ray Tune in {seconds:.1f} s "
        f"({1000 * seconds / number:.0f} ms each), the driver's memory grew by {grown:.0f} MiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", type=Path, default=ROOT / "sweeps" / "quickstart.yaml")
    parser.add_argument("--trials", type=int, help="measure so many cells of nothing instead")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        if options.trials:
            measure_trials(options.trials, Path(directory))
        else:
            measure_sweep(options.file.resolve(), Path(directory))


if __name__ == "__main__":
    main()
