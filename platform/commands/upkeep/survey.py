"""What is in a run root: every run and evaluation, how far it is, and what it takes on disk.

Nothing here is written, and specs are not validated: files that they name may be gone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from deft.evaluators.spec import GENERAL_BENCHMARK
from deft.platform.errors import UserError
from deft.platform.records.manifests import (
    STAGES,
    AnyManifest,
    EvaluateManifest,
    PrepareManifest,
    Stage,
    manifest_file,
    read_manifest,
)
from deft.platform.records.results import main_metrics
from deft.platform.records.root_use import is_held
from deft.workers.spec import TrainingSpec

State = Literal["finished", "running", "failed", "stopped"]

EVALUATION_STAGES: tuple[Stage, ...] = ("evaluate", "record")
TAIL_BYTES = 64 * 1024
"""Bytes at the end of a file that the newest lines are read from."""


class Progress(BaseModel):
    """How far the stage is that a run is in."""

    done: int
    total: int
    unit: str
    seconds_left: float | None = None
    """At the pace of the last steps; None where nothing tells."""


class RunStatus(BaseModel):
    """One run or evaluation."""

    name: str
    kind: Literal["run", "evaluation"]
    state: State
    """`running`: a process holds it. `failed`: MLflow was told so. `stopped`: it was begun and is
    not finished; the same command goes on."""
    stage: Stage | None = None
    """The first one that has not finished."""
    progress: Progress | None = None
    result: str = ""
    """What the first benchmark, or held-out loss, says of the base model and the trained one."""
    cause: str = ""
    """Why it failed."""
    changed_at: float
    """Seconds since the epoch."""
    size: int
    """Bytes on disk."""


def survey_runs(root: Path) -> list[RunStatus]:
    """Return every run and evaluation in ``root``, the newest first."""
    runs = [survey_run(file.parent) for file in root.glob("*/spec.json")]
    return sorted(runs, key=lambda run: (-run.changed_at, run.name))


def survey_run(run: Path) -> RunStatus:
    """Return the state of the run in directory ``run``."""
    spec = _read_json(run / "spec.json")
    is_training = "training" in spec
    stages = STAGES if is_training else EVALUATION_STAGES
    stage = next((s for s in stages if not manifest_file(run, s).is_file()), None)
    status, cause = _last_word(run)
    state: State = "failed" if status == "FAILED" else "stopped"
    if stage is None:
        state = "finished"
    elif is_held(run / ".lock"):
        state = "running"
    return RunStatus(
        name=run.name,
        kind="run" if is_training else "evaluation",
        state=state,
        stage=stage,
        progress=_progress(run, spec, stage),
        result=_result(run),
        cause=cause if state == "failed" else "",
        changed_at=_changed_at(run),
        size=size_of(run),
    )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _last_word(run: Path) -> tuple[str, str]:
    """Return the status that MLflow was last told, and the last error."""
    status = cause = ""
    for entry in last_lines(run / "mlflow" / "outbox.jsonl"):
        status = str(entry.get("status", status))
        cause = str(entry.get("tags", {}).get("deft.error", cause))
    return status, cause


def last_lines(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of the last whole lines of a file, if there is one."""
    with suppress(OSError), file.open("rb") as content:
        size = content.seek(0, os.SEEK_END)
        content.seek(max(size - TAIL_BYTES, 0))
        for line in content.read().split(b"\n")[:-1]:
            with suppress(ValueError):  # the first one may begin in its middle
                entry = json.loads(line)
                if isinstance(entry, dict):
                    yield entry


def _progress(run: Path, spec: Mapping[str, Any], stage: Stage | None) -> Progress | None:
    if stage == "train":
        return _training_progress(run, spec)
    if stage == "evaluate":
        return _evaluation_progress(run, spec)
    return None


def _training_progress(run: Path, spec: Mapping[str, Any]) -> Progress | None:
    prepared = _manifest(run, PrepareManifest)
    try:
        training = TrainingSpec.model_validate(spec.get("training"))
    except ValidationError:
        return None
    if prepared is None:
        return None
    counts = prepared.prepared
    total = training.num_steps(counts.num_examples, counts.num_tokens)
    events = [
        (int(event["step"]), event["time"] / 1000)
        for event in last_lines(run / "events.jsonl")
        if "train/nll" in event.get("metrics", {})
    ]
    progress = Progress(done=events[-1][0] if events else 0, total=total, unit="steps")
    if len(events) < 2 or events[-1][0] <= events[0][0]:
        return progress
    (first, started), (last, now) = events[0], events[-1]
    left = (now - started) / (last - first) * (total - last)
    return progress.model_copy(update={"seconds_left": left})


def _evaluation_progress(run: Path, spec: Mapping[str, Any]) -> Progress | None:
    """Count the trained model's responses; the base model's may be another run's."""
    prepared = _manifest(run, PrepareManifest)
    if prepared is None:
        return None
    samples = {b["name"]: b["samples"] for b in spec["evaluation"]["benchmarks"]}
    total = sum(
        _num_lines(Path(file)) * samples.get(name, 1) for name, file in prepared.items.items()
    )
    done = sum(map(_num_lines, (run / "responses").glob("eval-*.jsonl")))
    return Progress(done=min(done, total), total=total, unit="responses") if total else None


def _num_lines(file: Path) -> int:
    try:
        with file.open("rb") as content:
            return sum(block.count(b"\n") for block in iter(lambda: content.read(2**20), b""))
    except OSError:
        return 0


def _manifest(run: Path, kind: type[AnyManifest]) -> AnyManifest | None:
    """Read a manifest; None also for one that is damaged, which its own command will say."""
    try:
        return read_manifest(run, kind)
    except UserError:
        return None


def _result(run: Path) -> str:
    manifest = _manifest(run, EvaluateManifest)
    if manifest is None:
        return ""
    measured = sorted(
        main_metrics(manifest.models), key=lambda main: main.benchmark == GENERAL_BENCHMARK
    )
    if measured:
        main = measured[0]
        values = [metrics.get(main.key) for metrics in (main.before, main.after)]
        return _arrow(f"{main.benchmark} {main.name}", values)
    models = [manifest.models[label] for label in ("base", "eval") if label in manifest.models]
    return _arrow("held-out nll", [model.heldout.get("nll") for model in models])


def _arrow(what: str, values: Sequence[float | None]) -> str:
    known = [f"{value:.3f}" for value in values if value is not None]
    return f"{what} {' → '.join(known)}" if known else ""


def _changed_at(run: Path) -> float:
    files = [run / "spec.json", run / "events.jsonl", *(run / "stages").glob("*.json")]
    files += (run / "responses").glob("*.jsonl")
    return max((_mtime(file) for file in files), default=0.0)


def _mtime(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def size_of(path: Path) -> int:
    """Return the bytes that a file, or all files below a directory, take on disk."""
    total = 0
    for folder, _, files in os.walk(path):
        for name in files:
            with suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_blocks * 512
    if path.is_file():
        total = path.lstat().st_blocks * 512
    return total
