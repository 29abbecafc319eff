"""Results are whole or absent."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from deft.workers.common.files import atomic_directory, exclusive, write_atomic


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


HOLD = """
import sys, time
from pathlib import Path
from deft.workers.common.files import exclusive

with exclusive(Path(sys.argv[1]), patience=0):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("patience", [0, 60, math.inf])
def test_lock_is_refused_while_held_and_free_after_kill(tmp_path: Path, patience: float) -> None:
    path = tmp_path / "new" / ".lock"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError), exclusive(path, patience=0):
            pass
        holder.kill()
    again = exclusive(path, patience=0.01)
    with exclusive(path, patience=patience), pytest.raises(BlockingIOError), again:
        pass
    with exclusive(path, patience=0):
        assert path.is_file()


def test_lock_waits_for_its_holder(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    order = []

    def wait() -> None:
        with exclusive(path, patience=60):
            order.append("second")

    with exclusive(path, patience=0):
        waiter = threading.Thread(target=wait)
        waiter.start()
        order.append("first")
    waiter.join()
    assert order == ["first", "second"]
