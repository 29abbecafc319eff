"""A run on disk: its spec, the manifests of its finished stages, and its events."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from deft.platform.errors import UserError
from deft.workers.common.files import drop_torn_line, exclusive, write_atomic


class RunSpec(Protocol):
    """What a run directory needs to know of the spec of a run."""

    @property
    def run_name(self) -> str:
        """The directory's name: the same spec is the same run."""

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        """All settings."""

    def model_dump_json(self, *, indent: int) -> str:
        """All settings as JSON."""


class RunDirectory:
    """``ROOT/<name>-<hash>``; nothing is written before `create`.

    A stage that has no manifest did not happen.
    """

    def __init__(self, root: Path, spec: RunSpec) -> None:
        self.path = root / spec.run_name
        self.spec = spec
        self.events_file = self.path / "events.jsonl"

    def create(self) -> None:
        """Make the directory and write the resolved spec into it."""
        write_atomic(self.path / "spec.json", self.spec.model_dump_json(indent=2) + "\n")

    def manifest(self, stage: str) -> dict[str, Any] | None:
        """What ``stage`` left when it finished; None if it has not."""
        return read_manifest(self.path, stage)

    def finish(self, stage: str, outputs: dict[str, Any]) -> None:
        """Declare ``stage`` finished, and when, in milliseconds since the epoch."""
        outputs = {**outputs, "finished_at": _now()}
        write_atomic(manifest_file(self.path, stage), json.dumps(outputs, indent=2) + "\n")

    def append_event(self, step: int, metrics: dict[str, float]) -> None:
        """Add one line to the run's events: metrics of an optimiser step, and the time."""
        with self.events_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": _now(), "step": step, "metrics": metrics}) + "\n")

    def events(self) -> list[dict[str, Any]]:
        """All events so far."""
        if not self.events_file.exists():
            return []
        with self.events_file.open("rb") as file:
            return [json.loads(line) for line in file]

    def train_events(self) -> list[dict[str, Any]]:
        """The events of optimiser steps, without those of validations."""
        return [event for event in self.events() if "train/nll" in event["metrics"]]

    @contextmanager
    def locked(self, patience: float = 0.0) -> Iterator[None]:
        """Hold the run for this process; ``patience`` is how long to wait for another, in seconds.

        Raises:
            UserError: another process is working on the same run.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(exclusive(self.path / ".lock", patience=patience))
            except BlockingIOError:
                raise UserError(f"{self.path}: another process is at work on this run") from None
            drop_torn_line(self.events_file)
            yield


def manifest_file(run: Path, stage: str) -> Path:
    """Where ``stage`` of the run in directory ``run`` leaves its manifest when it finishes."""
    return run / "stages" / f"{stage}.json"


def read_manifest(run: Path, stage: str) -> dict[str, Any] | None:
    """What ``stage`` of the run in directory ``run`` left when it finished; None if it has not."""
    try:
        return dict(json.loads(manifest_file(run, stage).read_text()))
    except FileNotFoundError:
        return None


def _now() -> int:
    return time.time_ns() // 1_000_000
