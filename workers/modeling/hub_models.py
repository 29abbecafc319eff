"""Models of the Hugging Face hub, brought to where every node of a cluster sees them."""

from __future__ import annotations

import os
import shutil
from fnmatch import fnmatch
from pathlib import Path

from deft.workers.common.checksums import cached_directory, replace_damaged
from deft.workers.common.hub import COMMIT
from deft.workers.modeling.model_files import HUB_FILES, resolve_directory


def prepare_hub_model(name: str, revision: str | None, cache: Path) -> Path:
    """Return the directory of a hub model under ``cache``, filled if it is not there yet.

    The hub's own cache is on this node only, so its files are copied, or linked where ``cache`` is
    on the same file system.

    Args:
        name: id of the repository, org/name.
        revision: branch, tag or commit; None for the main branch.
        cache: folder on storage that all nodes share.

    Raises:
        NotOnThisNodeError: the hub cannot be reached, and this node has no copy.
        ValueError: there is no such model, or it cannot be loaded safely.
    """
    if revision is not None and COMMIT.fullmatch(revision):
        directory = _directory(name, revision, cache)
        if directory.is_dir() and not replace_damaged(directory):
            return directory
    snapshot = resolve_directory(name, revision)

    def build(aside: Path) -> None:
        for file in snapshot.rglob("*"):
            path = file.relative_to(snapshot)
            if file.is_file() and any(fnmatch(str(path), kind) for kind in HUB_FILES):
                _link_or_copy(file.resolve(), aside / path)

    return cached_directory(_directory(name, snapshot.name, cache), build)


def _directory(name: str, commit: str, cache: Path) -> Path:
    return cache / f"{name.replace('/', '--')}-{commit[:12]}"


def _link_or_copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)
