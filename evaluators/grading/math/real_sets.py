"""Equality of sets of real numbers, however written: intervals, unions, inequalities."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise

import mpmath

from deft.evaluators.grading.math import expressions
from deft.evaluators.grading.math.expressions import NotParsedError
from deft.evaluators.grading.math.interpreter import NotComputedError
from deft.evaluators.grading.math.nodes import (
    FLIPPED,
    Group,
    Node,
    Relation,
    Scalar,
    SetDifference,
    Union,
    pair_off,
)
from deft.evaluators.grading.math.quantities import number
from deft.evaluators.grading.math.scalars import expression_text, latex_key, same_scalars
from deft.evaluators.grading.math.words import is_name

_MINUS, _PLUS = Scalar(r"-\infty"), Scalar(r"\infty")


def as_real_sets(gold: Node, answer: Node) -> tuple[list[RealInterval], list[RealInterval]] | None:
    """Read both answers as unions of intervals, if one of them is written as a set of reals."""
    # Two pairs in parentheses may both be points, and are not compared here.
    if not (is_set_like(gold) or is_set_like(answer)):
        return None
    if _is_point_like(gold) and isinstance(answer, Relation) and answer.signs[0] != r"\in":
        return None  # (2, 5) is rather a point than what 2 < x < 5 says
    left, right = intervals_of(gold), intervals_of(answer)
    if left is None or right is None:
        return None
    return left, right


class RealInterval:
    """An interval, or a point (both ends closed and the same)."""

    def __init__(self, low: Scalar, high: Scalar, *, low_open: bool, high_open: bool) -> None:
        self.low, self.high = low, high
        self.low_open, self.high_open = low_open, high_open


def is_set_like(node: Node) -> bool:
    match node:
        case Union() | SetDifference():
            return True
        case Scalar(latex=r"\mathbb{R}"):
            return True
        case Group(kind="(]" | "[)"):
            return True
        case Group(kind="()" | "[]", items=(_, _)):
            # (3, 5) is a point as well as an interval; with an infinite end it can only be the
            # latter.
            return any(isinstance(i, Scalar) and r"\infty" in i.latex for i in node.items)
        case Relation(signs=signs, names=names, sides=sides):
            if all(sign in (*FLIPPED, r"\neq") for sign in signs):
                return any(is_name(name) for name in names)
            return signs == (r"\in",) and is_set_like(sides[-1])
        case Group(kind="list", items=items) if items:
            return all(isinstance(i, Relation) and is_set_like(i) for i in items)
    return False


def _is_point_like(node: Node) -> bool:
    return isinstance(node, Group) and node.kind == "()" and not is_set_like(node)


def _is_interval(node: Node) -> bool:
    return isinstance(node, Group) and node.kind[0] in "([" and len(node.items) == 2


def intervals_of(node: Node) -> list[RealInterval] | None:
    match node:
        case Scalar(latex=r"\mathbb{R}"):
            return [RealInterval(_MINUS, _PLUS, low_open=True, high_open=True)]
        case Scalar(latex=r"\emptyset"):
            return []
        case Union(parts=parts):
            sets = [intervals_of(part) for part in parts]
            return [p for pieces in sets for p in pieces or []] if None not in sets else None
        case SetDifference(whole=whole, removed=removed):
            return _remove(whole, removed)
        case Group(
            kind="()" | "[]" | "(]" | "[)" as kind, items=(Scalar() as low, Scalar() as high)
        ):
            return [RealInterval(low, high, low_open=kind[0] == "(", high_open=kind[1] == ")")]
        case Group(kind="set", items=items):
            if not all(isinstance(item, Scalar) for item in items):
                return None
            points = [item for item in items if isinstance(item, Scalar)]
            return [RealInterval(p, p, low_open=False, high_open=False) for p in points]
        case Group(kind="list", items=items) if all(map(_is_interval, items)):
            return intervals_of(Union(items))
        case Group(kind="list", items=items) if is_set_like(node):
            return _together([intervals_of(item) for item in items])
        case Relation():
            return _solution(node)
    return None


def _remove(whole: Node, removed: Node) -> list[RealInterval] | None:
    if not (isinstance(whole, Scalar) and whole.latex == r"\mathbb{R}"):
        return None
    if isinstance(removed, Union) or (_is_interval(removed) and not _is_point_like(removed)):
        return _complement(intervals_of(removed))
    points = removed.items if isinstance(removed, Group) else (removed,)
    if not all(isinstance(point, Scalar) for point in points):
        return None
    scalars = [point for point in points if isinstance(point, Scalar)]
    try:
        # Points are taken out from left to right, whatever order they were written in.
        scalars.sort(key=_position)
    except NotComputedError:
        return None
    ends = [_MINUS, *scalars, _PLUS]
    return [RealInterval(low, high, low_open=True, high_open=True) for low, high in pairwise(ends)]


def _complement(intervals: list[RealInterval] | None) -> list[RealInterval] | None:
    if intervals is None:
        return None
    rest = [RealInterval(_MINUS, _PLUS, low_open=True, high_open=True)]
    for one in intervals:
        outside = [
            RealInterval(_MINUS, one.low, low_open=True, high_open=not one.low_open),
            RealInterval(one.high, _PLUS, low_open=not one.high_open, high_open=True),
        ]
        intersected = _intersection([rest, outside])
        if intersected is None:
            return None
        rest = intersected
    return rest


def _together(sets: list[list[RealInterval] | None]) -> list[RealInterval] | None:
    """Intersect a list of inequalities; if nothing is left, they are alternatives."""
    # x > 1, x < 3 is one interval, x < 1, x > 3 are two rays: nobody writes an empty set so.
    both = _intersection(sets)
    return both or ([p for pieces in sets for p in pieces or []] if None not in sets else None)


def _intersection(sets: list[list[RealInterval] | None]) -> list[RealInterval] | None:
    result = [RealInterval(_MINUS, _PLUS, low_open=True, high_open=True)]
    try:
        for pieces in sets:
            if pieces is None:
                return None
            result = [p for a in result for b in pieces if (p := _overlap(a, b)) is not None]
    except NotComputedError:
        return None
    return result


def _overlap(left: RealInterval, right: RealInterval) -> RealInterval | None:
    # Of two ends in one place the open one is further in.
    low = max(left, right, key=lambda p: (_position(p.low), p.low_open))
    high = min(left, right, key=lambda p: (_position(p.high), not p.high_open))
    start, end = _position(low.low), _position(high.high)
    if start > end or (start == end and (low.low_open or high.high_open)):
        return None
    return RealInterval(low.low, high.high, low_open=low.low_open, high_open=high.high_open)


def _solution(relation: Relation) -> list[RealInterval] | None:
    """Return the set that inequalities in one variable describe."""
    signs, sides, names = relation.signs, relation.sides, relation.names
    if signs == (r"\in",):
        return intervals_of(sides[1])
    # Inequalities between several variables describe regions, which are compared as relations.
    scalars = [side for side in sides if isinstance(side, Scalar)]
    if len(scalars) != len(sides):
        return None
    if signs == ("=",) and is_name(names[0]):
        return [RealInterval(scalars[1], scalars[1], low_open=False, high_open=False)]
    if signs == (r"\neq",) and is_name(names[0]):
        return _remove(Scalar(r"\mathbb{R}"), scalars[1])
    # The one form in which absolute values are asked for; others stay relations.
    distance = re.fullmatch(r"\|[a-zA-Z](?:([+-])(\d+))?\|", names[0])
    if distance and len(signs) == 1 and signs[0] in FLIPPED:
        return _within(distance[1] or "-", distance[2] or "0", scalars[1], signs[0])
    if len(signs) == 1 and signs[0] in FLIPPED:
        if is_name(names[0]):
            return [_ray(scalars[1], signs[0])]
        if is_name(names[1]):
            return [_ray(scalars[0], FLIPPED[signs[0]])]
        return None
    if len(signs) == 2 and is_name(names[1]):
        # A chain has a meaning only if both of its signs point the same way.
        if signs[0] in ("<", r"\leq") and signs[1] in ("<", r"\leq"):
            low, high, first, last = scalars[0], scalars[2], signs[0], signs[1]
        elif signs[0] in (">", r"\geq") and signs[1] in (">", r"\geq"):
            low, high, first, last = scalars[2], scalars[0], signs[1], signs[0]
        else:
            return None
        return [RealInterval(low, high, low_open=first in "<>", high_open=last in "<>")]
    return None


def _within(sign: str, center: str, radius: Scalar, relation: str) -> list[RealInterval]:
    """Return the set of ``|x − center| < radius``, or what lies outside."""
    middle = center if sign == "-" else f"-{center}"
    low, high = Scalar(f"{middle}-({radius.latex})"), Scalar(f"{middle}+({radius.latex})")
    strict = relation in "<>"
    if relation in ("<", r"\leq"):
        return [RealInterval(low, high, low_open=strict, high_open=strict)]
    return [_ray(low, "<" if strict else r"\leq"), _ray(high, ">" if strict else r"\geq")]


def _ray(end: Scalar, sign: str) -> RealInterval:
    strict = sign in "<>"
    if sign in (">", r"\geq"):
        return RealInterval(end, _PLUS, low_open=strict, high_open=True)
    return RealInterval(_MINUS, end, low_open=True, high_open=strict)


def _position(scalar: Scalar) -> mpmath.mpf:
    """Compute where an end lies on the real line.

    Raises:
        NotComputedError: it is no real number.
    """
    if latex_key(scalar.latex) in ("∞", "-∞"):
        return mpmath.mpf("-inf" if scalar.latex.startswith("-") else "inf")
    written = number(scalar.latex)
    if written is not None:
        return mpmath.mpf(written.value.numerator) / mpmath.mpf(written.value.denominator)
    try:
        computed = expressions.value(expressions.parse(expression_text(scalar.latex)))
    except NotParsedError as error:
        raise NotComputedError(scalar.latex) from error
    if computed.imag:
        raise NotComputedError("not real")
    return computed.real


def same_real_sets(gold: list[RealInterval], answer: list[RealInterval]) -> bool:
    with suppress(NotComputedError):
        # [0, 1] ∪ [1, 2] is [0, 2], but [0, 1) ∪ (1, 2] has a hole: merging looks at the ends.
        gold, answer = _merged(gold), _merged(answer)
    return pair_off(gold, answer, _same_interval)


def _merged(pieces: list[RealInterval]) -> list[RealInterval]:
    pieces = sorted(pieces, key=lambda p: (_position(p.low), p.low_open))
    merged: list[RealInterval] = []
    for piece in pieces:
        # Sorted by their low ends, a piece can only touch the one before it.
        if not merged:
            merged.append(piece)
            continue
        last = merged[-1]
        gap = _position(piece.low) - _position(last.high)
        if gap > 0 or (gap == 0 and last.high_open and piece.low_open):
            merged.append(piece)
        elif _position(piece.high) > _position(last.high) or (
            _position(piece.high) == _position(last.high) and not piece.high_open
        ):
            merged[-1] = RealInterval(
                last.low, piece.high, low_open=last.low_open, high_open=piece.high_open
            )
    return merged


def _same_interval(gold: RealInterval, answer: RealInterval) -> bool:
    return (
        (gold.low_open or _is_infinite(gold.low)) == (answer.low_open or _is_infinite(answer.low))
        and (gold.high_open or _is_infinite(gold.high))
        == (answer.high_open or _is_infinite(answer.high))
        # A unit behind an interval is read as that of its last end, and says nothing of it.
        and same_scalars(replace(gold.low, unit=""), replace(answer.low, unit=""))
        and same_scalars(replace(gold.high, unit=""), replace(answer.high, unit=""))
    )


def _is_infinite(end: Scalar) -> bool:
    return r"\infty" in end.latex
