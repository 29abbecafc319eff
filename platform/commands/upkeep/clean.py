"""`deft clean`: what a run root can do without, and its removal.

Checkpoints of finished runs, runs that failed before they had a trained model, and parts of the
cache that no run refers to. What a command at work may need is left: a run is removed under its own
lock, and failed runs and the cache only while no command uses the root.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from deft.platform.commands.upkeep.status import bytes_text
from deft.platform.commands.upkeep.survey import RunStatus, size_of
from deft.platform.console import RunConsole
from deft.platform.records.root_use import alone_in
from deft.workers.common.files import exclusive
from deft.workers.common.text import plural

Kind = Literal["checkpoints", "failed", "cache"]
KINDS: tuple[Kind, ...] = get_args(Kind)

CHECKPOINTS = ("checkpoints", "scratch")
"""Folders of a run that are needed while it trains only."""
CACHED = ("models", "examples", "tokenized", "rows", "items", "evaluations")
"""Folders of the cache whose entries are made anew where they are missing."""
_ENTRY = re.compile(rf"cache/({'|'.join(CACHED)})/([^/\"\\]+)")


class Removable(NamedTuple):
    """Something that can be removed."""

    kind: Kind
    path: Path
    reason: str
    size: int
    """Bytes on disk."""
    run: Path | None
    """The run that it belongs to, whose lock is held while it is removed."""


def find_removable(
    root: Path, runs: Sequence[RunStatus], kinds: Collection[Kind]
) -> list[Removable]:
    """Return what the root can do without.

    Args:
        root: run root.
        runs: everything in it, by `survey_runs` and with the failures that sweeps know of.
        kinds: what to look for.
    """
    found: list[Removable] = []
    for run in runs:
        directory = root / run.name
        if run.state == "finished" and "checkpoints" in kinds:
            for path in (directory / name for name in CHECKPOINTS):
                if path.is_dir():
                    reason = "the run is finished"
                    found.append(Removable("checkpoints", path, reason, size_of(path), directory))
        elif run.state == "failed" and "failed" in kinds and not _is_trained(run):
            reason = f"failed in {run.stage}{_steps(run)}: {run.cause}"
            found.append(Removable("failed", directory, reason, run.size, directory))
    if "cache" in kinds:
        removed = {entry.path for entry in found if entry.kind == "failed"}
        kept = [root / run.name for run in runs if root / run.name not in removed]
        is_done = all(run.state == "finished" for run in runs if root / run.name in kept)
        for path in unreferenced(root / "cache", kept, is_done=is_done):
            found.append(Removable("cache", path, "no run refers to it", size_of(path), None))
    return found


def _is_trained(run: RunStatus) -> bool:
    """Tell whether a run has a trained model, which only its evaluation failed on."""
    return run.kind == "run" and run.stage in ("evaluate", "record")


def _steps(run: RunStatus) -> str:
    return f" at {run.progress.done}/{run.progress.total} steps" if run.progress else ""


def unreferenced(cache: Path, runs: Iterable[Path], *, is_done: bool) -> Iterator[Path]:
    """Yield the entries of the cache that none of ``runs`` refers to.

    Args:
        cache: folder of what runs share.
        runs: directories of the runs that stay.
        is_done: whether all of those are finished: none will go on with a half evaluation.
    """
    manifests = "\n".join(
        file.read_text(encoding="utf-8") for run in runs for file in run.glob("stages/*.json")
    )
    needed = _with_linked(cache, {cache / kind / name for kind, name in _ENTRY.findall(manifests)})
    for path in sorted(path for kind in CACHED for path in (cache / kind).glob("*")):
        if path.parent.name == "evaluations":
            models = _evaluated_models(path)
            stays = not is_done if models is None else all(name in manifests for name in models)
        else:
            stays = path in needed
        if not stays:
            yield path


def _with_linked(cache: Path, entries: set[Path]) -> set[Path]:
    """Add what the entries link to: rows are made of links to token ids, mixtures to examples."""
    needed, left = set[Path](), list(entries)
    base = cache.resolve()
    while left:
        entry = left.pop()
        if entry in needed:
            continue
        needed.add(entry)
        for file in entry.rglob("*"):
            if file.is_symlink() and file.resolve().is_relative_to(base):
                left.append(cache.joinpath(*file.resolve().relative_to(base).parts[:2]))
    return needed


def _evaluated_models(evaluation: Path) -> list[str] | None:
    """Return the directories of the models of a stored evaluation; None if it is not finished."""
    try:
        models = json.loads((evaluation / "evaluate.json").read_text())["models"]
        return [json.dumps(model["directory"]) for model in models.values()]
    except (OSError, ValueError, LookupError):
        return None


def clean(
    root: Path,
    look: Callable[[], Sequence[RunStatus]],
    kinds: Collection[Kind],
    console: RunConsole,
    *,
    removes: bool,
) -> None:
    """List what can be removed and how much that is, and remove it if asked to.

    Args:
        root: run root.
        look: surveys the runs in it, when no command can begin any more.
        kinds: what to remove.
        console: where it is listed.
        removes: whether it is removed.
    """
    with alone_in(root) as is_alone:
        if not is_alone and set(kinds) - {"checkpoints"}:
            console.print(f"a command is at work in {root}: failed runs and the cache are left")
            kinds = [kind for kind in kinds if kind == "checkpoints"]
        found = find_removable(root, look(), kinds)
        if not found:
            console.print(f"{root}: nothing to remove")
            return
        done = [entry for entry in found if not removes or _remove(entry, console)]
    rows = [
        [entry.kind, str(entry.path.relative_to(root)), bytes_text(entry.size), entry.reason[:100]]
        for entry in sorted(done, key=lambda entry: -entry.size)
    ]
    title = "removed" if removes else "can be removed"
    console.table(title, ["", "", "size", "why"], rows, left=True)
    size = f"{bytes_text(sum(entry.size for entry in done))} in {plural(len(done), 'place')}"
    if removes:
        console.print(f"removed {size}")
    else:
        console.print(f"{size}; nothing was removed: add --yes to remove them")


def _remove(entry: Removable, console: RunConsole) -> bool:
    """Remove something, under its run's lock; tell whether it is gone."""
    if entry.run is None:
        _delete(entry.path)
        return True
    try:
        with exclusive(entry.run / ".lock", patience=0):
            _delete(entry.path)
    except BlockingIOError:
        console.print(f"{entry.path}: left, a process is at work on this run")
        return False
    return True


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        with suppress(FileNotFoundError):
            path.unlink()
