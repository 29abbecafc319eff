"""Progress of a running sweep: one bar for all cells, and one for each that runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

from deft.evaluators.spec import HELDOUT
from deft.platform.console import ProgressView, RunConsole
from deft.platform.records.manifests import EvaluateManifest, require_manifest
from deft.platform.records.results import main_metrics
from deft.sweeps.cells import PlannedCell
from deft.sweeps.directory import SweepDirectory
from deft.sweeps.spec import label


class SweepView:
    """Shows events of trials as bars and lines. Used by two threads: events, and the main one."""

    def __init__(
        self, directory: SweepDirectory, cells: Mapping[str, PlannedCell], console: RunConsole
    ) -> None:
        """Count the cells that have finished already.

        Args:
            directory: the sweep.
            cells: all its runs, by their names.
            console: where.
        """
        self.directory = directory
        self.cells = cells
        self.console = console
        self.bars: ProgressView | None = None
        self._done = sum(directory.is_finished(run) for run in cells)
        self._started: dict[str, float] = {}
        self._seconds: dict[str, float] = {}
        self._began = time.monotonic()
        self._lock = threading.Lock()

    def handle(self, event: Mapping[str, Any]) -> None:
        """Show an event that a cell sent."""
        with self._lock:
            run = event["run"]
            name = describe_cell(self.cells[run])
            if event["event"] == "warning":
                self.console.print(f"warning: {name}: {event['text']}")
            elif event["event"] == "stage" and run not in self._started | self._seconds:
                self._started[run] = time.monotonic()
                self.console.print(f"          started   {name}")
            elif event["event"] == "progress" and self._has_bars:
                assert self.bars is not None
                self.bars.update(name, event["done"], event["total"], event["name"])

    def finished(self, run: str) -> None:
        """Mark a cell as finished."""
        self._ended(run, "finished", primary_results(self.directory, run))

    def failed(self, run: str, cause: str) -> None:
        """Mark a cell as failed for good."""
        self._ended(run, "FAILED", cause)

    def retried(self, run: str) -> None:
        """Warn that a cell, or its process, failed and is tried again."""
        self.console.print(f"warning: {describe_cell(self.cells[run])}: trying again")

    def _ended(self, run: str, how: str, what: str) -> None:
        with self._lock:
            self._done += 1
            # Events of a cell may still be on their way when it is known to be over.
            seconds = time.monotonic() - self._started.pop(run, self._began)
            self._seconds[run] = seconds
            name = describe_cell(self.cells[run])
            self.console.print(f"          {how:<9} {name} ({seconds:.0f} s)  {what}".rstrip())
            if self.bars is not None:
                self.bars.remove(name)
                self.bars.update("cells", self._done, len(self.cells))

    @property
    def _has_bars(self) -> bool:
        return self.bars is not None and self.bars.bars is not None


def describe_cell(cell: PlannedCell) -> str:
    """Describe a cell by its values on the axes."""
    if not cell.settings:
        return f"model {cell.spec.name}"
    values = [
        label(value) if axis in ("objective", "model", "dataset") else f"{axis} {label(value)}"
        for axis, value in cell.settings.items()
    ]
    return ", ".join(values)


def primary_results(directory: SweepDirectory, run: str) -> str:
    """Summarize the results of a finished cell in a few words."""
    models = require_manifest(directory.root / run, EvaluateManifest).models
    heldout = models["eval"].heldout
    words = [f"{HELDOUT} {heldout['nll']:.3f} nll"] if heldout else []
    words += [
        f"{main.benchmark} {main.after[main.key]:.3f} {main.name}"
        for main in main_metrics(models)
        if main.key in main.after
    ]
    return "  ".join(words)
