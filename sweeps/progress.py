"""Progress of a running sweep: one bar for all cells, and one for each that runs."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deft.evaluators.spec import HELDOUT
from deft.platform.commands.upkeep.status import age
from deft.platform.console import ProgressView, RunConsole
from deft.platform.records.manifests import EvaluateManifest, require_manifest
from deft.platform.records.results import main_metrics
from deft.sweeps.cells import PlannedCell
from deft.sweeps.directory import SweepDirectory
from deft.sweeps.spec import label

TRAINING_SHARE = 0.7
"""Share of a cell's time that training is taken to have before a cell has finished."""
STARTING = "starting processes for them"
"""What is said of cells while none runs."""
SHOWN_CELLS = 4
"""Running cells that a line names; of more it counts the stages."""


@dataclass
class _RunningCell:
    """Where a cell is that has sent an event and has not ended."""

    began: float
    doing: str = "starts"
    count: str = ""
    trained: float = 0.0
    """Share of its training that is done."""
    trained_before: float | None = None
    """Share that was done before it began here: it may go on from a checkpoint."""
    trained_at: float | None = None
    """When its evaluation began."""


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
        self.rows: ProgressView | None = None
        self._done = sum(directory.is_finished(run) for run in cells)
        self._running: dict[str, _RunningCell] = {}
        self._ended_runs: set[str] = set()
        self._seconds = 0.0
        """Of the cells that have finished since this process began."""
        self._parts = 0.0
        """How many whole cells those would be: some went on from a checkpoint."""
        self._training_shares: list[float] = []
        self._most_at_once = 1
        self._lock = threading.Lock()

    def shown_in(self, rows: ProgressView) -> None:
        """Show a bar for all cells and one for each that runs, or a line now and then."""
        self.rows = rows
        rows.describe = self.describe
        with self._lock:
            self._show_all()

    def handle(self, event: Mapping[str, Any]) -> None:
        """Show an event that a cell sent."""
        with self._lock:
            run, kind = event["run"], event["event"]
            name = describe_cell(self.cells[run])
            if kind == "warning":
                self.console.print(f"warning: {name}: {event['text']}")
                return
            # Events of a cell may still be on their way when it is known to be over.
            if run in self._ended_runs:
                return
            if run not in self._running:
                self._running[run] = _RunningCell(time.monotonic())
                self._most_at_once = max(self._most_at_once, len(self._running))
                self.console.print(f"          started   {name}")
            self._take_in(self._running[run], event)
            self._show_cell(row_name(self.cells[run]), self._running[run], event)
            self._show_all()

    def _take_in(self, cell: _RunningCell, event: Mapping[str, Any]) -> None:
        if event["event"] == "stage":
            if event["stage"] == "evaluate":
                cell.trained, cell.trained_at = 1.0, time.monotonic()
                if cell.trained_before is None:
                    cell.trained_before = 1.0
        elif event["event"] == "waiting":
            cell.doing, cell.count = event["what"], ""
        elif event["event"] == "progress":
            cell.doing = event["name"]
            cell.count = f"{event['done']}/{event['total']} {event['unit']}"
            if event["name"] == "train":
                total = max(event["total"], 1)
                cell.trained = event["done"] / total
                if cell.trained_before is None:
                    cell.trained_before = (event["done"] - 1) / total

    def _show_cell(self, name: str, cell: _RunningCell, event: Mapping[str, Any]) -> None:
        if self.rows is None:
            return
        if event["event"] == "progress":
            self.rows.show(name, event["done"], event["total"], cell.count, cell.doing)
        else:
            self.rows.show(name, 0, None, "", cell.doing)

    def _show_all(self) -> None:
        if self.rows is not None:
            self.rows.show(
                "all cells",
                self.cells_done(),
                len(self.cells),
                f"{self._done}/{len(self.cells)} cells",
                "" if self._running or self._done == len(self.cells) else STARTING,
                seconds_left=self.seconds_left(),
                own_estimate=True,
            )

    def cells_done(self) -> float:
        """Return how many cells are done, parts of running ones included."""
        trained = sum(cell.trained for cell in self._running.values())
        return self._done + self._training_share() * trained

    def seconds_left(self) -> float | None:
        """Estimate the time that the sweep still needs; None before anything is known of it."""
        left = len(self.cells) - self.cells_done()
        seconds, parts = self._seconds, self._parts
        if not parts:
            # No cell has ended: what is done of their training says how long one takes.
            now, begun = time.monotonic(), [cell for cell in self._running.values() if cell.trained]
            parts = sum(TRAINING_SHARE * (cell.trained - _before(cell)) for cell in begun)
            seconds = sum(now - cell.began for cell in begun)
        if not parts:
            return None
        return seconds / parts * left / min(self._most_at_once, max(left, 1))

    def _training_share(self) -> float:
        shares = self._training_shares
        return sum(shares) / len(shares) if shares else TRAINING_SHARE

    def describe(self) -> str:
        """Return a line about all cells, and those that run."""
        with self._lock:
            seconds = self.seconds_left()
            left = "" if seconds is None else f", about {age(seconds)} left"
            line = f"          {self._done} of {len(self.cells)} cells{left}"
            cells = [
                f"{describe_cell(self.cells[run])}: {cell.doing} {cell.count}".rstrip()
                for run, cell in self._running.items()
            ]
            if len(cells) > SHOWN_CELLS:
                doing = Counter(cell.doing for cell in self._running.values())
                cells = [f"{count} × {what}" for what, count in doing.most_common()]
            return " · ".join([line, *cells])

    def finished(self, run: str) -> None:
        """Mark a cell as finished."""
        self._ended(run, "finished", primary_results(self.directory, run))

    def failed(self, run: str, cause: str) -> None:
        """Mark a cell as failed for good."""
        self._ended(run, "FAILED", cause)

    def retried(self, run: str) -> None:
        """Warn that a cell, or its process, failed and is tried again."""
        with self._lock:
            self._running.pop(run, None)
        self.console.print(f"warning: {describe_cell(self.cells[run])}: trying again")

    def _ended(self, run: str, how: str, what: str) -> None:
        with self._lock:
            self._done += 1
            self._ended_runs.add(run)
            name, took = describe_cell(self.cells[run]), ""
            cell = self._running.pop(run, None)
            if cell is not None:
                seconds = time.monotonic() - cell.began
                took = f" ({seconds:.0f} s)"
                if how == "finished" and cell.trained_at is not None and not _before(cell):
                    self._training_shares.append((cell.trained_at - cell.began) / seconds)
                if how == "finished":
                    self._seconds += seconds
                    self._parts += 1 - self._training_share() * _before(cell)
            self.console.print(f"          {how:<9} {name}{took}  {what}".rstrip())
            if self.rows is not None:
                self.rows.remove(row_name(self.cells[run]))
                self._show_all()


def _before(cell: _RunningCell) -> float:
    return cell.trained_before or 0.0


def describe_cell(cell: PlannedCell) -> str:
    """Describe a cell by its values on the axes."""
    if not cell.settings:
        return f"model {cell.spec.name}"
    values = [
        label(value) if axis in ("objective", "model", "dataset") else f"{axis} {label(value)}"
        for axis, value in cell.settings.items()
    ]
    return ", ".join(values)


def row_name(cell: PlannedCell) -> str:
    """Describe a cell as shortly as it can be told from others: bars are beside it."""
    if not cell.settings:
        return describe_cell(cell)
    axes = [axis.rsplit(".")[-1] for axis in cell.settings]
    return " ".join(
        f"seed {label(value)}" if axis == "seed" else label(value)
        for axis, value in zip(axes, cell.settings.values(), strict=True)
    )


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
