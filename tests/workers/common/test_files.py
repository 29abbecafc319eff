"""Results are whole or absent."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from deft.workers.common.files import atomic_directory, exclusive, read_lines, write_atomic
from helpers import run_with_own_mounts


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


FILL = """
import sys
from pathlib import Path
from deft.workers.common.files import append_line, read_lines

file = Path(sys.argv[1]) / "lines.jsonl"
stored = 0
try:
    while True:
        append_line(file, str(stored) * 1500)
        stored += 1
except OSError as error:
    print(error.strerror)
# What is written when there is room again is a line of its own.
(file.parent / "filler").unlink()
append_line(file, "last")
lines = list(read_lines(file, bytes.decode, print))
print(len(lines) == stored + 1, lines[-1], all(len(set(line.strip())) < 10 for line in lines[:-1]))
"""


def test_a_line_that_does_not_fit_on_the_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "fill.py").write_text(FILL)
    script = (
        f"mount -t tmpfs -o size=1m tmpfs {tmp_path}/disk && head -c 262144 /dev/zero > "
        f"{tmp_path}/disk/filler && {sys.executable} {tmp_path}/fill.py {tmp_path}/disk"
    )
    (tmp_path / "disk").mkdir()
    done = run_with_own_mounts(script, tmp_path)
    assert done.stdout == "No space left on device\nTrue last\n True\n", done.stderr


def test_damaged_lines_are_left_out_with_their_number(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    file.write_bytes(b"1\n{\n\xff\n2\n3")  # the last one is being written
    told: list[str] = []
    assert list(read_lines(file, json.loads, told.append)) == [1, 2]
    assert [message.split(": ")[0] for message in told] == [f"{file}:2", f"{file}:3"]


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
