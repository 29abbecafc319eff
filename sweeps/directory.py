"""A sweep on disk: its cells, and which of them failed. Each cell is a run's own directory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deft.platform.config.spec import ExperimentSpec
from deft.platform.records.manifests import manifest_file
from deft.platform.records.run_directory import held
from deft.sweeps.cells import Plan, PlannedCell
from deft.workers.common.clock import now_ms
from deft.workers.common.files import atomic_file, reading, write_atomic

BASELINE_OBJECTIVE = "original"
"""Objective that the others are compared with, where it is among them: NLL."""
INDEX = "index.txt"
"""File that says for each run in which file its cell stands, and from which byte on."""


class SweepDirectory:
    """``ROOT/sweeps/<name>-<hash>``: the same cells and rules are the same sweep."""

    def __init__(self, root: Path, name: str) -> None:
        self.root = root
        self.path = root / "sweeps" / name

    @classmethod
    def of(cls, plan: Plan, root: Path) -> SweepDirectory:
        """Return the directory of a sweep, which need not exist yet."""
        digest = hashlib.sha256()
        for cell in (*plan.models.values(), *plan.cells):
            digest.update(cell.run.encode() + b"\0")
        rules = plan.spec.model_dump_json(include={"select", "asha"})
        digest.update(rules.encode())
        return cls(root.resolve(), f"{plan.spec.name}-{digest.hexdigest()[:10]}")

    def create(self, plan: Plan) -> None:
        """Write what the sweep consists of: its rules, its cells, and an index of them."""
        objectives = [str(cell.spec.objective) for cell in plan.cells]
        about = {
            "name": plan.spec.name,
            "file": plan.file,
            "baseline": BASELINE_OBJECTIVE if BASELINE_OBJECTIVE in objectives else objectives[0],
            "axes": list(plan.spec.grid),
            "select": plan.spec.select.model_dump() if plan.spec.select else None,
        }
        write_atomic(self.path / "sweep.json", json.dumps(about, indent=2) + "\n")
        index = [""]
        for name, cells in (("models.jsonl", plan.models.values()), ("cells.jsonl", plan.cells)):
            with atomic_file(self.path / name) as file:
                for cell in cells:
                    index.append(f"{cell.run} {name} {file.tell()}")
                    file.write(json.dumps(_describe(cell)).encode() + b"\n")
        write_atomic(self.path / INDEX, "\n".join(index) + "\n")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the sweep for this process.

        Raises:
            UserError: another process is running it.
        """
        with held(self.path, "sweep"):
            yield

    def read_spec(self, run: str) -> ExperimentSpec:
        """Read the spec of one of the sweep's runs.

        Raises:
            KeyError: the sweep has no such run.
        """
        # Each cell parses its own line only: thousands of cells would else parse all lines each.
        index = (self.path / INDEX).read_text()
        start = index.find(f"\n{run} ")
        if start < 0:
            raise KeyError(run)
        _, name, offset = index[start + 1 : index.index("\n", start + 1)].split(" ")
        with (self.path / name).open("rb") as file:
            file.seek(int(offset))
            return ExperimentSpec.model_validate(json.loads(file.readline())["spec"])

    def is_finished(self, run: str) -> bool:
        """Tell whether a run is trained, evaluated and recorded."""
        return manifest_file(self.root / run, "record").is_file()

    def is_evaluated(self, run: str) -> bool:
        """Tell whether a run has its results; MLflow may not have them yet."""
        return manifest_file(self.root / run, "evaluate").is_file()

    def is_begun(self, run: str) -> bool:
        """Tell whether MLflow may have a run that has not ended."""
        return (self.root / run / "mlflow").is_dir() and not self.is_finished(run)

    def is_training(self, run: str) -> bool:
        """Tell whether steps of a run have been taken, but not all."""
        is_trained = manifest_file(self.root / run, "train").is_file()
        return (self.root / run / "events.jsonl").is_file() and not is_trained

    def fail(self, run: str, cause: str) -> None:
        """Record a failed attempt at a run and its cause."""
        last = read_failure(self.path, run)
        attempts = last["attempts"] + 1 if last else 1
        record = {"cause": cause, "attempts": attempts, "time": now_ms()}
        write_atomic(_failure_file(self.path, run), json.dumps(record) + "\n")

    def forget_failure(self, run: str) -> None:
        """Drop the record of a failure: the run is tried again, or has succeeded after all."""
        _failure_file(self.path, run).unlink(missing_ok=True)

    def failure(self, run: str) -> str | None:
        """Return why a run failed the last time; None if it did not."""
        record = read_failure(self.path, run)
        return str(record["cause"]) if record else None


def read_cells(sweep: Path) -> list[str]:
    """Return the names of all runs of the sweep in directory ``sweep``, its own models first."""
    with reading(sweep / INDEX, "run the command of this sweep again"):
        lines = (sweep / INDEX).read_text().splitlines()
        return [line.split(" ")[0] for line in lines if line]


def read_cause(sweep: Path, run: str) -> str:
    """Return why a run of the sweep in directory ``sweep`` failed; empty if it did not."""
    record = read_failure(sweep, run)
    return str(record["cause"]) if record else ""


def read_failure(sweep: Path, run: str) -> dict[str, Any] | None:
    """Read cause, attempts and time of a failed run of the sweep in directory ``sweep``."""
    file = _failure_file(sweep, run)
    try:
        with reading(file, "delete it"):
            record = json.loads(file.read_text())
            return {key: record[key] for key in ("cause", "attempts", "time")}
    except FileNotFoundError:
        return None


def _failure_file(sweep: Path, run: str) -> Path:
    return sweep / "failures" / f"{run}.json"


def _describe(cell: PlannedCell) -> dict[str, Any]:
    return {
        "run": cell.run,
        "settings": cell.settings,
        "spec": cell.spec.model_dump(mode="json"),
        "after": cell.after,
    }
