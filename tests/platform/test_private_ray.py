"""The directory of a command's own Ray: gone with the command, even with one that was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from deft.platform.console import RunConsole
from deft.platform.private_ray import close_token_file, remove_leftovers, session_directory
from deft.platform.run.context import open_context
from deft.workers.common.files import exclusive


def test_a_session_is_its_owners_and_vanishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("deft.platform.private_ray.MAX_FOLDER", 1000)
    with session_directory() as path:
        directory = path.parent
        assert directory.parent == tmp_path
        assert directory.stat().st_mode & 0o777 == 0o700
        with session_directory() as another:
            assert another != path
            assert directory.is_dir()  # it is in use
        left = tmp_path / "deft-ray-dead"  # what its processes wrote to until now
        (left / "r").mkdir(parents=True)
        (left / ".lock").touch()
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_still_written_to_is_removed_when_that_ends(tmp_path: Path) -> None:
    directory = tmp_path / "deft-ray-dead"
    (directory / "r" / "logs").mkdir(parents=True)
    (directory / ".lock").touch()
    end = time.monotonic() + 0.5

    def write() -> None:
        while time.monotonic() < end:
            with suppress(OSError):
                (directory / "r" / "logs" / f"{time.monotonic()}").touch()

    writer = threading.Thread(target=write)
    writer.start()
    remove_leftovers(tmp_path)
    writer.join()
    assert list(tmp_path.iterdir()) == []


def test_what_killed_commands_left_is_removed(tmp_path: Path) -> None:
    for name in ("deft-ray-dead", "deft-ray-alive", "deft-ray-new", "deft-ray-anew", "other"):
        (tmp_path / name).mkdir()
    os.utime(tmp_path / "deft-ray-anew", (0, time.time() - 20))
    for name in ("deft-ray-dead", "deft-ray-alive", "other"):
        (tmp_path / name / ".lock").touch()
    (tmp_path / "deft-ray-dead" / "r").mkdir()
    with exclusive(tmp_path / "deft-ray-alive" / ".lock", patience=0):
        remove_leftovers(tmp_path)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["deft-ray-alive", "deft-ray-new", "other"]


def test_a_command_removes_what_killed_ones_left_though_it_needs_no_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("deft.platform.private_ray.MAX_FOLDER", 1000)
    (tmp_path / "deft-ray-dead" / "r").mkdir(parents=True)
    (tmp_path / "deft-ray-dead" / ".lock").touch()
    (tmp_path / "runs").mkdir()
    open_context(tmp_path / "runs", RunConsole(), None, verbose=False)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_processes_of_a_killed_command_are_ended(tmp_path: Path) -> None:
    """But not those of one that is alive, nor what a user does there."""
    processes = {}
    for name, title in (("dead", "ray::Agent"), ("dead", "sleep"), ("alive", "ray::Agent")):
        log = tmp_path / f"deft-ray-{name}" / "r" / "log"
        log.parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"deft-ray-{name}" / ".lock").touch()
        with log.open("w") as file:
            command = [title, "100"]
            process = subprocess.Popen(command, executable="/bin/sleep", stdout=file)
        processes[name, title] = process
    try:
        with exclusive(tmp_path / "deft-ray-alive" / ".lock", patience=0):
            remove_leftovers(tmp_path)
        assert processes["dead", "ray::Agent"].wait(10) == -signal.SIGKILL
        assert processes["dead", "sleep"].poll() is None
        assert processes["alive", "ray::Agent"].poll() is None
    finally:
        for process in processes.values():
            process.kill()
            process.wait()


def test_the_token_is_its_owners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    close_token_file()  # there is none
    (tmp_path / ".ray").mkdir()
    token = tmp_path / ".ray" / "auth_token"
    token.write_text("t")
    token.chmod(0o644)
    close_token_file()
    assert token.stat().st_mode & 0o777 == 0o600
