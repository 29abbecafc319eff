"""Names that a run file may use: what is said of those there are, and of those there are not."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any


@dataclass(frozen=True)
class CatalogEntry:
    """One row of `deft list`."""

    summary: str
    source: str


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Say that ``name`` is no ``kind``, which name is nearest, and which there are."""
    known = sorted(known)
    by_folded = {candidate.casefold(): candidate for candidate in known}
    near = get_close_matches(name.casefold(), by_folded, n=1)
    hint = f" Did you mean {by_folded[near[0]]}?" if near else ""
    return f"unknown {kind} {name!r}.{hint} There are: {', '.join(known)}."


def import_attribute(path: str) -> Any:
    """The attribute at an import path ``module:attribute``.

    Raises:
        ImportError: there is no such module.
        AttributeError: it has no such attribute.
    """
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)
