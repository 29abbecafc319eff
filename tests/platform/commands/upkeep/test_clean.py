"""`deft clean`: nothing goes that somebody needs, and nothing without saying how much it is."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deft.platform.cli import app
from deft.platform.records.manifests import manifest_file, save_manifest
from deft.platform.records.root_use import using
from deft.platform.records.run_directory import held
from helpers import make_train_manifest


@pytest.fixture
def clean(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Clean the root and return what is printed, without line breaks."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> str:
        app(["clean", *arguments, "--root", str(root)], standalone_mode=False)
        return re.sub(r"[│┃┏┓┗┛━┡┩╇┳┴└┘─\s]+", " ", capsys.readouterr().out)

    return run


@pytest.fixture
def litter(root: Path, finished: Any, add_run: Callable[..., Path]) -> list[Path]:
    """Leave something of each kind."""
    checkpoints = root / finished.run.name / "checkpoints"
    checkpoints.mkdir()
    (checkpoints / "step-4").write_bytes(b"0" * 3_000_000)
    failed = add_run(3, "RuntimeError: a failure")
    model = root / "cache" / "models" / "tiny-of-nobody"
    model.mkdir()
    (model / "weights").write_bytes(b"0" * 5_000_000)
    return [checkpoints, failed, model]


def files(root: Path) -> set[Path]:
    return {path for path in root.rglob("*") if not path.name.startswith(".")}


def test_what_is_removed_is_listed_first(
    root: Path, litter: list[Path], clean: Callable[..., str]
) -> None:
    before = files(root)
    printed = clean()
    assert files(root) == before
    for path in litter:
        assert path.name in printed
    assert re.search(r"failed in train at 0/\d+ steps: RuntimeError: a failure", printed)
    assert re.search(r"8\.\d MB in 3 places; nothing was removed: add --yes", printed)
    assert "removed 5.0 MB in 1 place" in clean("cache", "--yes")
    assert "removed 3.0 MB" in clean("--yes")
    gone = {path for path in before if any(path.is_relative_to(each) for each in litter)}
    assert files(root) == before - gone
    assert "nothing to remove" in clean("--yes")


def test_what_a_command_may_need_is_left(
    root: Path,
    finished: Any,
    litter: list[Path],
    clean: Callable[..., str],
    fault: Callable[..., None],
) -> None:
    checkpoints, failed, model = litter
    with using(root), held(root / finished.run.name, "run"):
        printed = clean("--yes")
    assert "a command is at work" in printed
    assert "left, a process is at work on this run" in printed
    assert all(path.exists() for path in litter)
    with using(root):
        assert "removed 3.0 MB in 1 place" in clean("--yes")
    assert (checkpoints.exists(), failed.exists(), model.exists()) == (False, True, True)
    fault(
        "`deft clean` beside a run",
        "what the run works on, and the cache that it may need, are left",
        seconds="it does not stop",
    )


def test_a_run_that_stopped_keeps_what_it_goes_on_from(
    root: Path, add_run: Callable[..., Path], clean: Callable[..., str]
) -> None:
    run = add_run(4)
    (run / "checkpoints").mkdir()
    trained = add_run(5, "RuntimeError: the evaluation failed")
    save_manifest(manifest_file(trained, "train"), make_train_manifest(4))
    evaluation = root / "cache" / "evaluations" / "0123456789ab-0123456789ab"
    (evaluation / "responses").mkdir(parents=True)
    assert "nothing to remove" in clean("--yes")
    assert (run / "checkpoints").exists()
    assert evaluation.exists()
    assert trained.exists()
