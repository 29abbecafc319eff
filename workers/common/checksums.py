"""Checksums: names made from content, and proof that stored files are what was written."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from deft.workers.common.files import DamageWarning, atomic_directory

FOLDER = "checksums"
"""Folder of a directory's checksums: one file for each part that it was merged from."""
SETTLED_NS = 10 * 10**9
"""Nanoseconds after its last change in which a file's times do not prove that it is the same."""
HASH_DIGITS = 12
"""Hexadecimal digits of a name that `hash_parts` makes."""


def hash_parts(*parts: str | bytes) -> str:
    """Return `HASH_DIGITS` digits of the SHA-256 of ``parts``, each ended by a zero byte."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
        digest.update(b"\0")
    return digest.hexdigest()[:HASH_DIGITS]


def hash_files(files: Iterable[tuple[str, Path]]) -> str:
    """Return the SHA-256 of the names and contents of ``files``, given as (name, path).

    A process reads a file once while it stays as it is: each cell of a sweep hashes its data.
    """
    digest = hashlib.sha256()
    for name, file in files:
        digest.update(name.encode() + b"\0" + _content_digest(file))
    return digest.hexdigest()


def _content_digest(file: Path) -> bytes:
    status = file.stat()
    # Clocks of file systems are coarse: a file that was just written may change again unseen.
    if time.time_ns() - status.st_mtime_ns < SETTLED_NS:
        return _read_digest(file)
    return _settled_digest(file.absolute(), status.st_size, status.st_mtime_ns, status.st_ino)


@lru_cache(maxsize=10_000)
def _settled_digest(file: Path, size: int, mtime_ns: int, inode: int) -> bytes:
    return _read_digest(file)


def _read_digest(file: Path) -> bytes:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").digest()


def file_names(directory: Path) -> list[str]:
    """List all files below ``directory`` by their paths in it."""
    files = (file for file in sorted(directory.rglob("*")) if file.is_file())
    return [str(file.relative_to(directory)) for file in files]


def write_checksums(directory: Path, part: int) -> None:
    """Write the SHA-256 of every file in ``directory``, which will be merged with other parts."""
    digests = {name: _digest(directory / name) for name in file_names(directory)}
    record = directory / FOLDER / f"{part}.json"
    record.parent.mkdir(exist_ok=True)
    record.write_text(json.dumps(digests))


def cached_directory(directory: Path, build: Callable[[Path], None]) -> Path:
    """Return ``directory``, filled by ``build`` unless it is there and whole.

    One that is damaged is replaced, with a `DamageWarning`.
    """
    if directory.is_dir() and not replace_damaged(directory):
        return directory
    with atomic_directory(directory) as aside:
        build(aside)
        write_checksums(aside, 0)
    return directory


def replace_damaged(directory: Path) -> bool:
    """Remove ``directory`` if a file in it is not what was written; tell whether it was."""
    damaged = damaged_file_of(directory, 0)
    if damaged is None:
        return False
    warnings.warn(
        f"{directory / damaged}: damaged; {directory} is made anew", DamageWarning, stacklevel=2
    )
    aside = directory.with_name(f".{directory.name}.{uuid.uuid4().hex[:8]}")
    with suppress(FileNotFoundError):  # another process has done so
        directory.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)
    return True


def damaged_file_of(directory: Path, part: int) -> str | None:
    """Find a file of ``part`` that is missing or not what was written; None if all are whole."""
    record = f"{FOLDER}/{part}.json"
    try:
        digests = dict(json.loads((directory / record).read_text()))
    except (OSError, ValueError, TypeError):
        return record
    return damaged_file(directory, digests)


def damaged_file(directory: Path, digests: Mapping[str, str]) -> str | None:
    """Find the first file named in ``digests`` that is missing or has another SHA-256."""
    return next((name for name, d in digests.items() if _digest(directory / name) != d), None)


def _digest(file: Path) -> str | None:
    try:
        with file.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError:
        return None
