"""One wording for names that do not exist."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Say that ``name`` is no ``kind``, which name is nearest, and which there are."""
    known = sorted(known)
    by_folded = {candidate.casefold(): candidate for candidate in known}
    near = get_close_matches(name.casefold(), by_folded, n=1)
    hint = f" Did you mean {by_folded[near[0]]}?" if near else ""
    return f"unknown {kind} {name!r}.{hint} There are: {', '.join(known)}."
