"""Commits of the Hugging Face hub, so that a run can be repeated with what it read."""

from __future__ import annotations

import re
from typing import Literal

COMMIT = re.compile(r"[0-9a-f]{40}")


class NotOnThisNodeError(ValueError):
    """The hub cannot be reached, and this node's cache has no copy; another node may have one."""


def resolve_commit(
    kind: Literal["dataset", "model"], name: str, revision: str | None
) -> str | None:
    """Return the commit that ``revision`` of a hub repository stands for now.

    Args:
        kind: of the repository.
        name: id of the repository, org/name.
        revision: branch, tag or commit; None for the main branch.

    Returns:
        40 hexadecimal digits; None if the hub does not say: it cannot be reached, or has no such
        repository or revision, which whoever reads it then finds out.
    """
    if revision is not None and COMMIT.fullmatch(revision):
        return revision
    from httpx2 import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    try:
        info = HfApi().repo_info(name, repo_type=kind, revision=revision)
    except (HTTPError, HFValidationError, OSError):
        return None
    return info.sha
