"""Sweeps on disk as `deft sweep` leaves them, made without training anything."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deft.evaluators.loss_table import RowLoss, write_losses
from deft.evaluators.predictions import Prediction, write_predictions
from deft.platform.spec import ExperimentSpec

YAML = """name: trial  # <script>alert("file")</script>
grid:
  objective: [DEFT, original, p]
  seed: [0, 1]
"""
NUM_ITEMS = 60
PROMPT = {"hash": "abcabcabcabc", "style": "chat", "num_bos": 1}
RATE_AXIS = "training.learning_rate"


@dataclass
class Disk:
    """A run root with one sweep in it."""

    root: Path
    directory: Path
    cells: list[dict[str, Any]] = field(default_factory=list)

    def write(self, *, axes: Sequence[str], select: Mapping[str, str] | None = None) -> None:
        head = {
            "name": "trial",
            "file": YAML,
            "baseline": "original",
            "axes": list(axes),
            "select": select,
        }
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "sweep.json").write_text(json.dumps(head))
        lines = "".join(json.dumps(cell) + "\n" for cell in self.cells)
        (self.directory / "cells.jsonl").write_text(lines)

    def add_cell(self, objective: str, seed: int, rate: float = 1e-3, **settings: Any) -> Path:
        """Plan a cell; returns the directory of its run, which is not there yet."""
        dataset = settings.get("dataset", "figfont")
        name = dataset["name"] if isinstance(dataset, dict) else dataset
        spec = ExperimentSpec.model_validate(
            {
                "dataset": "figfont",
                "model": "tiny",
                "objective": objective,
                "seed": seed,
                "training": {"learning_rate": rate, "batch_size": 16},
                "evaluation": {"benchmarks": [{"name": "figfont", "size": NUM_ITEMS}]},
            }
        ).model_dump(mode="json")
        # Whatever people call their data: names of files need not exist any more.
        spec["dataset"]["name"] = name
        number = len(self.cells)
        run = self.root / f"run-{number:02d}-{objective}"
        self.cells.append(
            {
                "run": run.name,
                "settings": {"objective": objective, "seed": seed, RATE_AXIS: rate, **settings},
                "spec": spec,
            }
        )
        return run

    def fail(self, run: Path, cause: str) -> None:
        file = self.directory / "failures" / f"{run.name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"cause": cause, "attempts": 2, "time": 1}))


def predictions(verdicts: Sequence[bool], source: str = "s") -> list[Prediction]:
    return [
        Prediction(
            id=f"item-{item}",
            sample=0,
            source=source,
            prompt="p",
            num_bos=0,
            response="r",
            gold="g",
            finish_reason="stop" if right else "length",
            n_tokens=3,
            verdict="correct" if right else "truncated",
            extracted=None,
            scores={},
        )
        for item, right in enumerate(verdicts)
    ]


def finish_cell(
    run: Path,
    scores: Mapping[str, Sequence[bool]],
    base: Mapping[str, Sequence[bool]],
    *,
    nll: float,
    num_steps: int = 20,
    focus: bool = False,
    bits: Sequence[float] = (4.0, 5.0),
) -> None:
    """Leave what a run leaves: events, predictions and manifests.

    Args:
        run: its directory.
        scores: benchmark → whether each item was right.
        base: the same of the base model.
        nll: held-out NLL at the end of training.
        num_steps: of training.
        focus: whether the objective has one.
        bits: of the held-out rows, which spell a byte each.
    """
    for label, found in (("eval", scores), ("base", base)):
        for name, verdicts in found.items():
            path = run / "predictions" / f"{label}-{name}.parquet"
            write_predictions(predictions(verdicts), path)
        worse = 1.0 if label == "eval" else 2.0
        losses = [
            RowLoss(row, worse * n * float(np.log(2)), 0.0, 1.0, 2, 1, 1, 1)
            for row, n in enumerate(bits)
        ]
        write_losses(losses, run / "predictions" / f"{label}-heldout.parquet")
    _write_events(run, nll, num_steps, focus=focus)
    stages = {
        "prepare": _prepared(run, scores),
        "train": {"model": "model", "seconds": 90.0, "metrics": {"step": num_steps}},
        "evaluate": {
            "results": {
                label: {
                    **{name: {"num_samples": 1, "num_items": len(v)} for name, v in found.items()},
                    "heldout": {"bits_per_byte": 4.5},
                }
                for label, found in (("eval", scores), ("base", base))
            },
            "tables": {
                label: {
                    name: {"path": f"predictions/{label}-{name}.parquet", "headline": "avg"}
                    for name in found
                }
                for label, found in (("eval", scores), ("base", base))
            },
            "prompts": {"eval": {name: dict(PROMPT) for name in scores}},
            "models": {"eval": str(run / "model"), "base": "/models/tiny"},
            "seconds": 30.0,
            "finished_at": 1_790_000_000_000,
        },
        "record": {"mlflow_run_id": f"mlflow-{run.name}"},
    }
    for stage, manifest in stages.items():
        file = run / "stages" / f"{stage}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(manifest))


def _prepared(run: Path, scores: Mapping[str, Sequence[bool]]) -> dict[str, Any]:
    return {
        "model_dir": "/models/tiny",
        "examples_dir": "/cache/examples/0123456789ab",
        "rows_dir": "/cache/rows/ba9876543210/train",
        "validation_dir": "/cache/rows/ba9876543210/validation",
        "num_examples": 320,
        "num_validation_examples": 2,
        "num_tokens": 3200,
        "num_target_tokens": 640,
        "prompt_style": "chat",
        "format_hash": "f0f0f0f0f0f0",
        "num_bos": 1,
        "items": {name: f"/cache/items/{name}-aabbcc.jsonl" for name in scores},
    }


def _write_events(run: Path, nll: float, num_steps: int, *, focus: bool) -> None:
    lines = []
    for step in range(num_steps + 1):
        part = step / num_steps
        if step:
            metrics = {
                "train/nll": 6 - (6 - nll) * part,
                "train/mean_gate": 1 - 0.5 * part if focus else 1.0,
                "train/mean_p": 0.5 * part,
            } | ({"train/mean_focus": 0.3 * part} if focus else {})
            lines.append({"time": step, "step": step, "metrics": metrics})
        if step % 10 == 0:
            held_out = 6.5 - (6.5 - nll) * part
            metrics = {"validation/nll": held_out, "validation/bits_per_byte": 2 * held_out}
            lines.append({"time": step, "step": step, "metrics": metrics})
    run.mkdir(parents=True, exist_ok=True)
    (run / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def right(number: int, total: int = NUM_ITEMS) -> list[bool]:
    """The first ``number`` of ``total`` items right."""
    return [item < number for item in range(total)]


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """An empty sweep."""
    root = tmp_path / "runs"
    return Disk(root, root / "sweeps" / "trial-0123456789")


HOSTILE = "bad <script>alert(1)</script> & $x_{"


@pytest.fixture
def trial(disk: Disk) -> Disk:
    """3 objectives × 2 seeds × 2 datasets at two learning rates, one failed, one not run."""
    base = {"figfont": right(3), "general": right(20, 40)}
    gained = {"original": 24, "DEFT": 42, "p": 25}
    for dataset in ("figfont", {"name": HOSTILE, "size": 8}):
        for objective in ("DEFT", "original", "p"):
            for seed in (0, 1):
                for rate in (1e-3, 1e-2):
                    run = disk.add_cell(objective, seed, rate, dataset=dataset)
                    on_hostile = dataset != "figfont"
                    if on_hostile and objective == "p" and rate == 1e-2:
                        if seed == 0:
                            disk.fail(run, "RuntimeError: <script>alert(2)</script> no memory")
                        continue
                    # DEFT learns better at the higher rate, the others at the lower one.
                    chosen = (rate == 1e-2) == (objective == "DEFT")
                    number = gained[objective] + seed if chosen else 5
                    scores = {"figfont": right(number), "general": right(20 - 2 * seed, 40)}
                    nll = 2.0 + 0.1 * seed if chosen else 3.0
                    finish_cell(run, scores, base, nll=nll, focus=objective == "DEFT")
    disk.write(
        axes=["dataset", "objective", "seed", RATE_AXIS],
        select={"over": RATE_AXIS, "by": "validation/nll"},
    )
    return disk
