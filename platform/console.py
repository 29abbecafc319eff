"""Output of commands: progress bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from textwrap import TextWrapper
from typing import Any, Literal

from rich.cells import cell_len
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column, Table
from rich.text import Text

from deft.workers.common.clock import now_ms
from deft.workers.common.files import append_line
from deft.workers.common.secrets import without_secrets
from deft.workers.common.text import printable

MIN_NAME_WIDTH = 12
"""Columns of a terminal that the names of a table's rows need at least."""

WIDE = 100
"""Columns of a terminal from which on bars are long."""

PLAIN_LINES = 10
"""Number of lines per bar where there is no terminal."""

MIN_PAUSE = 1.0
"""Seconds between two lines of a bar where there is no terminal, but for its last line."""

HEARTBEAT = 28.0
"""Seconds without a line after which one says what goes on, where there is no terminal."""

PIPE_WIDTH = 500
"""Columns of a table where no terminal limits them: nothing is broken into lines."""

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
        self._spoke_at = time.monotonic()

    def __reduce__(self) -> tuple[Callable[[], RunConsole], tuple[()]]:
        """Become the console of the process that it is sent to: a terminal cannot be pickled."""
        return RunConsole, ()

    def print(self, text: str) -> None:
        """Print ``text`` literally; control characters are escaped."""
        self.note(text)
        shown = printable(text)
        indent = len(shown) - len(shown.lstrip())
        self.console.print(Text(self._wrapped(shown, indent)), soft_wrap=True)

    def stage(self, name: str, text: str) -> None:
        """Print one line about a stage."""
        self.note(f"{name:<9} {text}")
        line = Text(self._wrapped(f"{printable(name):<9} {printable(text)}", indent=10))
        line.stylize("bold", 0, len(printable(name)))
        self.console.print(line, soft_wrap=True)

    def _wrapped(self, text: str, indent: int) -> str:
        """Break lines at spaces where a terminal would break words; names and links stay whole."""
        if not self.console.is_terminal:
            return text
        wrapper = TextWrapper(
            self.console.width,
            subsequent_indent=" " * indent,
            break_long_words=False,
            break_on_hyphens=False,
            replace_whitespace=False,
            expand_tabs=False,
        )
        return "\n".join(wrapper.fill(line) for line in text.split("\n"))

    def note(self, text: str) -> None:
        """Keep a line in the log, with the time and without passwords, but do not print it."""
        self._spoke_at = time.monotonic()
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
    def progress(self, unit: str, *, transient: bool = False) -> Iterator[ProgressView]:
        """Show the rows of one stage for as long as the block runs; ``transient`` ones vanish.

        Without a terminal, a line says every `HEARTBEAT` seconds what goes on.
        """
        if not self.console.is_terminal:
            view = ProgressView(self, unit, None)
            ended = threading.Event()
            arguments = (view, ended)
            threading.Thread(target=self._keep_speaking, args=arguments, daemon=True).start()
            try:
                yield view
            finally:
                ended.set()
            return
        bars = Progress(
            CutColumn(lambda task: f"  {task.description}"),
            BarColumn(bar_width=24 if self.console.width >= WIDE else 12),
            TextColumn("{task.fields[count]}", markup=False),
            *([TimeElapsedColumn()] if self.console.width >= WIDE else []),
            TimeLeftColumn(),
            CutColumn(lambda task: str(task.fields["note"])),
            console=self.console,
            transient=transient,
        )
        with bars:
            view = ProgressView(self, unit, bars)
            try:
                yield view
            finally:
                view.wait("")

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Say what is waited for during a block without steps to count."""
        with self.progress("", transient=True) as view:
            view.wait(what)
            yield

    def _keep_speaking(self, view: ProgressView, ended: threading.Event) -> None:
        pause = HEARTBEAT
        while not ended.wait(pause):
            pause = self._spoke_at + HEARTBEAT - time.monotonic()
            if pause <= 0:
                pause = HEARTBEAT
                if line := view.describe():
                    self.print(line)

    def widen_pipe(self) -> None:
        """Let what is printed from now on have `PIPE_WIDTH` columns, unless it is to a terminal."""
        if not self.console.is_terminal:
            self.console.width = PIPE_WIDTH

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
        `MIN_NAME_WIDTH` columns of the terminal for the names of rows, which are broken at hyphens
        and spaces.
        """
        table = Table(
            title=Text(printable(title), "bold"), title_justify="left", show_header=any(columns)
        )
        for_names = self.console.width - _width([columns, *rows])
        whole = not left and for_names >= MIN_NAME_WIDTH
        for index, column in enumerate(columns):
            justify: Literal["left", "right"] = "right" if index and not left else "left"
            table.add_column(
                Text(printable(column)),
                justify=justify,
                overflow="fold",
                no_wrap=whole and index > 0,
            )
        for name, *entries in rows:
            shown = _broken(printable(name), for_names) if whole else printable(name)
            table.add_row(Text(shown), *(Text(printable(entry)) for entry in entries))
        self.console.print(table)


def _broken(name: str, width: int) -> str:
    """Break a name into lines of at most ``width``, after hyphens and spaces, where it has any."""
    lines = [""]
    for part in re.split(r"(?<=[- ])", name):
        if lines[-1] and cell_len(lines[-1] + part.rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _width(rows: Sequence[Sequence[str]]) -> int:
    """Return the width of a table without its first column."""
    entries = zip(*rows, strict=True)
    next(entries, None)
    widths = [
        max(cell_len(line) for entry in column for line in entry.split("\n")) for column in entries
    ]
    return sum(widths) + 3 * len(widths) + 4


class CutColumn(ProgressColumn):
    """Words that are cut where the terminal is too narrow for them and all numbers."""

    def __init__(self, words: Callable[[Task], str]) -> None:
        super().__init__(Column(no_wrap=False))  # Rich takes from columns that may be wrapped
        self._words = words

    def render(self, task: Task) -> Text:
        """Show them on one line."""
        return Text(self._words(task), no_wrap=True, overflow="ellipsis")


class TimeLeftColumn(ProgressColumn):
    """The time that is left: what the row says itself, or an estimate from its speed."""

    def render(self, task: Task) -> Text:
        """Show nothing where that is not known."""
        seconds = task.fields["seconds_left"]
        if task.finished:
            return Text()
        if seconds is None and task.total is not None and not task.fields["own_estimate"]:
            seconds = task.time_remaining
        return Text("" if seconds is None else f"eta {timedelta(seconds=round(seconds))}")


@dataclass
class _Row:
    """What a row of a progress view counts."""

    began: float
    first: int
    """Count when it began: a stage may go on where an interrupted one ended."""
    done: int = 0
    total: int = 0
    note: str = ""
    printed: int = -1
    """The last tenth that there was a line about."""
    quiet_until: float = 0.0


class ProgressView:
    """Rows of progress by name. Without a terminal a row becomes up to `PLAIN_LINES` + 1 lines."""

    def __init__(self, owner: RunConsole, unit: str, bars: Progress | None) -> None:
        self.owner = owner
        self.unit = unit
        self.bars = bars
        self.describe: Callable[[], str] = self._describe
        """Returns a line about what goes on; empty if there is nothing to say."""
        self._tasks: dict[str, TaskID] = {}
        self._rows: dict[str, _Row] = {}
        self._current = ""
        self._waits_for: tuple[str, float] | None = None

    def update(
        self, name: str, done: int, total: int, note: str = "", *, unit: str | None = None
    ) -> None:
        """Show that ``done`` of ``total`` units of ``name`` are finished; end a `wait`.

        Args:
            name: of the row.
            done: what is finished.
            total: what there is.
            note: last words of the row.
            unit: of this row and those after it, where it is not the view's.
        """
        self.wait("")
        self.unit = unit or self.unit
        line = self.due_line(name, done, total, note)
        if self.bars is None:
            if line is not None:
                self.owner.print(line)
            return
        if line is not None:
            self.owner.note(line)
        self.show(name, done, total, f"{done}/{total} {self.unit}", note)

    def show(
        self,
        name: str,
        done: float,
        total: float | None,
        count: str,
        note: str = "",
        *,
        seconds_left: float | None = None,
        own_estimate: bool = False,
    ) -> None:
        """Set a bar on a terminal.

        Args:
            name: of the bar.
            done: how far it is filled.
            total: when it is full; None for a bar that only moves.
            count: how far it is, in words.
            note: last words of its line.
            seconds_left: time until it is full, where it is known.
            own_estimate: whether that is all that is said of the time left.
        """
        if self.bars is None:
            return
        fields: dict[str, Any] = {"count": printable(count), "note": printable(note)}
        fields |= {"seconds_left": seconds_left, "own_estimate": own_estimate}
        if name not in self._tasks:
            self._tasks[name] = self.bars.add_task(printable(name), total=total, **fields)
        self.bars.update(self._tasks[name], completed=done, total=total, **fields)

    def wait(self, what: str) -> None:
        """Show that something without steps goes on, until the next call; empty for nothing."""
        if what == (self._waits_for[0] if self._waits_for else ""):
            return
        if self._waits_for is not None:
            self.remove(self._waits_for[0])
        self._waits_for = (what, time.monotonic()) if what else None
        if not what:
            return
        if self.bars is None:
            self.owner.print(f"          {what} …")
        else:
            self.owner.note(f"          {what} …")
            self.show(what, 0, None, "")

    def due_line(self, name: str, done: int, total: int, note: str) -> str | None:
        """Return a line about the progress of ``name`` if another tenth of it is done.

        What ends within seconds gets fewer lines: `MIN_PAUSE` lies between them.
        """
        now = time.monotonic()
        row = self._rows.setdefault(name, _Row(now, done))
        row.done, row.total, row.note, self._current = done, total, note, name
        part = done * PLAIN_LINES // max(total, 1)
        if row.printed == part or (now < row.quiet_until and done < total):
            return None
        row.printed, row.quiet_until = part, now + MIN_PAUSE
        return self._line(name)

    def _line(self, name: str) -> str:
        row = self._rows[name]
        seconds_each = (time.monotonic() - row.began) / max(row.done - row.first, 1)
        left = ""
        if row.first < row.done < row.total:
            left = f", {seconds_each * (row.total - row.done):.0f} s left"
        return f"          {name} {row.done}/{row.total} {self.unit}{left}  {row.note}".rstrip()

    def _describe(self) -> str:
        if self._waits_for is not None:
            what, began = self._waits_for
            return f"          {what}, {time.monotonic() - began:.0f} s so far"
        return self._line(self._current) if self._current else ""

    def remove(self, name: str) -> None:
        """Remove a bar."""
        task = self._tasks.pop(name, None)
        if task is not None and self.bars is not None:
            self.bars.remove_task(task)


def format_metrics(metrics: Mapping[str, Any], names: Sequence[str]) -> str:
    """Format those of ``metrics`` that ``names`` lists, as in ``nll 1.234  grad_norm 0.5``."""
    return "  ".join(f"{name} {metrics[name]:.4g}" for name in names if name in metrics)
