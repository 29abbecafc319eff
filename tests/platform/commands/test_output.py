"""`--json`: results alone on the standard output, whatever else is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deft.objectives.catalog import CATALOG
from deft.platform.cli import app
from deft.platform.commands.output import print_json
from deft.platform.commands.show_results import show_next_commands, show_results
from deft.platform.console import RunConsole
from deft.platform.records.results import results_of
from helpers import make_prediction, write_finished_run


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    app([*arguments, "--json"], standalone_mode=False)
    return json.loads(capsys.readouterr().out)


def test_lists_and_verdicts_are_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [entry["name"] for entry in printed(capsys, "list", "objectives")] == [*CATALOG]
    stored, out = tmp_path / "responses.jsonl", tmp_path / "graded.jsonl"
    stored.write_text('{"response": "\\\\boxed{3}", "gold": "3"}\n{"response": "4", "gold": "3"}\n')
    graded = printed(capsys, "grade", "math", str(stored), "--out", str(out))
    assert graded == {"file": str(out), "verdicts": {"correct": 1, "wrong": 1}}


def test_results_of_a_run_are_rows_with_their_intervals(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictions = [make_prediction(item, is_correct=item < 3) for item in range(10)]
    tables = {"eval": {"figfont": predictions}}
    run = write_finished_run(tmp_path, tables, objective="DEFT")
    print_json(results_of(run.path))
    answer = json.loads(capsys.readouterr().out)
    assert answer["run"] == run.path.name
    rows = {row["metric"]: row for row in answer["results"]}
    assert rows["avg_at_1"]["value"] == 0.3
    assert 0 < rows["avg_at_1"]["ci_low"] < 0.3 < rows["avg_at_1"]["ci_high"]
    assert not [name for name in rows if name.endswith(("_ci_low", "_ci_high", "_stderr"))]
    print_json({"loss": float("nan"), "rows": (1, 2)})
    assert json.loads(capsys.readouterr().out) == {"loss": None, "rows": [1, 2]}


def test_a_run_ends_with_its_main_metrics_and_what_to_do_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = {
        label: {"figfont": [make_prediction(item, is_correct=item < count) for item in range(10)]}
        for label, count in (("base", 1), ("eval", 6))
    }
    run, console = write_finished_run(tmp_path, tables, objective="DEFT"), RunConsole()
    show_results(run, console, detailed=False)
    show_next_commands(run, tmp_path, console)
    short = capsys.readouterr().out
    (row,) = [line for line in short.splitlines() if "figfont avg@1" in line]
    assert row.index("0.100 [") < row.index("0.600 [")
    assert "truncated_rate" not in short
    assert f"deft view {run.path.name} --root {tmp_path}" in short
    show_results(run, console, detailed=True)
    assert "truncated_rate" in capsys.readouterr().out
