"""Directories of runs and sweeps, found by path, by name or by the beginning of a name."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Collection
from pathlib import Path

from deft.platform.errors import UserError
from deft.platform.records.manifests import EvaluateManifest, manifest_file, read_manifest
from deft.workers.common.names import nearest_name

SHOWN_NAMES = 10
"""Names that a message lists at most."""

HASH = r"-[0-9a-f]{10}"
"""What follows the name of a run or a sweep in that of its directory."""


def find_directory(name: str, folder: Path, marker: str, kind: str) -> Path:
    """Find a directory by its path, or by its name in ``folder`` or the beginning of that name.

    Args:
        name: what the user gave.
        folder: where directories of this kind lie.
        marker: file that every one of them has.
        kind: what they are called in messages.

    Raises:
        UserError: there is no such directory, or several names begin so.
    """
    for path in (Path(name), folder / name):
        if (path / marker).is_file():
            return path
    names = sorted(file.parent.name for file in folder.glob(f"*/{marker}"))
    matching = [candidate for candidate in names if name and candidate.startswith(name)]
    if len(matching) > 1:
        raise UserError(
            f"{name}: several {kind}s start with this: {_listed(matching)}; give more of the name"
        )
    if not matching:
        nearest = nearest_name(name, (re.sub(rf"{HASH}$", "", known) for known in names))
        hint = f"did you mean {nearest}? " if nearest else ""
        choice = f"{hint}there are: {_listed(names)}" if names else "there is none yet"
        raise UserError(f"{name}: no such {kind} in {folder}; {choice}")
    return folder / matching[0]


def _listed(names: list[str]) -> str:
    return ", ".join(names[:SHOWN_NAMES]) + (", …" if len(names) > SHOWN_NAMES else "")


def find_run(name: str, root: Path) -> Path:
    """Find the directory of a run whose evaluation has finished, see `find_directory`.

    Raises:
        UserError: there is no such run, or its evaluation has not finished.
    """
    run = find_directory(name, root, "spec.json", "run")
    if not manifest_file(run, "evaluate").is_file():
        raise UserError(f"{name}: its evaluation is not finished; run its command again")
    return run


def trained_model(run: Path) -> Path:
    """Return the directory of the model that the run in directory ``run`` trained.

    Raises:
        UserError: the run has none.
    """
    model = run / "model"
    if not model.is_dir():
        raise UserError(f"{run}: the run has no trained model; run its command first")
    return model


def finished_runs(root: Path) -> list[Path]:
    """Return the directories of all runs and evaluations under ``root`` that have results.

    Raises:
        UserError: there is none.
    """
    runs = sorted(
        file.parent
        for file in root.glob("*/spec.json")
        if manifest_file(file.parent, "evaluate").is_file()
    )
    if not runs:
        raise UserError(f"{root}: no finished run there; `deft run` makes one")
    return runs


def find_newest_run(
    name: str, root: Path, notify: Callable[[str], None], *, among: Collection[str] | None = None
) -> Path:
    """Find a run as `find_run` does; of several with exactly this name, the one evaluated last.

    Args:
        name: what the user gave.
        root: run root.
        notify: called with a sentence that says which one it is, where there are several.
        among: the runs to look among, such as the cells of a sweep; all of them if not given.

    Raises:
        UserError: there is no such run, or its evaluation has not finished.
    """
    is_path = os.sep in name
    same_name = [
        run
        for run in ([] if is_path else root.glob(f"{glob.escape(name)}-*"))
        if re.fullmatch(re.escape(name) + HASH, run.name) and (among is None or run.name in among)
    ]
    finished = {
        run: manifest.finished_at
        for run in same_name
        if (manifest := read_manifest(run, EvaluateManifest)) is not None
    }
    if not finished:
        run = find_run(name, root)
        if among is not None and run.name not in among:
            raise UserError(
                f"{name}: not a finished run of this sweep; `deft status SWEEP` lists its cells"
            )
        return run
    newest = max(finished, key=lambda run: (finished[run], run.name))
    if len(finished) > 1:
        notify(f"{name}: the newest of {len(finished)}, {newest.name}")
    return newest


MAX_BELOW_ROOT = 400
"""Bytes that the longest path below a run root may have."""


def require_existing_root(root: Path) -> None:
    """Raise UserError if there is no run root to look at."""
    if not root.is_dir():
        raise UserError(f"--root {root}: no such folder; give the folder that holds the runs")


def require_root(root: Path) -> None:
    """Raise UserError if a run root cannot be made or written to."""
    path = root.absolute()
    length = len(os.fsencode(path)) + MAX_BELOW_ROOT
    if length > os.pathconf("/", "PC_PATH_MAX"):
        raise UserError(f"--root {root}: too long for what lies below it; choose a shorter path")
    while not os.path.lexists(path):
        path = path.parent
    if not path.is_dir():
        raise UserError(f"--root {root}: {path} is not a directory; choose another one")
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"--root {root}: {path} is not writable; choose another one")
