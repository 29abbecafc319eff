"""`deft check`: each mistake is a sentence before anything starts, each oddity a note."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from deft.platform.cli import app
from deft.platform.commands.authoring.check import check
from deft.platform.errors import UserError

MODULE = """
import torch
from deft.objectives import ObjectiveOutput as Output, objective

@objective()
def right(stats, *, weight=1.0):
    return Output(-weight * stats.logp, weight * torch.ones_like(stats.logp))

@objective(needs={"entropy", "top_logp"})
def wasteful(stats):
    return Output(-stats.logp * stats.require("entropy"), stats.require("entropy"))

def wrong_gate(stats):
    return Output(-stats.logp, torch.full_like(stats.logp, -3))

def wrong_shape(stats):
    return Output(-stats.logp[:3], torch.ones_like(stats.logp[:3]))

def scalar(stats):
    return Output(-stats.logp.mean(), torch.ones_like(stats.logp))

def nan(stats):
    return Output(stats.logp * float("nan"), torch.ones_like(stats.logp))

@objective()
def two_mistakes(stats):
    mean = stats.p.mean()
    return Output(-mean * stats.logp, 2 * mean.expand(len(stats.p)))
"""
WRONG = {
    "own:wrong_gate": "gate is -3 where −∂value/∂log p is 1 (a factor of -3), at a token with ",
    "own:wrong_shape": "value has the shape [3] for 100 tokens; return one entry a token",
    "own:scalar": "value has the shape [] for 100 tokens; return one entry a token",
    "own:nan": "value is nan at a token with log p = ",
    "own:right(wight=2)": "got an unexpected keyword argument 'wight'; the function is right(",
    "own:rigth": "own has no attribute 'rigth'; its objectives are right, wasteful",
    "unparsable:right": "SyntaxError: expected ':' (unparsable.py, line 1)",
    "absent:right": "ModuleNotFoundError: No module named 'absent'",
    "own.right": "unknown objective 'own.right'.",
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own.py").write_text(MODULE)
    (tmp_path / "unparsable.py").write_text("def right(stats)\n    return 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own", raising=False)
    return tmp_path


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize(
    "command",
    [
        ["check"],
        ["run", "--dataset", "figfont", "--model", "llama-3.2-3b", "--dry-run", "--objective"],
    ],
    ids=["check", "run --dry-run"],
)
def test_each_mistake_is_one_sentence(name: str, command: list[str], folder: Path) -> None:
    with pytest.raises(UserError, match=re.escape(WRONG[name])) as refusal:
        app([*command, name], standalone_mode=False)
    assert "\n" not in str(refusal.value)
    assert not (folder / "runs").exists()


def test_every_mistake_is_found_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError) as refusal:
        app(["check", "own:two_mistakes"], standalone_mode=False)
    locality, gate = str(refusal.value).splitlines()
    assert "declare it by @objective(token_local=False)" in locality
    assert "(a factor of 2)" in gate
    assert app(["check", "own:two_mistakes", "--json"], standalone_mode=False) == 2
    assert len(json.loads(capsys.readouterr().out)["problems"]) == 2


def test_what_an_objective_does_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    app(["check", "own:right(weight=0.5)"], standalone_mode=False)
    printed = capsys.readouterr().out
    assert re.search(r"\b0\.1 +│ +1\.151 │ +0\.5 ", printed)
    assert re.search(r"[\d.]+ ms per million tokens on this CPU; NLL [\d.]+ ms", printed)
    assert max(map(len, printed.splitlines())) <= 80


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("own:wasteful", "it declares top_logp and does not read it; leave it out"),
        ("GeneralFamily--1", r"p → 0: the gate is 1e\+09 at p = 1e-09, .* may outweigh all others"),
        ("p", "p → 0: the gate is 1e-09 at p = 1e-09, .*; such tokens are not learned"),
        ("IDFT", "the gate is -0.0541 at p = 0.1, .*: such tokens become less probable"),
    ],
)
def test_what_may_be_meant_is_a_note(name: str, note: str) -> None:
    report = check(name)
    assert report.problems == []
    assert [found for found in report.notes if re.match(note, found)]


def test_objectives_that_read_other_models_have_no_table_over_p() -> None:
    report = check("iwSFT")
    assert report.problems == []
    assert report.behavior == []
    assert report.seconds_per_million_tokens
