"""`deft logs`: what a run has said, with the time of every line."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from deft.platform.console import LOG
from deft.platform.errors import UserError
from deft.platform.records.root_use import is_held

FOLLOW_INTERVAL = 0.5
"""Seconds between looks at a log that may grow."""


def show_log(run: Path, lines: int | None, *, follow: bool) -> None:
    """Print the log of the run in directory ``run``.

    Args:
        run: its directory.
        lines: how many of the last ones; None for all.
        follow: whether to go on as long as a process works on the run.

    Raises:
        UserError: it has no log.
    """
    file = run / LOG
    if not file.is_file():
        raise UserError(f"{file}: no such file; a run begins it when its data are prepared")
    with file.open(encoding="utf-8", errors="replace") as log:
        text = log.read()
        shown = text.splitlines(keepends=True)[-lines if lines else None :]
        sys.stdout.write("".join(shown))
        sys.stdout.flush()
        try:
            while follow:
                is_running = is_held(run / ".lock")  # before the last look: nothing comes after it
                sys.stdout.write(log.read())
                sys.stdout.flush()
                if not is_running:
                    return
                time.sleep(FOLLOW_INTERVAL)
        except KeyboardInterrupt:
            sys.exit(0)  # to look on is no work that could be cut short
