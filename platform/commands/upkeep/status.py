"""`deft status`: runs and sweeps of a root in a table, once or for as long as one watches."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import BaseModel
from rich.live import Live
from rich.table import Table
from rich.text import Text

from deft.platform.commands.upkeep.survey import RunStatus, State, size_of, survey_runs
from deft.platform.console import RunConsole
from deft.platform.errors import UserError
from deft.platform.records.find import require_existing_root
from deft.platform.records.root_use import is_held
from deft.workers.common.text import printable

MAX_CAUSE = 120
"""Characters of a cause in the table; `deft logs` has all of it."""
WATCH_INTERVAL = 2.0
"""Seconds between looks at the root."""
COLORS = {"running": "cyan", "finished": "green", "failed": "red", "stopped": "yellow"}


class SweepStatus(BaseModel):
    """One sweep and the states of its cells."""

    name: str
    state: State
    num_cells: int
    """All its runs, the models that cells start from included."""
    num_finished: int
    num_failed: int
    num_running: int
    seconds_left: float | None = None
    """At the mean time of a finished cell and with as many at a time as now."""
    changed_at: float
    size: int
    """Bytes on disk, without its cells."""


class RootStatus(BaseModel):
    """Everything in a run root."""

    root: str
    sweeps: list[SweepStatus]
    runs: list[RunStatus]
    cells_of: dict[str, list[str]]
    """Sweep → its runs."""
    cache_size: int
    """Bytes on disk of what runs share."""


CellsOf = Callable[[Path], list[str]]
"""Directory of a sweep → the names of its runs."""
FailuresOf = Callable[[Path, str], str]
"""Directory of a sweep and a run of it → why the run failed the last time; empty if it did not."""


def survey(root: Path, cells_of: CellsOf, failure_of: FailuresOf) -> RootStatus:
    """Look at everything in a run root.

    Raises:
        UserError: there is no such folder.
    """
    require_existing_root(root)
    runs = survey_runs(root)
    sweeps = sorted(file.parent for file in root.glob("sweeps/*/sweep.json"))
    cells = {sweep.name: cells_of(sweep) for sweep in sweeps}
    by_name = {run.name: run for run in runs}
    for sweep in sweeps:
        for name in cells[sweep.name]:
            run = by_name.get(name)
            cause = failure_of(sweep, name)
            if run is not None and run.state == "stopped" and cause:
                by_name[name] = run.model_copy(update={"state": "failed", "cause": cause})
    statuses = [_sweep_status(sweep, cells[sweep.name], by_name, failure_of) for sweep in sweeps]
    return RootStatus(
        root=str(root),
        sweeps=sorted(statuses, key=lambda sweep: -sweep.changed_at),
        runs=[by_name[run.name] for run in runs],
        cells_of=cells,
        cache_size=size_of(root / "cache"),
    )


def _sweep_status(
    sweep: Path, cells: Sequence[str], runs: dict[str, RunStatus], failure_of: FailuresOf
) -> SweepStatus:
    begun = [runs[name] for name in cells if name in runs]
    finished = [run for run in begun if run.state == "finished"]
    num_running = sum(run.state == "running" for run in begun)
    num_failed = sum(bool(failure_of(sweep, name)) for name in cells)
    num_left = len(cells) - len(finished) - num_failed
    state: State = "running" if is_held(sweep / ".lock") else "stopped"
    if state != "running" and num_left == 0:
        state = "failed" if num_failed else "finished"
    seconds_left = None
    if state == "running" and finished:
        seconds = [_seconds_of(sweep.parent.parent / run.name, run) for run in finished]
        seconds_left = sum(seconds) / len(seconds) * num_left / max(num_running, 1)
    return SweepStatus(
        name=sweep.name,
        state=state,
        num_cells=len(cells),
        num_finished=len(finished),
        num_failed=num_failed,
        num_running=num_running,
        seconds_left=seconds_left,
        changed_at=max(
            [run.changed_at for run in begun] + [(sweep / "sweep.json").stat().st_mtime]
        ),
        size=size_of(sweep),
    )


def _seconds_of(directory: Path, run: RunStatus) -> float:
    """Return how long a finished run took since it was last started, without preparing."""
    return max(run.changed_at - (directory / "spec.json").stat().st_mtime, 0.0)


def select(status: RootStatus, name: str | None, *, everything: bool) -> RootStatus:
    """Choose what is shown: one sweep's or run's, or all but the finished cells of sweeps.

    Raises:
        UserError: nothing begins with ``name``.
    """
    if name is not None:
        sweeps = [sweep for sweep in status.sweeps if sweep.name.startswith(name)]
        cells = {cell for sweep in sweeps for cell in status.cells_of[sweep.name]}
        runs = [run for run in status.runs if run.name in cells or run.name.startswith(name)]
        if not sweeps and not runs:
            raise UserError(f"{name}: no run and no sweep of {status.root} begins so; deft status")
        return status.model_copy(update={"sweeps": sweeps, "runs": runs})
    if everything:
        return status
    cells = {cell for names in status.cells_of.values() for cell in names}
    runs = [run for run in status.runs if run.state != "finished" or run.name not in cells]
    return status.model_copy(update={"runs": runs})


def status_table(shown: RootStatus, width: int) -> Table:
    """Make a table of sweeps and runs for a terminal of ``width`` columns."""
    table = Table(box=None, pad_edge=False)
    names = [*(sweep.name for sweep in shown.sweeps), *(run.name for run in shown.runs)]
    longest = max(map(len, names), default=0)
    table.add_column("sweep or run", overflow="fold", no_wrap=longest <= width // 2)
    for heading in ("state", "result"):
        table.add_column(heading, overflow="fold")
    for heading in ("age", "size"):
        table.add_column(heading, justify="right", no_wrap=True)
    now = time.time()
    for sweep in shown.sweeps:
        counts = [f"{sweep.num_finished} of {sweep.num_cells} runs finished"]
        counts += [f"{sweep.num_failed} failed"] if sweep.num_failed else []
        table.add_row(
            Text(printable(sweep.name), "bold"),
            _state(sweep.state, sweep.state, sweep.seconds_left),
            ", ".join(counts),
            age(now - sweep.changed_at),
            bytes_text(sweep.size),
        )
    for run in shown.runs:
        progress = run.progress
        where = run.state if run.stage is None else f"{run.state} in {run.stage}"
        if progress is not None:
            where += f" {progress.done}/{progress.total}"
        left = progress.seconds_left if progress and run.state == "running" else None
        table.add_row(
            Text(printable(run.name)),
            _state(run.state, where, left),
            Text(printable(run.cause or run.result)[:MAX_CAUSE]),
            age(now - run.changed_at),
            bytes_text(run.size),
        )
    return table


def _state(state: State, text: str, seconds_left: float | None) -> Text:
    left = "" if seconds_left is None else f", about {age(seconds_left)} left"
    return Text(f"{text}{left}", COLORS[state])


def age(seconds: float) -> str:
    """Write a time in its largest unit, as in `3 min`."""
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size or (unit == "min" and seconds >= size):
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def bytes_text(size: int) -> str:
    """Write a number of bytes in the unit that leaves one to three digits, as in `12 MB`."""
    value, units = size / 1000, ["kB", "MB", "GB", "TB"]
    while value >= 999.5 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.1f} {units[0]}" if 0 < value < 9.95 else f"{value:.0f} {units[0]}"


def footer(status: RootStatus, shown: RootStatus) -> str:
    """Say what the table leaves out, and how much all of it takes."""
    total = status.cache_size + sum(run.size for run in status.runs)
    total += sum(sweep.size for sweep in status.sweeps)
    text = (
        f"{len(status.runs)} runs, {len(status.sweeps)} sweeps; {bytes_text(total)} with "
        f"{bytes_text(status.cache_size)} of cache"
    )
    if hidden := len(status.runs) - len(shown.runs):
        text += f"; {hidden} runs not shown, --all shows them"
    return text


def show_status(status: RootStatus, shown: RootStatus, console: RunConsole) -> None:
    """Print the table; into a pipe, whole names, whatever the width."""
    if not shown.runs and not shown.sweeps:
        console.print(f"{status.root}: no runs there yet; start one with `deft run`")
        return
    console.widen_pipe()
    console.console.print(status_table(shown, console.console.width))
    console.print(footer(status, shown))


def watch(look: Callable[[], tuple[RootStatus, RootStatus]], console: RunConsole) -> None:
    """Show the table anew every `WATCH_INTERVAL` seconds, until Ctrl-C.

    Raises:
        UserError: there is no terminal.
    """
    if not console.console.is_terminal:
        raise UserError("--watch: needs a terminal; without one, leave it out or give --json")
    try:
        with Live(console=console.console, auto_refresh=False, screen=False) as live:
            while True:
                status, shown = look()
                table = status_table(shown, console.console.width)
                table.caption = f"{footer(status, shown)}; Ctrl-C ends this"
                table.caption_justify = "left"
                live.update(table, refresh=True)
                time.sleep(WATCH_INTERVAL)
    except KeyboardInterrupt:
        sys.exit(0)  # to look on is no work that could be cut short
