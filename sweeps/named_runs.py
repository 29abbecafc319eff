"""The runs that people mean by names of runs and of sweeps."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from deft.platform.console import RunConsole
from deft.platform.errors import UserError
from deft.platform.records.find import find_newest_run
from deft.sweeps.report.read_sweep import find_sweep, read_sweep


def find_compared(
    names: list[str], sweep: str | None, root: Path, console: RunConsole
) -> list[Path]:
    """Find runs by name, in a sweep if one is given, and all of its finished ones without names."""
    if sweep is None:
        return [find_newest_run(name, root, console.print) for name in names]
    cells = read_sweep(find_sweep(sweep, root), root).cells
    finished = [cell.run for cell in cells if cell.state == "finished"]
    return [
        find_newest_run(name, root, console.print, among=finished) for name in names or finished
    ]


def find_viewed(names: list[str], root: Path, console: RunConsole) -> tuple[list[Path], Path, str]:
    """Return the runs that are shown, the folder for the page, and its title."""
    if len(names) == 1 and [*root.glob("sweeps/*/sweep.json")]:
        with suppress(UserError):
            sweep = find_sweep(names[0], root)
            runs = find_compared([], names[0], root, console)
            return runs, sweep, f"Responses of {sweep.name}"
    runs = find_compared(names, None, root, console)
    return runs, runs[0], f"Responses of {' and '.join(run.name for run in runs)}"
