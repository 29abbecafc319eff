"""Equality of sets of real numbers, however written: intervals, unions, inequalities."""

from __future__ import annotations

import re
from dataclasses import replace

import mpmath
import sympy

from deft.evaluators.grading.math import expressions
from deft.evaluators.grading.math.expressions import NotParsedError
from deft.evaluators.grading.math.interpreter import NotComputedError
from deft.evaluators.grading.math.nodes import (
    FLIPPED,
    Group,
    Intersection,
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

MAX_PIECES = 40
"""Intervals of a union that SymPy merges; its time grows with their square."""
_LINE = sympy.Interval(-sympy.oo, sympy.oo)
_DISTANCE = re.compile(r"\|[a-zA-Z](?:([+-])(\d+))?\|")


def same_real_sets(gold: Node, answer: Node) -> bool | None:
    """Compare two answers as sets of reals; None if neither is written as one, or one is none."""
    # Two pairs in parentheses may both be points, and are not compared here.
    if not (is_set_like(gold) or is_set_like(answer)):
        return None
    if _is_point_like(gold) and isinstance(answer, Relation) and answer.signs[0] != r"\in":
        return None  # (2, 5) is rather a point than what 2 < x < 5 says
    left, right = _RealSet().pieces(gold), _RealSet().pieces(answer)
    if left is None or right is None:
        return None
    return pair_off(left, right, _same_piece)


def is_set_like(node: Node) -> bool:
    match node:
        case (
            Union()
            | Intersection()
            | SetDifference()
            | Scalar(latex=r"\mathbb{R}")
            | Group(kind="(]" | "[)")
        ):
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


_Piece = tuple[Scalar, Scalar, bool, bool]
"""The ends of an interval, and whether they are left out; a point has both ends."""


class _NoSetError(ValueError):
    """The answer is no set of reals that can be computed."""


class _RealSet:
    """Read one answer as a set of SymPy's, in which ends are what they are worth as numbers."""

    def __init__(self) -> None:
        self.written: dict[sympy.Expr, Scalar] = {
            end * sympy.oo: Scalar(rf"{'-' if end < 0 else ''}\infty") for end in (-1, 1)
        }
        """End to how it was written, by which it is compared."""

    def pieces(self, node: Node) -> list[_Piece] | None:
        try:
            whole = self._set(node)
        except _NoSetError:
            return None
        pieces: list[_Piece] = []
        for part in whole.args if isinstance(whole, sympy.Union) else (whole,):
            if isinstance(part, sympy.Interval):
                ends = self.written[part.start], self.written[part.end]
                pieces.append((*ends, bool(part.left_open), bool(part.right_open)))
            elif isinstance(part, sympy.FiniteSet):
                points = [self.written[point] for point in part.args]
                pieces.extend((point, point, False, False) for point in points)
            else:
                return None
        return pieces

    def _set(self, node: Node) -> sympy.Set:
        match node:
            case Scalar(latex=r"\mathbb{R}"):
                return _LINE
            case Scalar(latex=r"\emptyset"):
                return sympy.S.EmptySet
            case Union(parts=parts) if len(parts) <= MAX_PIECES:
                return sympy.Union(*map(self._set, parts))
            case Intersection(parts=parts) if len(parts) <= MAX_PIECES:
                return sympy.Intersection(*map(self._set, parts))
            case SetDifference(whole=whole, removed=removed):
                return self._set(whole) - self._removed(removed)
            case Group(kind="()" | "[]" | "(]" | "[)" as kind, items=(low, high)):
                return self._interval(low, high, kind[0] == "(", kind[1] == ")")
            case Group(kind="set", items=items):
                return sympy.FiniteSet(*map(self._end, items))
            case Group(kind="list", items=items) if all(map(_is_interval, items)):
                return self._set(Union(items))
            case Group(kind="list", items=items) if is_set_like(node):
                # x > 1, x < 3 is one interval, x < 1, x > 3 are two rays.
                sets = [self._set(item) for item in items]
                return sympy.Intersection(*sets) or sympy.Union(*sets)
            case Relation():
                return self._solution(node)
        raise _NoSetError

    def _removed(self, node: Node) -> sympy.Set:
        if isinstance(node, Union) or _is_interval(node):
            return self._set(node)
        points = node.items if isinstance(node, Group) else (node,)
        return sympy.FiniteSet(*map(self._end, points))

    def _solution(self, relation: Relation) -> sympy.Set:
        """Return the set that inequalities in one variable describe."""
        signs, sides, names = relation.signs, relation.sides, relation.names
        if signs == (r"\in",):
            return self._set(sides[1])
        if signs in (("=",), (r"\neq",)) and is_name(names[0]):
            point = sympy.FiniteSet(self._end(sides[1]))
            return point if signs == ("=",) else _LINE - point
        # The one form in which absolute values are asked for; others stay relations.
        distance = _DISTANCE.fullmatch(names[0])
        if distance and len(signs) == 1 and signs[0] in FLIPPED and isinstance(sides[1], Scalar):
            center = f"{'-' if distance[1] == '+' else ''}{distance[2] or 0}"
            low, high = (Scalar(f"{center}{sign}({sides[1].latex})") for sign in "-+")
            inside = self._interval(low, high, *[signs[0] in ("<", r"\geq")] * 2)
            return inside if signs[0] in ("<", r"\leq") else _LINE - inside
        if len(signs) == 1 and signs[0] in FLIPPED and any(map(is_name, names)):
            end, sign = (sides[1], signs[0]) if is_name(names[0]) else (sides[0], FLIPPED[signs[0]])
            return self._ray(end, sign)
        # A chain has a meaning only if both of its signs point the same way.
        if len(signs) == 2 and is_name(names[1]) and signs[0] in FLIPPED and signs[1] in FLIPPED:
            if (signs[0] in ("<", r"\leq")) != (signs[1] in ("<", r"\leq")):
                raise _NoSetError
            return self._ray(sides[0], FLIPPED[signs[0]]) & self._ray(sides[2], signs[1])
        raise _NoSetError

    def _ray(self, end: Node, sign: str) -> sympy.Set:
        place = self._end(end)
        if sign in (">", r"\geq"):
            return sympy.Interval(place, sympy.oo, left_open=sign == ">")
        return sympy.Interval(-sympy.oo, place, right_open=sign == "<")

    def _interval(self, low: Node, high: Node, low_open: bool, high_open: bool) -> sympy.Set:
        interval = sympy.Interval(self._end(low), self._end(high), low_open, high_open)
        if interval is sympy.S.EmptySet:
            raise _NoSetError  # (3, 1) is no interval
        return interval

    def _end(self, node: Node) -> sympy.Expr:
        """Compute where an end lies on the real line; one with variables stands for itself."""
        if not isinstance(node, Scalar):
            raise _NoSetError
        written = number(node.latex)
        if latex_key(node.latex) in ("∞", "-∞"):
            return -sympy.oo if node.latex.startswith("-") else sympy.oo
        if written is not None:
            place = sympy.Rational(written.value.numerator, written.value.denominator)
        else:
            try:
                computed = expressions.value(expressions.parse(expression_text(node.latex)))
            except (NotParsedError, NotComputedError):
                place = sympy.Symbol(node.latex, real=True)
            else:
                if computed.imag:
                    raise _NoSetError
                place = sympy.Rational(mpmath.nstr(computed.real, 35))
        # A unit behind an interval is read as that of its last end, and says nothing of it.
        self.written.setdefault(place, replace(node, unit=""))
        return place


def _same_piece(gold: _Piece, answer: _Piece) -> bool:
    (low, high, *opens), (other_low, other_high, *other_opens) = gold, answer
    return opens == other_opens and same_scalars(low, other_low) and same_scalars(high, other_high)
