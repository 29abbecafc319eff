"""Output of commands: progress bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from rich.cells import cell_len
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from deft.workers.common.clock import now_ms
from deft.workers.common.files import append_line
from deft.workers.common.secrets import without_secrets
from deft.workers.common.text import printable

MIN_NAME_WIDTH = 12
"""Columns of a terminal that the names of a table's rows need at least."""

PLAIN_LINES = 10
"""Number of lines per bar where there is no terminal."""


LOG = "log.txt"
"""File of a run's directory that has what the run said, with times."""

MAX_UNLOGGED = 1000
"""Lines from before there was a log that are kept for it."""


class RunConsole:
    """Prints stages, progress and results, and keeps all but tables in a run's log."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self._log: Path | None = None
        self._unlogged: deque[str] = deque(maxlen=MAX_UNLOGGED)

    def __reduce__(self) -> tuple[Callable[[], RunConsole], tuple[()]]:
        """Become the console of the process that it is sent to: a terminal cannot be pickled."""
        return RunConsole, ()

    def print(self, text: str) -> None:
        """Print ``text`` literally; control characters are escaped."""
        self.note(text)
        self.console.print(Text(printable(text)), soft_wrap=True)

    def stage(self, name: str, text: str) -> None:
        """Print one line about a stage."""
        self.note(f"{name:<9} {text}")
        line = Text.assemble((f"{printable(name):<9}", "bold"), " ", printable(text))
        self.console.print(line, soft_wrap=True)

    def note(self, text: str) -> None:
        """Keep a line in the log, with the time and without passwords, but do not print it."""
        time_now = datetime.fromtimestamp(now_ms() / 1000).isoformat(" ", "seconds")
        line = f"{time_now}  {printable(without_secrets(text))}"
        if self._log is None:
            self._unlogged.append(line)
            return
        with suppress(OSError):  # what goes on is more than what is said of it
            append_line(self._log, line)

    @contextmanager
    def kept_in(self, directory: Path) -> Iterator[None]:
        """Append what was said before, and is said during a block, to the log in ``directory``."""
        self._log = directory / LOG
        try:
            with suppress(OSError):
                for line in self._unlogged:
                    append_line(self._log, line)
            yield
        except BaseException as error:
            text = " ".join(str(error).split())
            self.note(f"ended by {type(error).__name__}{f': {text}' if text else ''}")
            raise
        finally:
            self._log = None
            self._unlogged.clear()

    @contextmanager
    def progress(self, unit: str) -> Iterator[ProgressView]:
        """Show the bars of one stage for as long as the block runs."""
        if not self.console.is_terminal:
            yield ProgressView(self, unit, None)
            return
        bars = Progress(
            TextColumn("          {task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=self.console,
        )
        with bars:
            yield ProgressView(self, unit, bars)

    def table(
        self,
        title: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        left: bool = False,
    ) -> None:
        """Print a table; every column but the first is right-aligned, unless ``left``.

        Columns without names have no line for them. Numbers are not broken as long as there are
        `MIN_NAME_WIDTH` columns of the terminal for the names of rows.
        """
        table = Table(
            title=Text(printable(title), "bold"), title_justify="left", show_header=any(columns)
        )
        whole = not left and _width([columns, *rows]) + MIN_NAME_WIDTH <= self.console.width
        for index, column in enumerate(columns):
            justify: Literal["left", "right"] = "right" if index and not left else "left"
            table.add_column(
                Text(printable(column)),
                justify=justify,
                overflow="fold",
                no_wrap=whole and index > 0,
            )
        for row in rows:
            table.add_row(*(Text(printable(entry)) for entry in row))
        self.console.print(table)


def _width(rows: Sequence[Sequence[str]]) -> int:
    """Return the width of a table without its first column."""
    entries = zip(*rows, strict=True)
    next(entries, None)
    widths = [
        max(cell_len(line) for entry in column for line in entry.split("\n")) for column in entries
    ]
    return sum(widths) + 3 * len(widths) + 4


class ProgressView:
    """Progress bars by name. Without a terminal a bar becomes up to `PLAIN_LINES` + 1 lines."""

    def __init__(self, owner: RunConsole, unit: str, bars: Progress | None) -> None:
        self.owner = owner
        self.unit = unit
        self.bars = bars
        self.tasks: dict[str, TaskID] = {}
        self.started: dict[str, tuple[float, int]] = {}
        self.printed: dict[str, int] = {}

    def update(self, name: str, done: int, total: int, note: str = "") -> None:
        """Show that ``done`` of ``total`` units of ``name`` are finished."""
        line = self.due_line(name, done, total, note)
        if self.bars is None:
            if line is not None:
                self.owner.print(line)
            return
        if line is not None:
            self.owner.note(line)
        if name not in self.tasks:
            self.tasks[name] = self.bars.add_task(printable(name), total=total, note="")
        self.bars.update(self.tasks[name], completed=done, total=total, note=printable(note))

    def due_line(self, name: str, done: int, total: int, note: str) -> str | None:
        """Return a line about the progress of ``name`` if another tenth of it is done."""
        began, first = self.started.setdefault(name, (time.monotonic(), done))
        part = done * PLAIN_LINES // max(total, 1)
        if self.printed.get(name) == part:
            return None
        self.printed[name] = part
        seconds_each = (time.monotonic() - began) / max(done - first, 1)
        left = f", {seconds_each * (total - done):.0f} s left" if first < done < total else ""
        return f"          {name} {done}/{total} {self.unit}{left}  {note}".rstrip()

    def remove(self, name: str) -> None:
        """Remove a bar."""
        task = self.tasks.pop(name, None)
        if task is not None and self.bars is not None:
            self.bars.remove_task(task)


def format_metrics(metrics: Mapping[str, Any], names: Sequence[str]) -> str:
    """Format those of ``metrics`` that ``names`` lists, as in ``nll 1.234  grad_norm 0.5``."""
    return "  ".join(f"{name} {metrics[name]:.4g}" for name in names if name in metrics)
