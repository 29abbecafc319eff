"""Who is at work in a run root: commands that use its caches, and processes that hold its runs."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FILE = ".in-use"
"""Lock file in a run root while a command uses it: shared by commands, exclusive for `clean`."""


@contextmanager
def using(root: Path) -> Iterator[None]:
    """Mark a run root as used: `deft clean` leaves alone what this process may need.

    What was made for that is gone after the block, unless something else lies there by then.
    """
    made = [folder for folder in (root, *root.parents) if not folder.exists()]
    root.mkdir(parents=True, exist_ok=True)
    descriptor = _lock(root / FILE, fcntl.LOCK_SH)
    assert descriptor is not None
    try:
        yield
    finally:
        _release(root / FILE, descriptor)
        for folder in made:
            with suppress(OSError):
                folder.rmdir()


@contextmanager
def alone_in(root: Path) -> Iterator[bool]:
    """Keep commands from beginning to use a run root; yield False if one uses it already."""
    descriptor = _lock(root / FILE, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            _release(root / FILE, descriptor)


def _lock(file: Path, operation: int) -> int | None:
    """Open and lock ``file``, which others may remove meanwhile; None if another process has it."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, operation)
            with suppress(FileNotFoundError):
                if os.fstat(descriptor).st_ino == file.stat().st_ino:
                    return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _release(file: Path, descriptor: int) -> None:
    """Give a lock back; the last one who has it removes the file."""
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.unlink()
    os.close(descriptor)


def is_held(lock: Path) -> bool:
    """Tell whether a process holds a lock file of `deft.workers.common.files.exclusive`."""
    try:
        descriptor = os.open(lock, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
