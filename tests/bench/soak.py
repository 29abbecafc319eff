"""What a sweep of hundreds of cells leaves behind while it runs: memory, files, processes, pace.

    python tests/bench/soak.py                       # 200 cells, well over half an hour on 2 cores
    python tests/bench/soak.py --cells 400 --plot soak.png

Runs `deft sweep` on cells of four optimizer steps, each with training, a vLLM engine and MLflow,
under a run root of its own, and looks at all of its processes every few seconds. Growth is what a
straight line through the samples gains per 100 cells, the first tenth of the cells left out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import psutil

from deft.platform.records.manifests import RecordManifest, load_manifest

mpl.use("Agg")
import matplotlib.pyplot as plt

INTERVAL = 3.0
"""Seconds between samples."""
WATCHED = {
    "driver": "deft sweep",
    "engine": "ray::Evaluator",
    "engine lender": "ray::EngineLender",
    "raylet": "raylet/raylet",
    "GCS": "gcs_server",
}
"""Processes that live as long as the sweep, by a part of their command line."""
SWEEP: dict[str, Any] = {
    "base": {
        "dataset": {"name": "figfont", "size": 60},
        "model": "tiny",
        "training": {"num_workers": 1, "max_steps": 4, "batch_size": 8, "max_length": 256},
        "evaluation": {
            "general": False,
            "benchmarks": [{"name": "figfont", "size": 8, "max_tokens": 8}],
            "engine": {"kv_cache_gib": 0.25, "cpus": 1},
        },
    },
}


def sample(driver: psutil.Process, runs: Path) -> dict[str, float]:
    """MiB and open files of the watched processes, the number of all, and of finished cells."""
    usage: dict[str, float] = {}
    family = [driver]
    with suppress(psutil.NoSuchProcess):
        family += driver.children(recursive=True)
    for process in family:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            command = " ".join(process.cmdline())
            for name, part in WATCHED.items():
                if part in command and f"{name}, MiB" not in usage:
                    usage[f"{name}, MiB"] = process.memory_full_info().uss / 2**20
                    usage[f"{name}, open files"] = process.num_fds()
    usage["processes"] = len(family)
    usage["cells"] = len(list(runs.glob("*/stages/record.json")))
    return usage


def watch(number: int, folder: Path) -> tuple[list[dict[str, float]], list[float]]:
    """Return samples of a sweep of ``number`` cells, and when its cells finished in s."""
    objectives = ["original", "DEFT"]
    seeds = list(range(number // len(objectives)))
    file = folder / "soak.yaml"
    file.write_text(json.dumps({**SWEEP, "grid": {"seed": seeds, "objective": objectives}}))
    command = [Path(sys.executable).with_name("deft"), "sweep", file, "--root", folder / "runs"]
    began, samples = time.time(), []
    with subprocess.Popen(command, env={**os.environ, "RAY_ADDRESS": "local"}) as sweep:
        driver = psutil.Process(sweep.pid)
        while sweep.poll() is None:
            with suppress(psutil.NoSuchProcess):
                samples.append({"seconds": time.time() - began, **sample(driver, folder / "runs")})
            time.sleep(INTERVAL)
    if sweep.returncode:
        raise SystemExit(sweep.returncode)
    files = folder.glob("runs/*/stages/record.json")
    manifests = [load_manifest(file, RecordManifest) for file in files]
    ended = sorted(manifest.finished_at / 1000 - began for manifest in manifests)
    return samples, ended


def growth(samples: list[dict[str, float]], name: str, number: int) -> tuple[float, float, float]:
    """First and last value of a straight line through the samples, and its gain per 100 cells."""
    points = [
        (row["cells"], row[name])
        for row in samples
        if name in row and number / 10 <= row["cells"] < number
    ]
    cells, values = np.array(points).T
    slope, start = np.polyfit(cells, values, 1)
    return start + slope * cells[0], start + slope * cells[-1], 100 * slope


def draw(samples: list[dict[str, float]], ended: list[float], file: Path) -> None:
    """Memory, open files, processes and pace over the cells that are finished."""
    figure, axes = plt.subplots(1, 4, figsize=(15, 3.4), layout="constrained")
    for name, style in zip(WATCHED, ("-", "--", ":", "-.", (0, (1, 4))), strict=True):
        for axis, unit in ((axes[0], "MiB"), (axes[1], "open files")):
            rows = [row for row in samples if f"{name}, {unit}" in row]
            axis.plot(
                [row["cells"] for row in rows],
                [row[f"{name}, {unit}"] for row in rows],
                linestyle=style,
                label=name,
            )
    axes[0].set(title="memory (USS), MiB", yscale="log")
    axes[0].legend(fontsize="small")
    axes[1].set(title="open files")
    axes[2].plot([row["cells"] for row in samples], [row["processes"] for row in samples])
    axes[2].set(title="processes", ylim=(0, None))
    window = max(len(ended) // 20, 2)
    pace = (np.array(ended[window:]) - np.array(ended[:-window])) / window
    axes[3].plot(range(window, len(ended)), pace)
    axes[3].set(title=f"seconds a cell, mean of {window}", ylim=(0, None))
    for axis in axes:
        axis.set_xlabel("finished cells")
        axis.grid(alpha=0.3)
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=200)
    parser.add_argument("--plot", type=Path, default=Path("soak.png"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        samples, ended = watch(options.cells, Path(folder))
    print(f"\n{len(ended)} cells in {samples[-1]['seconds']:.0f} s")
    print("\n| | after a tenth | at the end | per 100 cells |")
    print("|---|---|---|---|")
    names = [f"{name}, {unit}" for unit in ("MiB", "open files") for name in WATCHED]
    for name in [*names, "processes"]:
        first, last, slope = growth(samples, name, options.cells)
        print(f"| {name} | {first:.0f} | {last:.0f} | {slope:+.1f} |")
    seconds = np.diff(ended)
    quarter = len(seconds) // 4
    early, late = seconds[quarter : 2 * quarter].mean(), seconds[-quarter:].mean()
    print(
        f"\na cell every {early:.2f} s in the second quarter, every {late:.2f} s in the last: "
        f"{late / early:.2f}x"
    )
    draw(samples, ended, options.plot)


if __name__ == "__main__":
    main()
