"""`deft new`: what it writes works as it is."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from deft.evaluators.benchmarks.catalog import get_benchmark
from deft.evaluators.generation.prepare import load_benchmarks
from deft.evaluators.spec import EvaluationSpec
from deft.platform.cli import app
from deft.platform.errors import UserError
from deft.sweeps.spec import sweep_schema


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("mine", "mine.objectives", "sums_of_mine"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def run(*arguments: str) -> None:
    app([*arguments], standalone_mode=False)


def test_new_objective_passes_the_check(capsys: pytest.CaptureFixture[str]) -> None:
    run("new", "objective", "mine/objectives.py")
    assert "try it: deft check mine.objectives:doubt\n" in capsys.readouterr().out
    run("check", "mine.objectives:doubt(floor=0.2)")
    names = ("--dataset", "figfont", "--model", "tiny", "--objective", "mine.objectives:doubt")
    run("run", *names, "--dry-run")
    assert "note:" not in capsys.readouterr().out


def test_new_benchmark_loads_and_grades_its_own_answers(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("new", "benchmark", "sums_of_mine.py")
    names = ("--model", "smollm2-135m", "--benchmarks", "sums_of_mine:sums")
    run("evaluate", *names, "--dry-run")
    spec = EvaluationSpec.model_validate({"benchmarks": ["sums_of_mine:sums"], "general": False})
    ((_, items),) = load_benchmarks(spec)
    assert len(items) == 100
    (folder / "answers.jsonl").write_text(
        "".join(
            f'{{"response": "It is \\\\boxed{{{item.gold}}}.", "gold": "{item.gold}"}}\n'
            for item in items
        )
    )
    grader = get_benchmark("sums_of_mine:sums").grader
    capsys.readouterr()
    run("grade", grader, "answers.jsonl", "--out", "graded.jsonl", "--json")
    assert json.loads(capsys.readouterr().out)["verdicts"] == {"correct": 100}
    assert "MODULE" not in (folder / "sums_of_mine.py").read_text()


def test_new_sweep_is_planned(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("new", "sweep", "mine.yaml")
    run("sweep", "mine.yaml", "--dry-run")
    assert "6 (2 objective × 3 seed)" in capsys.readouterr().out
    data = yaml.safe_load((folder / "mine.yaml").read_text())
    assert [*Draft202012Validator(sweep_schema()).iter_errors(data)] == []


@pytest.mark.parametrize(
    ("kind", "file", "message"),
    [
        ("sweep", "there.yaml", "there.yaml: there is such a file already"),
        ("objective", "my-own.py", "my-own cannot be imported"),
        ("objective", "/nowhere/own.py", "modules are imported from the current folder"),
        ("benchmark", "own.yaml", "expected a name that ends in .py; give own.py"),
    ],
)
def test_nothing_is_overwritten_or_put_where_it_cannot_be_used(
    folder: Path, kind: str, file: str, message: str
) -> None:
    (folder / "there.yaml").write_text("kept")
    with pytest.raises(UserError, match=message):
        run("new", kind, file)
    assert (folder / "there.yaml").read_text() == "kept"
