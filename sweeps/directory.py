"""A sweep on disk: what it consists of, and which cells failed; cells are run directories."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deft.platform.config.spec import ExperimentSpec
from deft.platform.errors import UserError
from deft.platform.records.manifests import manifest_file
from deft.sweeps.cells import Cell, Plan
from deft.workers.common.files import exclusive, write_atomic

BASELINE = "original"
"""What the other objectives are compared with, where it is among them: NLL."""


class SweepDirectory:
    """``ROOT/sweeps/<name>-<hash>``; the same cells and rules are the same sweep."""

    def __init__(self, root: Path, name: str) -> None:
        self.root = root
        self.path = root / "sweeps" / name

    @classmethod
    def of(cls, plan: Plan, root: Path) -> SweepDirectory:
        """The directory of a sweep, which need not be there yet."""
        digest = hashlib.sha256()
        for cell in (*plan.models.values(), *plan.cells):
            digest.update(cell.run.encode() + b"\0")
        rules = plan.spec.model_dump_json(include={"select", "asha"})
        digest.update(rules.encode())
        return cls(root.resolve(), f"{plan.spec.name}-{digest.hexdigest()[:10]}")

    def create(self, plan: Plan) -> None:
        """Write what the sweep consists of."""
        objectives = [str(cell.spec.objective) for cell in plan.cells]
        about = {
            "name": plan.spec.name,
            "file": plan.file,
            "baseline": BASELINE if BASELINE in objectives else objectives[0],
            "axes": list(plan.spec.grid),
            "select": plan.spec.select.model_dump() if plan.spec.select else None,
        }
        write_atomic(self.path / "sweep.json", json.dumps(about, indent=2) + "\n")
        for file, cells in (("models", plan.models.values()), ("cells", plan.cells)):
            lines = [json.dumps(_describe(cell)) + "\n" for cell in cells]
            write_atomic(self.path / f"{file}.jsonl", "".join(lines))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the sweep for this process.

        Raises:
            UserError: another process is working on it.
        """
        try:
            with exclusive(self.path / ".lock", patience=0):
                yield
        except BlockingIOError:
            raise UserError(f"{self.path}: another process is at work on this sweep") from None

    def read_spec(self, run: str) -> ExperimentSpec:
        """The spec of one of the sweep's runs.

        Raises:
            KeyError: the sweep has none such.
        """
        for file in ("models", "cells"):
            with (self.path / f"{file}.jsonl").open(encoding="utf-8") as lines:
                for line in lines:
                    cell = json.loads(line)
                    if cell["run"] == run:
                        return ExperimentSpec.model_validate(cell["spec"])
        raise KeyError(run)

    def is_finished(self, run: str) -> bool:
        """Whether a run is trained, evaluated and recorded."""
        return manifest_file(self.root / run, "record").is_file()

    def is_evaluated(self, run: str) -> bool:
        """Whether a run's results are there; MLflow may not have them yet."""
        return manifest_file(self.root / run, "evaluate").is_file()

    def fail(self, run: str, cause: str) -> None:
        """Keep why a run failed, once more."""
        before = read_failure(self.path, run)
        attempts = before["attempts"] + 1 if before else 1
        failure = {"cause": cause, "attempts": attempts, "time": time.time_ns() // 1_000_000}
        write_atomic(_failure_file(self.path, run), json.dumps(failure) + "\n")

    def forget_failure(self, run: str) -> None:
        """The run is tried anew, or has succeeded after all."""
        _failure_file(self.path, run).unlink(missing_ok=True)

    def failure(self, run: str) -> str | None:
        """Why a run failed the last time, if it did."""
        found = read_failure(self.path, run)
        return str(found["cause"]) if found else None


def read_failure(sweep: Path, run: str) -> dict[str, Any] | None:
    """Cause, attempts and time of a failed run of the sweep in directory ``sweep``."""
    try:
        return dict(json.loads(_failure_file(sweep, run).read_text()))
    except FileNotFoundError:
        return None


def _failure_file(sweep: Path, run: str) -> Path:
    return sweep / "failures" / f"{run}.json"


def _describe(cell: Cell) -> dict[str, Any]:
    return {
        "run": cell.run,
        "settings": cell.settings,
        "spec": cell.spec.model_dump(mode="json"),
        "after": cell.after,
    }
