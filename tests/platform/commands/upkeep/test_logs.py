"""`deft logs`: what a run said is kept with times, and printed."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from deft.platform import console as deft_console
from deft.platform.cli import app
from deft.platform.console import LOG, RunConsole
from deft.platform.errors import UserError


@pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])
def test_a_log_has_every_line_once_with_its_time(
    tmp_path: Path,
    terminal: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deft_console, "MIN_PAUSE", 0.0)
    run = tmp_path / "mine-0123456789"
    run.mkdir()
    (run / "spec.json").write_text("{}")
    console = RunConsole(Console(file=StringIO(), force_terminal=terminal, width=80))
    console.stage("prepare", "10 examples")

    def fail() -> None:
        with console.kept_in(run):
            with console.progress("steps") as view:
                for step in range(101):
                    view.update("train", step, 100)
            console.print("warning: postgresql://user:hunter2@host \x1b[2J")
            raise RuntimeError("a failure\nof two lines")

    with pytest.raises(RuntimeError):
        fail()
    console.print("after the run")
    app(["logs", "mine", "--root", str(tmp_path)], standalone_mode=False)
    lines = capsys.readouterr().out.splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ", line) for line in lines)
    said = [line[21:].strip() for line in lines]
    assert said[0] == "prepare   10 examples"
    assert [line for line in said if line.startswith("train ")][-1] == "train 100/100 steps"
    assert len(said) == 1 + 11 + 2
    assert said[-1] == "ended by RuntimeError: a failure of two lines"
    assert "hunter2" not in said[-2]
    assert "\x1b" not in said[-2]
    app(["logs", "mine", "-n", "1", "--follow", "--root", str(tmp_path)], standalone_mode=False)
    assert capsys.readouterr().out.splitlines() == lines[-1:]


def test_a_run_without_a_log_is_said(tmp_path: Path) -> None:
    (tmp_path / "mine-0123456789").mkdir()
    (tmp_path / "mine-0123456789" / "spec.json").write_text("{}")
    with pytest.raises(UserError, match=f"{LOG}: no such file; a run begins it"):
        app(["logs", "mine", "--root", str(tmp_path)], standalone_mode=False)
