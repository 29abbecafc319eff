"""Whether two answers are the same, as a careful human would say.

The rules, where people differ:

- An exact gold answer demands an exact answer: 1.414 is not √2, 0.333 is not 1/3. A decimal gold
  answer of two or more decimals (or in scientific notation) was rounded by someone: more digits,
  or the exact value, are the same if they round to it; fewer digits are not. 27.0 is 27.
- A missing unit is forgiven, a contradicting one is not. 50 % is 1/2, and 50 where percent were
  asked for; 0.5 is not 50. A numeral in another base must name it.
- The order of solutions and of set elements is free, that of coordinates is not; open and closed
  ends differ; a bare ``1, 2`` may stand for a pair or a set, a set not for a pair.
- Variables are case sensitive and not interchangeable. ``y = 2x + 1`` may be given as ``2x + 1``;
  equations are equal if they are multiples of each other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import mpmath

from deft.evaluators.grading.math import expressions
from deft.evaluators.grading.math.expressions import NotComputedError, NotParsedError
from deft.evaluators.grading.math.structure import (
    Choice,
    Difference,
    Group,
    Matrix,
    Node,
    Number,
    Ratio,
    Relation,
    Scalar,
    Union,
    Words,
    number,
    plain_words,
    readings,
    without_unit_letter,
)
from deft.evaluators.grading.math.units import compatible

MAX_UNORDERED = 60
"""Items that are matched in any order; more must be in the gold answer's order."""


def same_answer(gold: str, answer: str) -> bool:
    """Whether ``answer`` says what ``gold`` says."""
    if gold.strip() and gold.strip() == answer.strip():
        return True
    gold, answer = (_FOR_ALL.sub("", text) or text for text in (gold, answer))
    if r"\in" not in answer:  # which numbers k runs through may go without saying
        gold = _DOMAIN.sub("", gold)
    golds = [g for g in readings(gold) if not _is_decimal_comma(g, gold)]
    return any(same(g, a) for g in golds for a in readings(answer))


_FOR_ALL = re.compile(
    r"(?:[\s,$(]|\\text *\{){0,6}(?:for (?:all|every|any|each)\b|\\forall)[^<>=\d]*$", re.IGNORECASE
)
_DOMAIN = re.compile(
    r"(?:,|\\quad|\\text\{,? *(?:where|for|with) *\}|\s){1,6}"
    r"[a-z] *\\in *\\mathbb *\{?[NZ]\}?[\s$]*$"
)


def _is_decimal_comma(node: Node, text: str) -> bool:
    # Only a model's 3,5 may mean 3.5; a gold answer that has a comma is a list.
    return isinstance(node, Scalar) and "." in node.latex and "." not in text


def same(gold: Node, answer: Node) -> bool:
    """Whether two structures are equal."""
    if gold == answer:
        return True
    sets = _as_sets(gold, answer)
    if sets is not None:
        return _same_sets(*sets)
    match gold, answer:
        case Relation(), Relation():
            return _same_relations(gold, answer)
        case Relation(), _:
            return any(same(value, answer) for value in _gold_values(gold))
        case _, Relation():
            return any(same(gold, side) for side in _stated_values(answer, gold))
        case Choice(), _:
            return _same_choice(gold, answer)
        case _, Choice():
            return _is_letter(gold, answer.letter) or (
                answer.rest is not None and not _looks_like_letter(gold) and same(gold, answer.rest)
            )
        case Ratio(), Ratio():
            return _same_ratios(gold, answer)
        case (Ratio(items=items), Scalar() as other) | (Scalar() as other, Ratio(items=items)):
            return len(items) == 2 and _same_scalars(_quotient(items), other)
        case (Matrix(), _) | (_, Matrix()):
            return _same_matrices(gold, answer)
        case (Group(), _) | (_, Group()):
            return _same_groups(gold, answer)
        case (Union(parts=left), Union(parts=right)):
            return _same_unordered(left, right)
        case Words(), Words():
            return gold.text == answer.text
        case Scalar(), Scalar():
            return _same_scalars(gold, answer)
        case (Words(text=text), Scalar() as other) | (Scalar() as other, Words(text=text)):
            return bool(text) and text == plain_words(f"{other.latex} {other.unit}")
    return False


# --- relations


_NAME = re.compile(
    r"\|?(?:m?\\angle\s?)?"
    r"(?:\\(?:overline|bar|mathcal|vec)\{[A-Za-z]+\}|\\?[A-Za-z]+'*|\\Delta [a-z])"
    r"(?:_\{[^{}]*\})?'*(?:\^\{-1\})?(?:\([^()]*\))?\|?"
)


def _is_name(text: str) -> bool:
    """Whether the left side of an equation only gives a name to the right side."""
    if re.fullmatch(r"\\(?:pi|infty|emptyset|mathbb)", text):
        return False
    if re.fullmatch(
        r"\([a-zA-Z](?:,[a-zA-Z])*\)|\\frac\{d[a-z]?\}\{d[a-z]\}|[a-z],[a-z](?:,[a-z])*", text
    ):
        return True
    return _NAME.fullmatch(text) is not None or bool(re.fullmatch(r"[A-Za-z ]{3,}", text))


def _is_sum(text: str) -> bool:
    """Whether a side of an equation is worked out, as in ``-5 + 5``: it has no unknowns."""
    return re.search("[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", text)) is None


def _is_assignment(relation: Relation) -> bool:
    return relation.signs[0] in ("=", r"\in", r"\approx") and _is_name(relation.names[0])


def _gold_values(gold: Relation) -> Sequence[Node]:
    """What ``x = 5`` or ``5√2 ≈ 7.07`` lets one answer instead."""
    named = _is_assignment(gold)
    if r"\approx" in gold.signs and set(gold.signs) <= {"=", r"\approx"}:
        return gold.sides[1:] if named and len(gold.sides) > 2 else gold.sides
    return gold.sides[-1:] if named else ()


def _stated_values(answer: Relation, gold: Node) -> list[Node]:
    """What an answer such as ``A = 2 · 3 = 6 ≈ 6.0`` may be taken to say."""
    if not set(answer.signs) <= {"=", r"\approx", r"\in"}:
        return []
    if len(answer.sides) == 2 and _is_name(answer.names[1]) and not _is_name(answer.names[0]):
        if isinstance(gold, Scalar) and gold.latex == answer.names[1]:
            return [answer.sides[1]]
        return [answer.sides[0]]
    if answer.names[-1] == "0" and not (_is_name(answer.names[0]) or _is_sum(answer.names[-2])):
        return []  # an equation, not a value
    exact = [
        side
        for side, sign in zip(answer.sides[1:], answer.signs, strict=True)
        if sign != r"\approx"
    ]
    values = exact[-1:]
    if answer.signs[-1] == r"\approx":
        if not exact and not _is_name(answer.names[0]):
            values = [answer.sides[0]]
        values.append(answer.sides[-1])
    return values


def _same_relations(gold: Relation, answer: Relation) -> bool:
    if _is_assignment(gold) and _is_assignment(answer):
        left, right = gold.names[0], answer.names[0]
        if not _same_name(left, right):
            return False
        if left != right and len(left) == len(right) == 1:
            return False
        return any(
            same(gold.sides[-1], side) for side in _stated_values(answer, gold.sides[-1])
        ) or (_same_equations(gold, answer))
    if gold.signs == answer.signs == ("=",):
        return _same_equations(gold, answer)
    if len(gold.signs) == len(answer.signs) == 1:
        return _same_inequalities(gold, answer)
    if gold.signs == answer.signs:
        return all(map(same, gold.sides, answer.sides))
    flipped = tuple(_FLIPPED.get(sign, sign) for sign in reversed(answer.signs))
    return gold.signs == flipped and all(map(same, gold.sides, reversed(answer.sides)))


def _same_name(left: str, right: str) -> bool:
    if left == right or len(left) > 1 or len(right) > 1:
        bare_left, bare_right = (re.sub(r"\(.*\)|[{}\\_ ]", "", name) for name in (left, right))
        both_short = len(bare_left) == len(bare_right) == 1
        return not both_short or bare_left.lower() == bare_right.lower() or "(" in left + right
    return False


_FLIPPED = {"<": ">", ">": "<", r"\leq": r"\geq", r"\geq": r"\leq"}


def _same_equations(gold: Relation, answer: Relation) -> bool:
    if len(gold.sides) != 2 or len(answer.sides) != 2:
        return False
    factor = _factor(gold, answer)
    return factor is not None


def _same_inequalities(gold: Relation, answer: Relation) -> bool:
    factor = _factor(gold, answer)
    if factor is None or abs(factor.imag) > 1e-20:
        return False
    sign = answer.signs[0] if factor.real > 0 else _FLIPPED.get(answer.signs[0], answer.signs[0])
    return gold.signs[0] == sign


def _factor(gold: Relation, answer: Relation) -> complex | None:
    """The constant between (left − right) of two relations."""
    try:
        left, right = (
            expressions.parse(_plain(relation.sides[0]))
            - expressions.parse(_plain(relation.sides[1]))
            for relation in (gold, answer)
        )
    except NotParsedError:
        return None
    return expressions.proportional(left, right)


def _plain(node: Node) -> str:
    if not isinstance(node, Scalar):
        raise NotParsedError("not a scalar")
    return _expression_text(node.latex)


# --- lists, tuples, matrices


def _same_groups(gold: Node, answer: Node) -> bool:
    left, right = _named_items(gold), _named_items(answer)
    if left is None or right is None:
        left_group = gold if isinstance(gold, Group) else Group("list", (gold,))
        right_group = answer if isinstance(answer, Group) else Group("list", (answer,))
        return _same_plain_groups(left_group, right_group)
    (left_group, left_names), (right_group, right_names) = left, right
    if left_names and right_names:
        if set(left_names) == set(right_names) and len(set(left_names)) == len(left_names):
            order = [right_names.index(name) for name in left_names]
            return all(map(same, left_group.items, (right_group.items[i] for i in order)))
        if len(set(left_names)) > 1 or len(set(right_names)) > 1:
            return False
    elif len(set(left_names or right_names)) > 1:
        # x = 1, y = 2 is an ordered pair, and so is y = 2, x = 1.
        left_items, right_items = (
            _by_name(left_group, left_names),
            _by_name(right_group, right_names),
        )
        return len(left_items) == len(right_items) and all(map(same, left_items, right_items))
    return _same_plain_groups(left_group, right_group)


def _by_name(group: Group, names: list[str]) -> Sequence[Node]:
    if not all(len(name) == 1 for name in names):
        return group.items
    order = sorted(range(len(names)), key=names.__getitem__)
    return [group.items[i] for i in order] or group.items


def _named_items(node: Node) -> tuple[Group, list[str]] | None:
    """The values of a list of assignments, and their names; other groups as they are."""
    if isinstance(node, Relation) and _is_assignment(node):
        node = Group("list", (node,))
    if not isinstance(node, Group):
        return Group("list", (node,)), []
    if (
        node.kind == "list"
        and node.items
        and all(isinstance(item, Relation) and _is_assignment(item) for item in node.items)
    ):
        relations = [item for item in node.items if isinstance(item, Relation)]
        names = [relation.names[0] for relation in relations]
        numbered = len({re.sub(r"_\{?\d\}?", "", name) for name in names}) == 1
        values = Group("list", tuple(relation.sides[-1] for relation in relations))
        return values, [names[0]] * len(names) if numbered else names
    return node, []


def _same_plain_groups(gold: Group, answer: Group) -> bool:
    kinds = gold.kind, answer.kind
    match kinds:
        case ("list" | "set", "list" | "set") | ("list", "[]"):
            return _same_unordered(gold.items, answer.items)
        case ("()" | "vector", "()" | "vector" | "list"):
            pass
        case ("list", "()" | "vector"):
            pass
        case (left, right) if left == right:
            pass
        case _:
            return False
    return len(gold.items) == len(answer.items) and all(map(same, gold.items, answer.items))


def _same_unordered(gold: Sequence[Node], answer: Sequence[Node]) -> bool:
    if max(len(gold), len(answer)) > MAX_UNORDERED:
        return len(gold) == len(answer) and all(map(same, gold, answer))
    gold, answer = _distinct(gold), _distinct(answer)
    if len(gold) != len(answer):
        return False
    left = list(answer)
    for item in gold:
        match = next((other for other in left if same(item, other)), None)
        if match is None:
            return False
        left.remove(match)
    return True


def _distinct(items: Sequence[Node]) -> list[Node]:
    kept: list[Node] = []
    for item in items:
        if not any(same(item, other) for other in kept):
            kept.append(item)
    return kept


def _same_matrices(gold: Node, answer: Node) -> bool:
    if isinstance(gold, Matrix) and isinstance(answer, Matrix):
        shapes = [[len(row) for row in matrix.rows] for matrix in (gold, answer)]
        if shapes[0] != shapes[1] or gold.determinant != answer.determinant:
            return False
        pairs = zip(_cells(gold), _cells(answer), strict=True)
        return all(same(left, right) for left, right in pairs)
    matrix, other = (gold, answer) if isinstance(gold, Matrix) else (answer, gold)
    assert isinstance(matrix, Matrix)
    vector = len(matrix.rows) == 1 or all(len(row) == 1 for row in matrix.rows)
    if not vector or matrix.determinant:
        return False
    group = Group("vector", tuple(_cells(matrix)))
    return isinstance(other, Group) and _same_plain_groups(
        *((group, other) if isinstance(gold, Matrix) else (other, group))
    )


def _cells(matrix: Matrix) -> list[Node]:
    return [cell for row in matrix.rows for cell in row]


# --- choices, ratios


def _same_choice(gold: Choice, answer: Node) -> bool:
    if isinstance(answer, Choice):
        if gold.letter != answer.letter:
            return False
        return gold.rest is None or answer.rest is None or same(gold.rest, answer.rest)
    return _is_letter(answer, gold.letter) or (gold.rest is not None and same(gold.rest, answer))


def _is_letter(node: Node, letter: str) -> bool:
    match node:
        case Scalar(latex=text) | Words(text=text):
            return text == letter or (isinstance(node, Words) and text == letter.lower())
    return False


def _looks_like_letter(node: Node) -> bool:
    return isinstance(node, Scalar) and re.fullmatch("[A-Z]", node.latex) is not None


def _same_ratios(gold: Ratio, answer: Ratio) -> bool:
    if len(gold.items) != len(answer.items):
        return False
    if len(gold.items) == 2:
        return _same_scalars(_quotient(gold.items), _quotient(answer.items))
    return all(
        _same_scalars(_quotient((gold.items[0], left)), _quotient((answer.items[0], right)))
        for left, right in zip(gold.items[1:], answer.items[1:], strict=True)
    )


def _quotient(items: Sequence[Node]) -> Scalar:
    top, bottom = (item.latex if isinstance(item, Scalar) else "" for item in items)
    return Scalar(rf"\frac{{{top}}}{{{bottom}}}")


# --- numbers and expressions


def _same_scalars(gold: Scalar, answer: Scalar) -> bool:
    if {gold.base, answer.base} - {"", "10"}:
        return gold.base == answer.base and gold.latex.lstrip("0") == answer.latex.lstrip("0")
    if not compatible(gold.unit, answer.unit):
        return False
    if gold.percent != answer.percent:
        return _same_percentage(gold, answer)
    if gold.degree != answer.degree:
        return _same_angle(gold, answer)
    if _same_latex(gold.latex, answer.latex):
        return True
    read = without_unit_letter(answer)
    if read is not None and number(gold.latex) is not None:
        return _same_scalars(gold, read)
    # In a gold answer of "6m" the letter is a variable, unless the answer comes with that unit.
    read = without_unit_letter(gold) if answer.unit else None
    return read is not None and number(answer.latex) is not None and _same_scalars(read, answer)


def _same_percentage(gold: Scalar, answer: Scalar) -> bool:
    percent, bare = (gold, answer) if gold.percent else (answer, gold)
    if _same_latex(*_ordered(gold, f"({_hundredth(percent.latex)})", bare.latex)):
        return True
    written = number(bare.latex)
    if not gold.percent and (written is None or abs(written.value) <= 1):
        return False  # 0.5 % is not 0.5
    return _same_latex(gold.latex, answer.latex)


def _ordered(gold: Scalar, percent: str, bare: str) -> tuple[str, str]:
    return (percent, bare) if gold.percent else (bare, percent)


def _hundredth(latex: str) -> str:
    written = number(latex)
    if written is None:
        return rf"\frac{{{latex}}}{{100}}"
    value = written.value / 100
    return (
        rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
        if value >= 0
        else (rf"-\frac{{{-value.numerator}}}{{{value.denominator}}}")
    )


def _same_angle(gold: Scalar, answer: Scalar) -> bool:
    degrees, bare = (gold, answer) if gold.degree else (answer, gold)
    if bare.unit == "rad" and r"\pi" not in bare.latex:
        return False
    if r"\pi" in bare.latex and r"\pi" not in degrees.latex:
        radians = rf"({degrees.latex})\cdot\frac{{\pi}}{{180}}"
        return _same_latex(*((radians, bare.latex) if gold.degree else (bare.latex, radians)))
    return _same_latex(gold.latex, answer.latex)


def _same_latex(gold: str, answer: str) -> bool:
    if _key(gold) == _key(answer):
        return bool(_key(gold))
    left, right = number(gold), number(answer)
    if left is not None and right is not None:
        return _same_numbers(left, right)
    if max(len(gold), len(answer)) > expressions.MAX_LENGTH:
        return False
    try:
        parsed_gold = expressions.parse(_expression_text(gold))
        parsed_answer = expressions.parse(_expression_text(answer))
        if expressions.equal(parsed_gold, parsed_answer):
            return True
        if _BARE_LOG.search(gold + answer):  # some mean the common logarithm
            common = [
                expressions.parse(_expression_text(_BARE_LOG.sub(r"\\log_{10}", side)))
                for side in (gold, answer)
            ]
            if expressions.equal(*common):
                return True
    except NotParsedError:
        return False
    if left is not None and left.decimals is not None:
        return _is_rounded_value(left, parsed_answer)
    rounded = number_with_factor(gold)
    return (
        rounded is not None
        and rounded.decimals is not None
        and right is None
        and (_is_rounded_value(rounded, parsed_answer))
    )


def number_with_factor(latex: str) -> Number | None:
    """A decimal in scientific notation; None for anything else."""
    written = number(latex)
    return written if written is not None and written.scientific else None


def _key(latex: str) -> str:
    return re.sub(r"[ ]|\\cdot", "", latex).replace(r"\infty", "∞").replace("+∞", "∞")


def _same_numbers(gold: Number, answer: Number) -> bool:
    if gold.value == answer.value:
        return True
    if not _was_rounded(gold) or gold.value == 0:
        return False
    if answer.decimals is not None or answer.scientific:
        finer = answer.digits > gold.digits
    else:
        # An integer or a fraction: only a fraction can be what the decimal was rounded from.
        finer = answer.value.denominator > 1
    return finer and _rounds_to(gold, answer.value)


def _was_rounded(gold: Number) -> bool:
    if gold.scientific:
        return gold.digits >= 2
    return gold.decimals is not None and gold.decimals >= 2 and gold.digits >= 2


def _rounds_to(gold: Number, exact: Fraction) -> bool:
    return abs(exact - gold.value) <= _unit_in_last_place(gold) / 2


def _unit_in_last_place(gold: Number) -> Fraction:
    if not gold.scientific:
        return Fraction(1, 10 ** (gold.decimals or 0))
    digits = max(gold.digits, 1)
    magnitude = (
        len(str(abs(gold.value.numerator) // gold.value.denominator))
        if abs(gold.value) >= 1
        else (1 - len(str(int(1 / abs(gold.value)))))
    )
    return Fraction(10) ** (magnitude - digits)


def _is_rounded_value(gold: Number, answer: object) -> bool:
    if not _was_rounded(gold):
        return False
    try:
        computed = expressions.value(answer)
    except NotComputedError:
        return False
    if computed.imag or not mpmath.isfinite(computed.real):
        return False
    exact = Fraction(mpmath.nstr(computed.real, 30, min_fixed=-5, max_fixed=25))
    return _rounds_to(gold, exact)


_BARE_LOG = re.compile(r"\\log(?![_a-zA-Z])")
_DEGREES_IN_FUNCTION = re.compile(r"(\d+(?:\.\d+)?)°")


def _expression_text(latex: str) -> str:
    """What the grammar needs to be told: degrees, primes, mixed numbers, absolute bars."""
    if re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", latex):
        latex = _DEGREES_IN_FUNCTION.sub(r"(\\frac{\1\\pi}{180})", latex)
    latex = latex.replace("°", "").replace("%", r"\cdot\frac{1}{100}")
    latex = _BARE_LOG.sub(r"\\ln", latex)
    latex = re.sub(r"'+", lambda m: f"_{{prime{len(m[0])}}}", latex)
    latex = re.sub(r"\\(?:overline|bar)\{([A-Za-z]+)\}", r"\1", latex)
    return re.sub(r"\\angle\s?", "", latex)


# --- sets of real numbers


def _as_sets(gold: Node, answer: Node) -> tuple[list[Piece], list[Piece]] | None:
    """Both answers as unions of intervals, where one of them is written as a set of reals."""
    if not (_is_set_like(gold) or _is_set_like(answer)):
        return None
    left, right = _pieces(gold), _pieces(answer)
    if left is None or right is None:
        return None
    return left, right


class Piece:
    """An interval, or a point (both ends closed and the same)."""

    def __init__(self, low: Scalar, high: Scalar, *, low_open: bool, high_open: bool) -> None:
        self.low, self.high = low, high
        self.low_open, self.high_open = low_open, high_open


def _is_set_like(node: Node) -> bool:
    match node:
        case Union() | Difference():
            return True
        case Scalar(latex=r"\mathbb{R}"):
            return True
        case Group(kind="(]" | "[)"):
            return True
        case Group(kind="()" | "[]", items=(_, _)):
            return any(isinstance(i, Scalar) and r"\infty" in i.latex for i in node.items)
        case Relation(signs=signs, names=names, sides=sides):
            if all(sign in (*_FLIPPED, r"\neq") for sign in signs):
                return any(_is_name(name) for name in names)
            return signs == (r"\in",) and _is_set_like(sides[-1])
        case Group(kind="list", items=items) if items:
            return all(isinstance(i, Relation) and _is_set_like(i) for i in items)
    return False


def _is_interval(node: Node) -> bool:
    return isinstance(node, Group) and node.kind[0] in "([" and len(node.items) == 2


_MINUS, _PLUS = Scalar(r"-\infty"), Scalar(r"\infty")


def _pieces(node: Node) -> list[Piece] | None:
    match node:
        case Scalar(latex=r"\mathbb{R}"):
            return [Piece(_MINUS, _PLUS, low_open=True, high_open=True)]
        case Scalar(latex=r"\emptyset"):
            return []
        case Union(parts=parts):
            found = [_pieces(part) for part in parts]
            return [p for pieces in found for p in pieces or []] if None not in found else None
        case Difference(whole=whole, removed=removed):
            return _remove(whole, removed)
        case Group(
            kind="()" | "[]" | "(]" | "[)" as kind, items=(Scalar() as low, Scalar() as high)
        ):
            return [Piece(low, high, low_open=kind[0] == "(", high_open=kind[1] == ")")]
        case Group(kind="set", items=items):
            if not all(isinstance(item, Scalar) for item in items):
                return None
            points = [item for item in items if isinstance(item, Scalar)]
            return [Piece(p, p, low_open=False, high_open=False) for p in points]
        case Group(kind="list", items=items) if all(map(_is_interval, items)):
            return _pieces(Union(items))
        case Group(kind="list", items=items) if _is_set_like(node):
            return _together([_pieces(item) for item in items])
        case Relation():
            return _solution(node)
    return None


def _remove(whole: Node, removed: Node) -> list[Piece] | None:
    if not (isinstance(whole, Scalar) and whole.latex == r"\mathbb{R}"):
        return None
    points = removed.items if isinstance(removed, Group) else (removed,)
    if not all(isinstance(point, Scalar) for point in points):
        return None
    scalars = [point for point in points if isinstance(point, Scalar)]
    try:
        scalars.sort(key=_position)
    except NotComputedError:
        return None
    ends = [_MINUS, *scalars, _PLUS]
    return [Piece(low, high, low_open=True, high_open=True) for low, high in pairwise(ends)]


def _together(found: list[list[Piece] | None]) -> list[Piece] | None:
    """What a list of inequalities means: all of them, or if that is impossible any of them."""
    both = _intersection(found)
    return both or ([p for pieces in found for p in pieces or []] if None not in found else None)


def _intersection(found: list[list[Piece] | None]) -> list[Piece] | None:
    result = [Piece(_MINUS, _PLUS, low_open=True, high_open=True)]
    try:
        for pieces in found:
            if pieces is None:
                return None
            result = [p for a in result for b in pieces if (p := _overlap(a, b)) is not None]
    except NotComputedError:
        return None
    return result


def _overlap(left: Piece, right: Piece) -> Piece | None:
    low = max(left, right, key=lambda p: (_position(p.low), p.low_open))
    high = min(left, right, key=lambda p: (_position(p.high), not p.high_open))
    start, end = _position(low.low), _position(high.high)
    if start > end or (start == end and (low.low_open or high.high_open)):
        return None
    return Piece(low.low, high.high, low_open=low.low_open, high_open=high.high_open)


def _solution(relation: Relation) -> list[Piece] | None:
    """The set that inequalities in one variable describe."""
    signs, sides, names = relation.signs, relation.sides, relation.names
    if signs == (r"\in",):
        return _pieces(sides[1])
    scalars = [side for side in sides if isinstance(side, Scalar)]
    if len(scalars) != len(sides):
        return None
    if signs == ("=",) and _is_name(names[0]):
        return [Piece(scalars[1], scalars[1], low_open=False, high_open=False)]
    if signs == (r"\neq",) and _is_name(names[0]):
        return _remove(Scalar(r"\mathbb{R}"), scalars[1])
    distance = re.fullmatch(r"\|[a-zA-Z](?:([+-])(\d+))?\|", names[0])
    if distance and len(signs) == 1 and signs[0] in _FLIPPED:
        return _within(distance[1] or "-", distance[2] or "0", scalars[1], signs[0])
    if len(signs) == 1 and signs[0] in _FLIPPED:
        if _is_name(names[0]):
            return [_ray(scalars[1], signs[0])]
        if _is_name(names[1]):
            return [_ray(scalars[0], _FLIPPED[signs[0]])]
        return None
    if len(signs) == 2 and _is_name(names[1]):
        if signs[0] in ("<", r"\leq") and signs[1] in ("<", r"\leq"):
            low, high, first, last = scalars[0], scalars[2], signs[0], signs[1]
        elif signs[0] in (">", r"\geq") and signs[1] in (">", r"\geq"):
            low, high, first, last = scalars[2], scalars[0], signs[1], signs[0]
        else:
            return None
        return [Piece(low, high, low_open=first in "<>", high_open=last in "<>")]
    return None


def _within(sign: str, centre: str, radius: Scalar, relation: str) -> list[Piece]:
    """``|x − centre| < radius``, or what lies outside."""
    middle = centre if sign == "-" else f"-{centre}"
    low, high = Scalar(f"{middle}-({radius.latex})"), Scalar(f"{middle}+({radius.latex})")
    strict = relation in "<>"
    if relation in ("<", r"\leq"):
        return [Piece(low, high, low_open=strict, high_open=strict)]
    return [_ray(low, "<" if strict else r"\leq"), _ray(high, ">" if strict else r"\geq")]


def _ray(end: Scalar, sign: str) -> Piece:
    strict = sign in "<>"
    if sign in (">", r"\geq"):
        return Piece(end, _PLUS, low_open=strict, high_open=True)
    return Piece(_MINUS, end, low_open=True, high_open=strict)


def _position(scalar: Scalar) -> mpmath.mpf:
    """Where an end lies on the real line.

    Raises:
        NotComputedError: it is no real number.
    """
    if _key(scalar.latex) in ("∞", "-∞"):
        return mpmath.mpf("-inf" if scalar.latex.startswith("-") else "inf")
    written = number(scalar.latex)
    if written is not None:
        return mpmath.mpf(written.value.numerator) / mpmath.mpf(written.value.denominator)
    try:
        computed = expressions.value(expressions.parse(_expression_text(scalar.latex)))
    except NotParsedError as error:
        raise NotComputedError(scalar.latex) from error
    if computed.imag:
        raise NotComputedError("not real")
    return computed.real


def _same_sets(gold: list[Piece], answer: list[Piece]) -> bool:
    with suppress(NotComputedError):
        gold, answer = _merged(gold), _merged(answer)
    if len(gold) != len(answer):
        return False
    left = list(answer)
    for piece in gold:
        match = next((other for other in left if _same_piece(piece, other)), None)
        if match is None:
            return False
        left.remove(match)
    return True


def _merged(pieces: list[Piece]) -> list[Piece]:
    pieces = sorted(pieces, key=lambda p: (_position(p.low), p.low_open))
    merged: list[Piece] = []
    for piece in pieces:
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
            merged[-1] = Piece(
                last.low, piece.high, low_open=last.low_open, high_open=piece.high_open
            )
    return merged


def _same_piece(gold: Piece, answer: Piece) -> bool:
    return (
        (gold.low_open or _is_infinite(gold.low)) == (answer.low_open or _is_infinite(answer.low))
        and (gold.high_open or _is_infinite(gold.high))
        == (answer.high_open or _is_infinite(answer.high))
        and _same_scalars(replace(gold.low, unit=""), replace(answer.low, unit=""))
        and _same_scalars(replace(gold.high, unit=""), replace(answer.high, unit=""))
    )


def _is_infinite(end: Scalar) -> bool:
    return r"\infty" in end.latex
