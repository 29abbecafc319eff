"""The kinds of answers: what `reading` makes of a text and `equality` compares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")
FLIPPED = {"<": ">", ">": "<", r"\leq": r"\geq", r"\geq": r"\leq"}


@dataclass(frozen=True)
class Scalar:
    """A number or an expression."""

    latex: str
    """Normalized LaTeX without units, percent sign and words."""
    unit: str = ""
    """Canonical unit or counted thing; empty if none was given."""
    percent: bool = False
    degree: bool = False
    base: str = ""
    """The base that a numeral is written in, if it says so."""


@dataclass(frozen=True)
class Words:
    """A name, a word, a phrase."""

    text: str
    """Lower case, single spaces, without articles and punctuation."""


@dataclass(frozen=True)
class Choice:
    """A letter of a multiple choice, and what stands behind it."""

    letter: str
    rest: Node | None


@dataclass(frozen=True)
class Group:
    """Several answers, or the coordinates of one."""

    kind: str
    """``list`` (no brackets), ``set`` {}, ``vector`` ⟨⟩, or the two brackets: ``()``, ``[)``…"""
    items: tuple[Node, ...]


@dataclass(frozen=True)
class Union:
    """A union of sets, or alternatives given as inequalities."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Intersection:
    """What several sets have in common."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class SetDifference:
    """All of the first set but the second."""

    whole: Node
    removed: Node


@dataclass(frozen=True)
class Relation:
    """A chain such as ``0 < x ≤ 1`` or ``y = 2x + 1 ≈ 3``."""

    sides: tuple[Node, ...]
    signs: tuple[str, ...]
    names: tuple[str, ...]
    """The normalized LaTeX of each side."""


@dataclass(frozen=True)
class Ratio:
    """Numbers in proportion."""

    items: tuple[Node, ...]


@dataclass(frozen=True)
class Clock:
    """A time of day, which is no quotient."""

    hour: int
    minute: int
    half: str
    """``a`` or ``p`` for am and pm; empty if neither was said."""


@dataclass(frozen=True)
class Matrix:
    """Rows of cells; ``determinant`` if between vertical bars."""

    rows: tuple[tuple[Node, ...], ...]
    determinant: bool


@dataclass(frozen=True)
class Cases:
    """A function in pieces: pairs of a value and its condition."""

    rows: tuple[tuple[Node, ...], ...]


Node = (
    Scalar
    | Words
    | Choice
    | Group
    | Union
    | Intersection
    | SetDifference
    | Relation
    | Ratio
    | Clock
    | Matrix
    | Cases
)


def pair_off(
    gold: Sequence[Item], answer: Sequence[Item], test: Callable[[Item, Item], bool]
) -> bool:
    """Check that each answer passes with one gold answer only, or 1, 1 would be 1, 2."""
    unmatched = list(answer)
    for item in gold:
        match = next((other for other in unmatched if test(item, other)), None)
        if match is None:
            return False
        unmatched.remove(match)
    return not unmatched
