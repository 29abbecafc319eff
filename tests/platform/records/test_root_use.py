"""Commands share a run root; `deft clean` has it alone or not at all."""

from __future__ import annotations

from pathlib import Path

from deft.platform.records.root_use import FILE, alone_in, is_held, using
from deft.workers.common.files import exclusive


def test_commands_share_a_root_and_leave_nothing_behind(tmp_path: Path) -> None:
    root = tmp_path / "new" / "runs"
    with using(root):
        with using(root), alone_in(root) as is_alone:
            assert not is_alone
        with alone_in(root) as is_alone:
            assert not is_alone
    assert not root.parent.exists()
    root.mkdir(parents=True)
    with using(root):
        (root / "result").touch()
    assert [file.name for file in root.iterdir()] == ["result"]
    with alone_in(root) as is_alone:
        assert is_alone
        assert (root / FILE).exists()
    assert not (root / FILE).exists()


def test_a_lock_is_seen_without_being_taken(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    assert not is_held(lock)
    assert not lock.exists()
    with exclusive(lock, patience=0):
        assert is_held(lock)
    assert not is_held(lock)
