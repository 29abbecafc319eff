"""Results are whole or absent."""

from __future__ import annotations

from pathlib import Path

import pytest

from deft.workers.common.files import atomic_directory, write_atomic


def test_directory_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def write(text: str | None) -> None:
        with atomic_directory(tmp_path / "a") as aside:
            (aside / "file").write_text("half")
            if text is None:
                raise RuntimeError("torn")
            (aside / "file").write_text(text)
            assert not (tmp_path / "a").exists()

    with pytest.raises(RuntimeError, match="torn"):
        write(None)
    assert list(tmp_path.iterdir()) == []
    write("whole")
    assert (tmp_path / "a" / "file").read_text() == "whole"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_whoever_finishes_first_wins(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "a") as slow:
        (slow / "file").write_text("slow")
        with atomic_directory(tmp_path / "a") as fast:
            (fast / "file").write_text("fast")
    assert (tmp_path / "a" / "file").read_text() == "fast"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_text_replaces_what_was_there(tmp_path: Path) -> None:
    write_atomic(tmp_path / "deep" / "file", "one")
    write_atomic(tmp_path / "deep" / "file", "two")
    assert (tmp_path / "deep" / "file").read_text() == "two"
    assert len(list((tmp_path / "deep").iterdir())) == 1
