"""Writing results so that they are either whole or absent, and telling what was damaged since."""

from __future__ import annotations

import errno
import glob
import math
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

from filelock import FileLock, Timeout

Item = TypeVar("Item")

LEFTOVER_AGE = 24 * 3600.0
"""Seconds after which a directory that was never finished is one of a process that was killed."""

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
    _remove_leftovers(path)
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


def _remove_leftovers(path: Path) -> None:
    """Remove what processes that were killed have left of ``path``, when it is a day old."""
    for aside in path.parent.glob(f".{glob.escape(path.name)}.????????"):
        with suppress(OSError):
            if aside.is_dir() and time.time() - aside.stat().st_mtime > LEFTOVER_AGE:
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


def append_line(path: Path, line: str) -> None:
    """Append one line, its end not included; if that fails, as on a full disk, nothing is left."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        append_whole(descriptor, line.encode() + b"\n")
    finally:
        os.close(descriptor)


def append_whole(descriptor: int, content: bytes) -> None:
    """Append ``content`` to an open file that no other process appends to, all of it or nothing."""
    size = os.fstat(descriptor).st_size
    try:
        while content:
            content = content[os.write(descriptor, content) :]
    except BaseException:
        os.ftruncate(descriptor, size)
        raise


def read_lines(
    path: Path, parse: Callable[[bytes], Item], on_damage: Callable[[str], None]
) -> Iterator[Item]:
    """Yield every line of a file that others may append to, as ``parse`` returns it.

    Args:
        path: of the file, which need not exist.
        parse: may raise ValueError, LookupError or TypeError, for a line that is damaged.
        on_damage: called with file, number and cause of every line that is left out.
    """
    if not path.exists():
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):  # still being written
                return
            try:
                item = parse(line)
            except (ValueError, LookupError, TypeError) as error:
                on_damage(damaged_line(path, number, error))
                continue
            yield item


def damaged_line(path: Path, number: int, error: Exception) -> str:
    """Say that a line is left out, and why."""
    return f"{path}:{number}: damaged, so this line is left out ({_first_line(error)})"


class DamagedFileError(ValueError):
    """A file is not what was written; the message names it and says what to do."""


class DamageWarning(UserWarning):
    """Something was damaged and has been made anew."""


@contextmanager
def reading(path: Path, remedy: str) -> Iterator[None]:
    """Name ``path`` where the block cannot read its content.

    Raises:
        DamagedFileError: it cannot; ``remedy`` says what to do.
    """
    try:
        yield
    except DamagedFileError:
        raise
    except OSError as error:
        if error.errno is not None:
            raise
        raise DamagedFileError(f"{path}: damaged ({_first_line(error)}); {remedy}") from None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise DamagedFileError(f"{path}: damaged ({_first_line(error)}); {remedy}") from None


def _first_line(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}".splitlines()[0]
    return text if len(text) <= 200 else f"{text[:200]}…"


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
