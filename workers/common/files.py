"""Writing results so that they are either whole or absent, by one process at a time."""

from __future__ import annotations

import errno
import math
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

LOCK_INTERVAL = 0.2
"""Seconds between attempts to take a lock that another process holds."""


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that becomes ``path``, flushed to disk, if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_atomic(path: Path, text: str) -> None:
    """Write a text file that appears whole or not at all."""
    with atomic_file(path) as file:
        file.write(text.encode())


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield an empty directory that becomes ``path`` if the block succeeds, and vanishes if not.

    Whoever finishes first wins: if ``path`` exists by then, the new directory is thrown away.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    aside.mkdir()
    try:
        yield aside
        for file in aside.rglob("*"):
            if file.is_file():
                _fsync(file)
        try:
            aside.rename(path)
        except OSError:
            if not path.is_dir():
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def exclusive(path: Path, *, patience: float) -> Iterator[None]:
    """Hold the lock file ``path`` until the block, or this process however it dies, ends.

    Args:
        path: made if it is not there.
        patience: seconds to wait for another process that holds it.

    Raises:
        BlockingIOError: it was not free within that time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    timeout = -1 if math.isinf(patience) else patience
    # Where the file system has no flock, a marker file in its place would outlive a killed process.
    lock = FileLock(path, timeout, poll_interval=LOCK_INTERVAL, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise BlockingIOError(
            errno.EAGAIN, "another process holds this lock; wait for it", str(path)
        ) from None
    try:
        yield
    finally:
        lock.release()


def drop_torn_line(path: Path) -> None:
    """Cut off a last line that a crash left without its end, if there is such a file."""
    if path.exists():
        content = path.read_bytes()
        os.truncate(path, content.rfind(b"\n") + 1)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
