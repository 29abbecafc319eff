"""Names that a run file may use: rows of catalogs, and hints for names that are in none."""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class CatalogEntry:
    """One row of `deft list`."""

    summary: str
    source: str


MIN_SIMILARITY = 0.7
"""Least `difflib` ratio at which a name is taken for a misspelling of another, between 0 and 1."""


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """Return the name in ``known`` that ``name`` probably misspells, whatever its case.

    Returns:
        None if no name is near enough to be meant.
    """
    by_folded: dict[str, str] = {}
    for candidate in known:
        by_folded.setdefault(candidate.casefold(), candidate)
    close = get_close_matches(name.casefold(), by_folded, n=1, cutoff=MIN_SIMILARITY)
    return by_folded[close[0]] if close else None


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Say that ``name`` is no ``kind``, which name is probably meant, and which there are."""
    known = sorted(known)
    nearest = nearest_name(name, known)
    hint = f" Did you mean {nearest}?" if nearest else ""
    return f"unknown {kind} {name!r}.{hint} There are: {', '.join(known)}."


def import_attribute(path: str) -> Any:
    """Return the attribute at an import path ``module:attribute``.

    Raises:
        ImportError: there is no such module.
        AttributeError: it has no such attribute.
    """
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)


def describe_import_error(error: BaseException) -> str:
    """Name an error of an author's code, and the line of that code which raised it."""
    described = f"{type(error).__name__}: {error}".splitlines()[0]
    if isinstance(error, SyntaxError):
        return described
    libraries = ("<frozen", "site-packages", str(Path(importlib.__file__).parent))
    lines = [
        f"{Path(frame.filename).name}, line {frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
        if not _is_of_platform(Path(frame.filename))
        and not any(library in frame.filename for library in libraries)
    ]
    return f"{described} ({lines[-1]})" if lines else described


def _is_of_platform(file: Path) -> bool:
    checkout = Path(__file__).resolve().parents[2]
    folders = ("objectives", "workers", "evaluators", "platform", "sweeps")
    return any(file.resolve().is_relative_to(checkout / folder) for folder in folders)
