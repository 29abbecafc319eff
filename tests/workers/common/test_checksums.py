"""Damage of every kind is found, in the part that it is in."""

from __future__ import annotations

from pathlib import Path

import pytest

from deft.workers.common.checksums import damaged_file_of, hash_files, hash_parts, write_checksums


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
