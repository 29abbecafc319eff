"""A run on disk survives crashes and keeps two drivers apart."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from deft.platform.config.loading import load_spec
from deft.platform.errors import UserError
from deft.platform.records.manifests import TrainManifest
from deft.platform.records.run_directory import RunDirectory
from helpers import make_train_manifest

SPEC = load_spec(None, {"dataset": "figfont", "model": "tiny", "objective": "DEFT"})


def test_stage_without_manifest_did_not_happen(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, SPEC)
    assert run.manifest(TrainManifest) is None
    assert list(tmp_path.iterdir()) == []
    run.create()
    assert not run.has_finished("train")
    run.finish(make_train_manifest(7, seconds=1.5))
    manifest = run.manifest(TrainManifest)
    assert manifest is not None
    assert manifest.seconds == 1.5
    assert load_spec(run.path / "spec.json") == SPEC


def test_event_torn_by_a_crash_is_dropped(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, SPEC)
    with run.locked():
        run.append_event(1, {"train/nll": 2.0})
    with run.events_file.open("a") as file:
        file.write('{"time": 1, "step"')
    with run.locked():
        run.append_event(2, {"train/nll": 1.0})
    assert [event.step for event in run.events()] == [1, 2]


def _hold(root: Path, held: object, release: object) -> None:
    with RunDirectory(root, SPEC).locked():
        held.set()  # type: ignore[attr-defined]
        release.wait(30)  # type: ignore[attr-defined]


def test_second_driver_on_the_same_run_is_refused(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    held, release = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path, held, release))
    other.start()
    try:
        assert held.wait(30)
        with (
            pytest.raises(UserError, match="another process is already running"),
            RunDirectory(tmp_path, SPEC).locked(),
        ):
            pass
    finally:
        release.set()
        other.join()
    with RunDirectory(tmp_path, SPEC).locked():
        pass
