"""Names that a run file may use: what is said of those there are, and of those there are not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches


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
