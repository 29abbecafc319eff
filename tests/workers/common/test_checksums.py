"""Damage of every kind is found, in the part that it is in."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from deft.workers.common import checksums
from deft.workers.common.checksums import (
    SETTLED_NS,
    damaged_file_of,
    hash_files,
    hash_parts,
    write_checksums,
)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Two parts, merged."""
    for part in (0, 1):
        folder = tmp_path / f"part-{part}"
        (folder / "state").mkdir(parents=True)
        (folder / "state" / f"{part}.pt").write_bytes(bytes([part]) * 1000)
        write_checksums(folder, part)
    merged = tmp_path / "merged"
    for folder in ("state", "checksums"):
        (merged / folder).mkdir(parents=True)
        for file in tmp_path.glob(f"part-*/{folder}/*"):
            file.rename(merged / folder / file.name)
    return merged


def test_what_is_whole_is_said_to_be(directory: Path) -> None:
    assert damaged_file_of(directory, 0) is None
    assert damaged_file_of(directory, 1) is None


@pytest.mark.parametrize("content", [None, b"", b"\1" * 999, b"\1" * 999 + b"\0"])
def test_damage_is_found_by_its_part_alone(directory: Path, content: bytes | None) -> None:
    file = directory / "state" / "1.pt"
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    assert damaged_file_of(directory, 0) is None
    assert damaged_file_of(directory, 1) == "state/1.pt"


@pytest.mark.parametrize("content", [None, "", "{"])
def test_checksums_that_cannot_be_read_are_damage(directory: Path, content: str | None) -> None:
    record = directory / "checksums" / "1.json"
    if content is None:
        record.unlink()
    else:
        record.write_text(content)
    assert damaged_file_of(directory, 1) == "checksums/1.json"


def test_hash_of_parts_tells_where_one_part_ends() -> None:
    assert hash_parts("ab", "c") == hash_parts(b"ab", b"c")
    assert len({hash_parts(), hash_parts(""), hash_parts("ab", "c"), hash_parts("a", "bc")}) == 4


def test_hash_of_files_is_of_names_and_contents_and_not_of_places(tmp_path: Path) -> None:
    for name, content in (("a", b"1"), ("b", b"2"), ("c", b"1")):
        (tmp_path / name).write_bytes(content)
    first = hash_files([("x", tmp_path / "a"), ("y", tmp_path / "b")])
    assert first == hash_files([("x", tmp_path / "c"), ("y", tmp_path / "b")])
    assert first != hash_files([("x", tmp_path / "a"), ("z", tmp_path / "b")])
    assert first != hash_files([("y", tmp_path / "b"), ("x", tmp_path / "a")])
    (tmp_path / "b").write_bytes(b"3")
    assert first != hash_files([("x", tmp_path / "a"), ("y", tmp_path / "b")])


def test_file_is_read_again_only_after_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "data"
    reads = []
    file_digest = hashlib.file_digest

    def count(content: BinaryIO, name: str) -> Any:
        reads.append(content.name)
        return file_digest(content, name)

    monkeypatch.setattr(checksums.hashlib, "file_digest", count)

    def write(content: bytes, age: int) -> str:
        file.write_bytes(content)
        changed = time.time_ns() - age * SETTLED_NS
        os.utime(file, ns=(changed, changed))
        return hash_files([("x", file)])

    old = write(b"1", age=3)
    assert hash_files([("x", file)]) == old
    assert len(reads) == 1
    new = write(b"2", age=2)
    assert new != old
    assert hash_files([("y", file)]) != new
    assert len(reads) == 2
    # What was just written is read each time: the next change may come within the clock's tick.
    just_written = write(b"3", age=0)
    assert hash_files([("x", file)]) == just_written
    assert len(reads) == 4
