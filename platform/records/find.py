"""Directories of runs and sweeps, found by path, by name or by the beginning of a name."""

from __future__ import annotations

from pathlib import Path

from deft.platform.errors import UserError
from deft.platform.records.manifests import manifest_file

SHOWN_NAMES = 10
"""Names that a message lists at most."""


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
        raise UserError(f"{name}: several {kind}s start so: {_listed(matching)}; give more of it")
    if not matching:
        choice = f"there are: {_listed(names)}" if names else "there is none yet"
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
