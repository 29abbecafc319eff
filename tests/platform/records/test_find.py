"""Runs are found by path, by name and by the beginning of a name."""

from __future__ import annotations

from pathlib import Path

import pytest

from deft.platform.errors import UserError
from deft.platform.records.find import SHOWN_NAMES, find_run
from deft.platform.records.manifests import manifest_file


def make_runs(root: Path, *names: str) -> None:
    for name in names:
        file = manifest_file(root / name, "evaluate")
        file.parent.mkdir(parents=True)
        file.write_text("{}")
        (root / name / "spec.json").write_text("{}")


def test_run_is_found_by_path_name_and_prefix(tmp_path: Path) -> None:
    make_runs(tmp_path, "figfont-DEFT-01", "figfont-p-02", "figfont-p-022")
    (tmp_path / "figfont-other").mkdir()
    expected = tmp_path / "figfont-DEFT-01"
    assert find_run(str(expected), tmp_path / "elsewhere") == expected
    assert find_run("figfont-DEFT-01", tmp_path) == expected
    assert find_run("figfont-D", tmp_path) == expected
    # A whole name is preferred to longer ones that begin with it.
    assert find_run("figfont-p-02", tmp_path) == tmp_path / "figfont-p-02"
    with pytest.raises(UserError, match="several runs start with this: figfont-p-02, "):
        find_run("figfont-p", tmp_path)


def test_unknown_run_is_answered_with_the_names_of_some(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing: no such run in .*; there is none yet"):
        find_run("nothing", tmp_path)
    make_runs(tmp_path, *(f"run-{number:02d}" for number in range(SHOWN_NAMES + 1)))
    with pytest.raises(UserError, match=r"there are: run-00, .*run-09, …$"):
        find_run("nothing", tmp_path)
    make_runs(tmp_path, "figfont-tiny-DEFT-0123456789")
    with pytest.raises(UserError, match=r"; did you mean figfont-tiny-DEFT\? there are: "):
        find_run("figfnt-tiny-DEFT", tmp_path)


def test_run_that_is_not_evaluated_is_refused(tmp_path: Path) -> None:
    make_runs(tmp_path, "figfont-01")
    manifest_file(tmp_path / "figfont-01", "evaluate").unlink()
    with pytest.raises(UserError, match="its evaluation is not finished"):
        find_run("figfont-01", tmp_path)
