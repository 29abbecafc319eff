"""One cell of a sweep: a `deft run` that reports to the sweep's driver instead of a terminal."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import StringIO
from typing import Any

from ray import tune
from ray.util.queue import Queue
from rich.console import Console

from deft.platform.console import ProgressView, RunConsole
from deft.platform.errors import describe_error, root_cause
from deft.platform.run.context import RunContext
from deft.platform.run.driver import run_experiment
from deft.sweeps.directory import SweepDirectory

PROGRESS_INTERVAL = 1.0
"""Least seconds between two events about the progress of one cell."""

LOCK_PATIENCE = 120.0
"""Seconds to wait for a run that a killed driver's cell, or another sweep, is still working on."""


@dataclass(frozen=True)
class Trial:
    """Callable that an actor, or a trial of Ray Tune, runs for each cell of a sweep."""

    context: RunContext
    """That of the sweep; each cell replaces the console."""
    sweep: str
    """Name of the sweep's directory."""
    events: Queue
    reports: bool
    """Whether the held-out loss is reported to Ray Tune while a cell trains."""
    directory: str
    """The driver's working directory."""
    python_path: tuple[str, ...]
    """The driver's, for objectives that are named by import path."""

    def __call__(self, config: dict[str, Any]) -> None:
        sys.path.extend(path for path in self.python_path if path not in sys.path)
        # Paths in a spec count from where the command was given; Ray Tune changes to others.
        os.chdir(self.directory)
        directory = SweepDirectory(self.context.root, self.sweep)
        run = config["run"]
        console = CellConsole(run, self.events)
        try:
            run_experiment(
                directory.read_spec(run),
                replace(self.context, console=console),
                lock_patience=LOCK_PATIENCE,
                on_validation=report_validation if self.reports else None,
                sweep=self.sweep,
            )
        except Exception as error:
            cause = describe_error(root_cause(error))
            directory.fail(run, cause)
            console.print(f"warning: {cause}")
            # The original exception may not be picklable.
            raise RuntimeError(cause) from None
        directory.forget_failure(run)


def report_validation(step: int, metrics: dict[str, float]) -> None:
    """Report a cell's held-out loss to Ray Tune's scheduler."""
    if step > 0:
        tune.report({"step": step, "nll": metrics["nll"]})


class CellConsole(RunConsole):
    """Sends a run's stages, progress and warnings to the sweep's driver."""

    def __init__(self, run: str, events: Queue) -> None:
        super().__init__(Console(file=StringIO()))
        self.run = run
        self.events = events

    def print(self, text: str) -> None:
        self.note(text)
        if text.startswith("warning:"):
            self._send("warning", text=text.removeprefix("warning: "))

    def stage(self, name: str, text: str) -> None:
        self.note(f"{name:<9} {text}")
        self._send("stage", stage=name)

    @contextmanager
    def progress(self, unit: str, *, transient: bool = False) -> Iterator[ProgressView]:
        yield _CellProgress(self, unit)

    def table(self, *_: Any, **__: Any) -> None:
        """Print nothing: the sweep's report has the results."""

    def _send(self, event: str, **fields: Any) -> None:
        self.events.put({"event": event, "run": self.run, **fields})


class _CellProgress(ProgressView):
    def __init__(self, owner: CellConsole, unit: str) -> None:
        super().__init__(owner, unit, None)
        self._cell = owner
        self._sent = 0.0

    def wait(self, what: str) -> None:
        if what:
            self._cell.note(f"          {what} …")
            self._cell._send("waiting", what=what)

    def update(
        self, name: str, done: int, total: int, note: str = "", *, unit: str | None = None
    ) -> None:
        self.unit = unit or self.unit
        if (line := self.due_line(name, done, total, note)) is not None:
            self._cell.note(line)
        if done == total or time.monotonic() - self._sent > PROGRESS_INTERVAL:
            self._sent = time.monotonic()
            fields = {"name": name, "done": done, "total": total, "unit": self.unit}
            self._cell._send("progress", **fields)
