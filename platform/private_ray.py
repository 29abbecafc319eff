"""The directory of the Ray that a command starts for itself; what a killed command left of one."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from deft.workers.common.files import exclusive

PREFIX = "deft-ray-"
"""Beginning of the directories' names."""

SESSION = "r"
"""Ray's part of a directory, which it opens to all users; they cannot get to it."""

MAX_FOLDER = 22
"""Characters of the folder that they lie in: a socket's path has 107, and Ray's part 70."""

ATTEMPTS, PAUSE = 25, 0.2
"""How often a directory is tried to be removed, and the seconds between."""

MAX_SECONDS_WITHOUT_LOCK = 10.0
"""Seconds that a command may take from making a directory to locking it."""


@contextmanager
def session_directory() -> Iterator[Path]:
    """Yield a path for Ray in a directory of this user's, which vanishes with the block."""
    directory = Path(tempfile.mkdtemp(prefix=PREFIX, dir=sessions_folder()))
    try:
        with exclusive(directory / ".lock", patience=0):
            yield directory / SESSION
    finally:
        # This one is unlocked by now. Processes of a killed command may have written until now.
        remove_leftovers(directory.parent)


def sessions_folder() -> Path:
    """Return the folder that the directories lie in."""
    folder = Path(tempfile.gettempdir())
    return folder if len(str(folder)) <= MAX_FOLDER else Path("/tmp")


def remove_leftovers(folder: Path) -> None:
    """Remove the directories in ``folder`` whose command is no longer there, and end its Ray."""
    for directory in folder.glob(f"{PREFIX}*"):
        lock = directory / ".lock"
        with suppress(OSError):
            status = directory.stat()
            # Without a lock, its command is about to make it, or a process of a killed command
            # made the directory anew.
            is_old = time.time() - status.st_mtime > MAX_SECONDS_WITHOUT_LOCK
            if status.st_uid == os.getuid() and (lock.exists() or is_old):
                with exclusive(lock, patience=0):
                    _kill_users(directory)
                    _remove(directory)


def _kill_users(directory: Path) -> None:
    """Kill Ray's processes that have files of ``directory`` open: their command is dead.

    Most of them end by themselves within seconds, but agents that have lost their node's manager
    wait for the head for minutes, with SIGTERM blocked (`signals`).
    """
    directory = directory.resolve()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            command = process.cmdline()
            is_rays = bool(command) and (
                command[0].startswith("ray::") or any("/ray/" in part for part in command[:3])
            )
            if is_rays and any(
                Path(file.path).is_relative_to(directory) for file in process.open_files()
            ):
                process.kill()


def kill_helpers() -> None:
    """Kill the children of this process that are Ray's, but for the head and the node's manager.

    They are its autoscaler, dashboard and log monitor. SIGTERM is blocked in them (`signals`), and
    Ray would wait for each of them for a second before it kills it.
    """
    for process in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if any("/ray/" in part and part.endswith(".py") for part in process.cmdline()[1:3]):
                process.kill()


def _remove(directory: Path) -> None:
    """Remove a directory; what Ray's processes still write to as they end is left to the next."""
    for _ in range(ATTEMPTS):
        shutil.rmtree(directory / SESSION, ignore_errors=True)
        if not (directory / SESSION).exists():
            shutil.rmtree(directory, ignore_errors=True)
            return
        time.sleep(PAUSE)


def close_token_file() -> None:
    """Let only its owner read the token of Ray's clusters: Ray makes it readable to all."""
    file = Path.home() / ".ray" / "auth_token"
    with suppress(OSError):
        if file.stat().st_mode & 0o077:
            file.chmod(0o600)
