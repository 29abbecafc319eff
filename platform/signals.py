"""SIGINT and SIGTERM: the first ends a command in good order, the second at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

import psutil
from rich.console import Console

from deft.platform.errors import print_error

HANDLED = (signal.SIGINT, signal.SIGTERM)
"""Signals that end a command."""

KEPT = {
    "run": "finished stages and stored checkpoints are kept; the same command goes on from there",
    "sweep": "finished cells, stages and checkpoints are kept; the same command goes on from there",
    "evaluate": "the responses so far are kept; the same command goes on from there",
    "report": "the sweep is as it was; the same command writes the report",
    "submit": "nothing was submitted, or the job goes on; `ray job list` tells",
}
"""What is left of the work of a command that a signal has ended."""

_received: list[signal.Signals] = []


def handle_signals() -> None:
    """Raise KeyboardInterrupt in the main thread at the first signal; end at the second."""
    for number in HANDLED:
        signal.signal(number, _interrupt)


def leave_signals_to_system() -> None:
    """Let a signal end the process: once its work is done, there is nothing left to interrupt."""
    for number in HANDLED:
        signal.signal(number, signal.SIG_DFL)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if _received:
        Console(stderr=True).show_cursor()  # which a progress bar has hidden
        # Ray's agents would look for its head for two minutes.
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        os._exit(exit_code(signal.Signals(number)))
    _received.append(signal.Signals(number))
    raise KeyboardInterrupt


def received_signal() -> signal.Signals | None:
    """Return the signal that this process has been asked to end by, if there was one."""
    return _received[0] if _received else None


def end_by_signal(kept: str) -> NoReturn:
    """Exit as a command does that a signal has ended; ``kept`` says what is left of its work."""
    received = received_signal() or signal.SIGINT
    print_error(f"ended by {received.name}; {kept}")
    sys.exit(exit_code(received))


def exit_code(number: signal.Signals) -> int:
    """Return the exit code of a command that ``number`` ended, as shells give it."""
    return 128 + number


@contextmanager
def sigterm_blocked_in_children() -> Iterator[None]:
    """Start the processes of a block with SIGTERM blocked, as Ray starts its own with SIGINT.

    `timeout`, SLURM and `kill` of a process group send SIGTERM to Ray's processes as well,
    which would be gone before a checkpoint is stored. A blocked signal stays so in all descendants;
    Ray ends them by SIGKILL. What this process receives meanwhile arrives after the block.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def kept_signal_handlers() -> Iterator[None]:
    """Restore this process's handlers after a block in which a library sets its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in HANDLED}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
