"""`deft status`: what runs and sweeps are, how far they are, and in how many columns."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from deft.platform.cli import app
from deft.platform.commands.upkeep.status import RootStatus, select, status_table, survey, watch
from deft.platform.commands.upkeep.survey import survey_run
from deft.platform.console import RunConsole
from deft.platform.errors import UserError
from deft.platform.records.run_directory import held
from deft.sweeps.directory import read_cause, read_cells


def read_status(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    app(["status", *arguments, "--json"], standalone_mode=False)
    return dict(json.loads(capsys.readouterr().out))


def test_finished_runs_are_shown_with_their_sweep(
    root: Path, finished: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    status = read_status(capsys, "--root", str(root))
    (sweep,), (run,) = status["sweeps"], status["runs"]
    assert (sweep["name"], sweep["state"]) == (finished.sweep.name, "finished")
    assert (sweep["num_finished"], sweep["num_cells"]) == (1, 1)
    assert (run["name"], run["state"], run["stage"]) == (finished.run.name, "finished", None)
    assert run["result"] == "figfont avg@1 0.500 → 0.500"
    assert run["size"] > 1000
    app(["ls", "--root", str(root)], standalone_mode=False)
    printed = capsys.readouterr().out
    assert finished.run.name not in printed
    assert "1 runs not shown, --all shows them" in printed
    app(["status", "sweep", "--root", str(root)], standalone_mode=False)
    assert finished.run.name in capsys.readouterr().out


def test_a_run_that_trains_has_steps_and_time_left(
    add_run: Callable[..., Path], root: Path
) -> None:
    run = add_run(1)
    events = [
        {"time": 1_000_000 + 2000 * step, "step": step, "metrics": {"train/nll": 1.0}}
        for step in (1, 2, 3)
    ]
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    with held(run, "run"):
        status = survey_run(run)
    assert (status.state, status.stage) == ("running", "train")
    assert status.progress is not None
    assert (status.progress.done, status.progress.unit) == (3, "steps")
    left = status.progress.total - 3
    assert status.progress.seconds_left == pytest.approx(2 * left)
    assert survey_run(run).state == "stopped"


def test_why_a_run_failed_is_shown_in_80_columns(add_run: Callable[..., Path], root: Path) -> None:
    run = add_run(2, "RuntimeError: " + "the disk is [red]full[/red] " * 20)
    status = survey(root, read_cells, read_cause)
    assert {each.name: each.state for each in status.runs}[run.name] == "failed"
    out = StringIO()
    shown = select(status, None, everything=True)
    Console(file=out, width=80, force_terminal=False).print(status_table(shown, 80))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert [line for line in lines if line.startswith(f"{run.name} ")]
    assert "[red]full[/red]" in " ".join(out.getvalue().split())


def test_nothing_and_nowhere_are_said(
    tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    app(["status", "--root", str(tmp_path)], standalone_mode=False)
    assert "no runs there yet; start one with `deft run`" in capsys.readouterr().out
    for arguments, message in (
        (["--root", str(tmp_path / "no")], "no such folder"),
        (["nosuch", "--root", str(root)], "nosuch: no run and no sweep of .* begins so"),
        (["--watch", "--root", str(root)], "--watch: needs a terminal"),
    ):
        with pytest.raises(UserError, match=message):
            app(["status", *arguments], standalone_mode=False)


def test_watching_looks_again_and_ends_quietly(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def look() -> tuple[RootStatus, RootStatus]:
        status = survey(root, read_cells, read_cause)
        seen.append(status)
        return status, status

    def sleep(seconds: float) -> None:
        if len(seen) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("deft.platform.commands.upkeep.status.time.sleep", sleep)
    out = StringIO()
    with pytest.raises(SystemExit) as end:
        watch(look, RunConsole(Console(file=out, force_terminal=True, width=80)))
    assert end.value.code == 0
    assert "Ctrl-C ends this" in out.getvalue()


def test_a_damaged_manifest_does_not_hide_the_others(root: Path, finished: Any) -> None:
    (root / finished.run.name / "stages" / "evaluate.json").write_text("{")
    (run,) = survey(root, read_cells, read_cause).runs
    assert run.result == ""
