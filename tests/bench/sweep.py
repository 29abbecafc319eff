"""What a sweep costs beside its training and generation.

    python tests/bench/sweep.py                       # sweeps/quickstart.yaml
    python tests/bench/sweep.py my-sweep.yaml

Runs `deft sweep` under a run root of its own and reads from what it leaves how long training steps
and generation took, cell by cell. What is beside them: starting workers and engines, preparing
data, checkpoints, losses on held-out examples, MLflow and the report.

With --trials N it measures instead what N cells cost that do nothing but leave the files of a
finished run: each, when the sweep is started again, and in the report.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from deft.platform.console import RunConsole
from deft.platform.records.manifests import (
    EvaluateManifest,
    ModelResult,
    RecordManifest,
    TrainManifest,
    load_manifest,
    manifest_file,
    require_manifest,
    save_manifest,
)
from deft.platform.records.run_directory import read_events
from deft.sweeps.cells import load_sweep
from deft.sweeps.directory import SweepDirectory
from deft.sweeps.progress import SweepView
from deft.sweeps.report.write import write_report
from deft.sweeps.run import run_cells
from deft.sweeps.watch import CellWatch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from helpers import (  # noqa: E402
    make_benchmark_result,
    make_evaluate_manifest,
    make_prepare_manifest,
    make_train_manifest,
)


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


GRID = {
    "objective": [
        *("original", "p", "Cayley_Trans", "DEFT", "DFT"),
        *("EAFT", "CHORD", "Focal", "LabelSmoothing", "GEM"),
    ],
    "training.learning_rate": [1e-6 * 2**power for power in range(10)],
}
"""Axes of the cells of nothing, beside their seeds."""


def finished_run(run: Path, score: int) -> dict[str, bytes]:
    """Make a run's files, ``score`` of its 64 items right, and return them by their paths."""
    from deft.evaluators.scores.heldout_table import RowLoss, write_losses
    from deft.evaluators.scores.predictions import Prediction, write_predictions

    models = {}
    for label in ("base", "eval"):
        rows = [
            Prediction(
                id=str(item),
                item_digest=f"{item:012d}",
                sample=0,
                source="figfont",
                prompt="Which word is this?",
                num_bos=0,
                response="word",
                gold="word",
                finish_reason="stop",
                n_tokens=2,
                verdict="correct" if item < score else "wrong",
                extracted="word",
                scores={"jaro_winkler": float(item < score)},
            )
            for item in range(64)
        ]
        predictions = f"predictions/{label}-figfont.parquet"
        write_predictions(rows, run / predictions)
        losses = [RowLoss(row, 1.0 + row / score, 0.0, 1.0, 2, 1, 1, 1) for row in range(64)]
        write_losses(losses, run / "predictions" / f"{label}-heldout.parquet")
        result = make_benchmark_result({"num_samples": 1, "num_items": 64}, predictions)
        heldout, benchmarks = {"nll": 1.0, "bits_per_byte": 1.5}, {"figfont": result}
        models[label] = ModelResult(directory=label, heldout=heldout, benchmarks=benchmarks)
    manifests = (
        make_prepare_manifest(),
        make_train_manifest(20),
        make_evaluate_manifest(models),
        RecordManifest(mlflow_run_id="0" * 32),
    )
    for manifest in manifests:
        save_manifest(manifest_file(run, manifest.stage), manifest)
    events = [
        {"time": step, "step": step, "metrics": {"train/nll": 2.0, "validation/nll": 2.0}}
        for step in range(1, 21)
    ]
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    files = [file for file in run.rglob("*") if file.is_file()]
    return {str(file.relative_to(run)): file.read_bytes() for file in files}


class Stub:
    """A cell that only writes what a finished run leaves."""

    def __init__(self, root: Path, templates: list[dict[str, bytes]]) -> None:
        self.root = root
        self.templates = templates

    def __call__(self, config: dict[str, Any]) -> None:
        run = self.root / config["run"]
        number = int(config["run"][-4:], 16) % len(self.templates)
        for name, content in self.templates[number].items():
            (run / name).parent.mkdir(parents=True, exist_ok=True)
            (run / name).write_bytes(content)


def measure_trials(number: int, root: Path) -> None:
    """Measure time and memory of a sweep of ``number`` cells that do nothing."""
    import ray

    templates = [finished_run(root / "templates" / str(score), score) for score in range(20, 44)]
    file, runs = root / "trials.yaml", root / "runs"
    base = {"dataset": "figfont", "model": "tiny", "objective": "original"}
    seeds = list(range(max(1, number // 100)))
    file.write_text(json.dumps({"base": base, "grid": {**GRID, "seed": seeds}}))
    ray.init("local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    process, memory = psutil.Process(), []

    def run_through() -> tuple[SweepDirectory, float, float]:
        """Run what is not finished; returns also the seconds to plan and to run."""
        began = time.monotonic()
        plan = load_sweep(file, runs)
        directory = SweepDirectory.of(plan, runs)
        directory.create(plan)
        view = SweepView(directory, {cell.run: cell for cell in plan.cells}, quiet)
        watch = CellWatch(directory, view, lambda run: memory.append(process.memory_info().rss))
        planned = time.monotonic()
        run_cells(plan.spec, plan.cells, Stub(runs, templates), watch, num_parallel=4)
        assert all(directory.is_finished(cell.run) for cell in plan.cells)
        return directory, planned - began, time.monotonic() - planned

    quiet = RunConsole(Console(file=io.StringIO()))
    directory, planned, ran = run_through()
    count, mib = len(memory), [rss / 2**20 for rss in memory]
    print(
        f"{count} cells: planned in {planned:.1f} s, run in {ran:.0f} s ({1000 * ran / count:.0f} "
        f"ms each), the driver grew by {mib[-1] - mib[count // 10]:.0f} MiB after the first tenth"
    )
    first = next(runs.glob("*/stages/record.json"))
    first.unlink()
    _, planned, ran = run_through()
    print(f"started again with one cell missing: planned in {planned:.1f} s, run in {ran:.1f} s")
    began = time.monotonic()
    write_report(directory.path, runs, quiet)
    print(f"report on {count} cells: {time.monotonic() - began:.0f} s")


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
