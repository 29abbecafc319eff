"""Whether two answers are the same, as a careful human would say."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence

import sympy

from deft.evaluators.grading.math import expressions
from deft.evaluators.grading.math.expressions import NotParsedError
from deft.evaluators.grading.math.nodes import (
    FLIPPED,
    Cases,
    Choice,
    Clock,
    Group,
    Matrix,
    Node,
    Ratio,
    Relation,
    Scalar,
    Union,
    Words,
    pair_off,
)
from deft.evaluators.grading.math.quantities import compatible
from deft.evaluators.grading.math.reading import readings
from deft.evaluators.grading.math.real_sets import same_real_sets
from deft.evaluators.grading.math.scalars import expression_text, same_scalars
from deft.evaluators.grading.math.words import DATE, NEGATIONS, is_name, plain_words

MAX_UNORDERED = 60
"""Items that are matched in any order; more must be in the gold answer's order."""
_LETTER_WITH_VALUE = re.compile(r"\s*(?:\\text\{)?\(?([A-F])[.):]\}?\s+\S")
_SENTENCE = re.compile(
    r"(?:\\(?:text|mathrm)\{)?\s*((?:the )?[A-Za-z]+) (?:is|has) ((?:an? "
    r"|the )?[a-zA-Z -]+?)\.?\s*\}?",
)
_FOR_ALL = re.compile(
    r"(?:[\s,$(]|\\text *\{){0,6}(?:for (?:all|every|any|each)\b|\\forall)[^<>=\d]*$", re.IGNORECASE
)
_BETWEEN = r"(?:,|\\q?quad|\\[,; ]|\\text\{,? *(?:where|for|with|and)? *\}|\(|for\b)"
_DOMAIN = re.compile(
    rf"(?:\s|{_BETWEEN}){{1,8}}[a-z] *\\in *\\mathbb *\{{?[NZ]\}}?(?:\^\+)?[\s$)]*$"
    rf"|\s*{_BETWEEN}(?:\s|{_BETWEEN}){{0,8}}[nkm] *(?:\\geq?|>|≥) *-?\d[\s$)]*$"
)
_ABBREVIATION = re.compile("[A-Z]{2,}")
_IDENTITY = re.compile(r"(.*?)(?:\\cdot ?)?I(?:_\{?\d\}?)?")
_FUNCTION_OF = re.compile(r"\s*([fghFGHy])\(([a-z])\)\s*=")
_CONSTANT = re.compile(r"\+\s*(?:C|K|k|c|D|\\text\{ ?constant\})\s*$")
_UNIT_VECTORS = ("i", "j", "k")
_OTHERWISE = Words("otherwise")


def same_answer(gold: str, answer: str) -> bool:
    """Check whether ``answer`` says what ``gold`` says."""
    # Text that nobody can read, such as a broken gold answer, equals itself at least.
    if gold.strip() and gold.strip() == answer.strip():
        return True
    gold, answer = (_FOR_ALL.sub("", text) or text for text in (gold, answer))
    gold_domain, answer_domain = _DOMAIN.search(gold), _DOMAIN.search(answer)
    if not (gold_domain and answer_domain):  # which numbers k runs through may go without saying
        gold, answer = _DOMAIN.sub("", gold), _DOMAIN.sub("", answer)
    golds = [g for g in readings(gold) if not _is_decimal_comma(g, gold)]
    for text in _spellings(gold, answer):
        if any(same(g, a) for g in golds for a in readings(text)):
            return True
    return False


def _spellings(gold: str, answer: str) -> Iterator[str]:
    """Yield the answer, and with those of its names that the question leaves free renamed."""
    yield answer
    if answer.count(r"\pm") > 1 and r"\pm" not in gold:  # (±3, ±2) are four points
        yield _with_all_signs(answer)
    letter = _LETTER_WITH_VALUE.match(answer)
    if letter and re.fullmatch(r"[(\\{}text]*[A-F][)}]*", gold.strip()):
        yield letter[1]
    letters = [set(re.findall(r"(?<![a-zA-Z\\])[a-zA-Z](?![a-zA-Z])|[cC](?=e\b|\s*e)", text))
               for text in (gold, answer)]  # fmt: skip
    # The parameter of a general solution, 2πn for 2πk, and its constants, c for C.
    own, other = letters[0] - letters[1], letters[1] - letters[0]
    # Renaming is tried only where π shows a general solution: elsewhere n and k are different.
    parameter, renamed = "".join(own & set("kn")), "".join(other & set("knm"))
    if r"\pi" in gold and len(parameter) == len(renamed) == 1:
        yield re.sub(rf"(?<![a-zA-Z\\]){renamed}(?![a-zA-Z])", parameter, answer)
    if re.search(r"(?<![a-zA-Z\\])C(?=_|\s|\b|e|x)", gold) and "c" not in letters[0]:
        yield re.sub(r"(?<![a-zA-Z\\])c(?=_|\s|\b|e|x)", "C", answer)
        yield re.sub(r"\\(?:text|mathrm)\{\s*(?:constant|const\.?)\s*\}", "C", answer)
    named, named_else = _FUNCTION_OF.match(gold), _FUNCTION_OF.match(answer)
    if named and named_else and named[1] == named_else[1] and named[2] not in letters[1]:
        # f(t) for f(x)
        yield re.sub(rf"(?<![a-zA-Z\\]){named_else[2]}(?![a-zA-Z])", named[2], answer)
    if _CONSTANT.search(gold) and (constant := _CONSTANT.search(answer)):
        yield answer[: constant.start()] + "+C"
    sentence = _SENTENCE.fullmatch(answer.strip())
    if sentence and not NEGATIONS.search(sentence[2]):
        yield rf"\text{{{sentence[1]}}}"
        yield rf"\text{{{sentence[2]}}}"
    if answer.strip().startswith((r"\text{neither", "neither")):
        yield r"\text{neither}"


def _with_all_signs(answer: str) -> str:
    first, *rest = answer.split(r"\pm")[:5]
    signs = itertools.product("+-", repeat=len(rest))
    return ",".join(
        first + "".join(f"{sign}{piece}" for sign, piece in zip(row, rest, strict=True))
        for row in signs
    )


def _is_decimal_comma(node: Node, text: str) -> bool:
    # Only a model's 3,5 may mean 3.5; a gold answer that has a comma is a list.
    return isinstance(node, Scalar) and "." in node.latex and "." not in text


def same(gold: Node, answer: Node) -> bool:
    """Check whether two structures are equal."""
    if gold == answer:
        return True
    # Sets come first: an inequality is a relation, a list and a set at once.
    sets = same_real_sets(gold, answer)
    if sets is not None:
        return sets
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
        case Clock(), Clock():
            return _same_time(gold, answer)
        case Ratio(), Ratio():
            return _same_ratios(gold, answer)
        case (Ratio(items=items), Scalar() as other) | (Scalar() as other, Ratio(items=items)):
            return len(items) == 2 and same_scalars(quotient(items), other)
        case (Cases(rows=left), Cases(rows=right)):
            return pair_off(left, right, _same_piece)
        case (Scalar(), Group() | Matrix()) if vector := _in_unit_vectors(gold):
            return same(vector, answer)
        case (Group() | Matrix(), Scalar()) if vector := _in_unit_vectors(answer):
            return same(gold, vector)
        case (Matrix(), _) | (_, Matrix()):
            return _same_matrices(gold, answer)
        case (Group(), _) | (_, Group()):
            return _same_groups(gold, answer)
        case (Union(parts=left), Union(parts=right)):
            return _same_unordered(left, right)
        case Words(), Words():
            return gold.text == answer.text or _same_date(gold.text, answer.text)
        case Scalar(), Scalar():
            return same_scalars(gold, answer)
        case (Words(text=text), Scalar() as other) | (Scalar() as other, Words(text=text)):
            product = re.sub(r"\s|\\cdot", "", f"{other.latex}{other.unit}").lower()
            return bool(text) and (
                text == plain_words(f"{other.latex} {other.unit}")
                or (len(text) < 5 and text.replace(" ", "") == product)
            )
    return False


def _same_date(gold: str, answer: str) -> bool:
    """Compare ``14 March`` and ``March 14, 2024``; a year that only one names is forgiven."""
    left, right = DATE.fullmatch(gold), DATE.fullmatch(answer)
    if left is None or right is None:
        return False
    years = {left[4], right[4]} - {None}
    same_day = (left[1] or left[3]) == (right[1] or right[3])
    return left[2] == right[2] and same_day and len(years) < 2


def _is_sum(text: str) -> bool:
    """Check that a side of an equation has no unknowns, as in ``-5 + 5``."""
    return re.search("[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", text)) is None


def _is_assignment(relation: Relation) -> bool:
    return relation.signs[0] in ("=", r"\in", r"\approx") and is_name(relation.names[0])


def _gold_values(gold: Relation) -> Sequence[Node]:
    """Return the values that may be answered for ``x = 5`` or ``5√2 ≈ 7.07``."""
    named = _is_assignment(gold)
    if r"\approx" in gold.signs and set(gold.signs) <= {"=", r"\approx"}:
        return gold.sides[1:] if named and len(gold.sides) > 2 else gold.sides
    return gold.sides[-1:] if named else ()


def _stated_values(answer: Relation, gold: Node) -> list[Node]:
    """Return the values that an answer such as ``A = 2 · 3 = 6 ≈ 6.0`` may mean."""
    if not set(answer.signs) <= {"=", r"\approx", r"\in"}:
        return []
    if len(answer.sides) == 2 and is_name(answer.names[1]) and not is_name(answer.names[0]):
        if isinstance(gold, Scalar) and gold.latex == answer.names[1]:
            return [answer.sides[1]]
        return [answer.sides[0]]
    # x^2 - 9 = 0 does not say that the answer is 0.
    if answer.names[-1] == "0" and not (is_name(answer.names[0]) or _is_sum(answer.names[-2])):
        return []  # an equation, not a value
    exact = [
        side
        for side, sign in zip(answer.sides[1:], answer.signs, strict=True)
        if sign != r"\approx"
    ]
    values = exact[-1:]
    if answer.signs[-1] == r"\approx":
        if not exact and not is_name(answer.names[0]):
            values = [answer.sides[0]]
        values.append(answer.sides[-1])
    return values


def _same_relations(gold: Relation, answer: Relation) -> bool:
    if all(map(_ABBREVIATION.fullmatch, (*gold.names, *answer.names))):
        return sorted(gold.names) == sorted(answer.names)  # MR = MC is no product of letters
    if _is_assignment(gold) and _is_assignment(answer):
        if _same_name(gold.names[0], answer.names[0]):
            values = _stated_values(answer, gold.sides[-1])
            if any(same(gold.sides[-1], value) for value in values):
                return True
        return _same_equations(gold, answer)
    if gold.signs == answer.signs == ("=",):
        return _same_equations(gold, answer)
    if len(gold.signs) == len(answer.signs) == 1:
        return _same_inequalities(gold, answer)
    if gold.signs == answer.signs:
        return all(map(same, gold.sides, answer.sides))
    flipped = tuple(FLIPPED.get(sign, sign) for sign in reversed(answer.signs))
    return gold.signs == flipped and all(map(same, gold.sides, reversed(answer.sides)))


def _same_name(left: str, right: str) -> bool:
    if len(left) == len(right) == 1:
        return left == right
    if "'" in left and "'" in right and left.count("'") != right.count("'"):
        return False
    bare_left, bare_right = (re.sub(r"\(.*\)|[{}\\_ ]", "", name) for name in (left, right))
    both_short = len(bare_left) == len(bare_right) == 1
    return not both_short or bare_left.lower() == bare_right.lower() or "(" in left + right


def _same_equations(gold: Relation, answer: Relation) -> bool:
    if len(gold.sides) != 2 or len(answer.sides) != 2:
        return False
    units = [side.unit for side in (*gold.sides, *answer.sides) if isinstance(side, Scalar)]
    units = [unit for unit in units if unit]
    if not all(compatible(units[0], unit) for unit in units):
        return False
    return _factor(gold, answer) is not None or _solves(answer, gold) or _solves(gold, answer)


def _is_short(expression: sympy.Expr) -> bool:
    """Check that expanding an expression takes no time worth speaking of."""
    # (x + y)^500 has few operations and expands to 501 terms.
    powers = (abs(power.exp) for power in expression.atoms(sympy.Pow) if power.exp.is_Integer)
    return bool(expression.count_ops() <= 60 and max(powers, default=0) <= 8)


def _solves(solution: Relation, equation: Relation) -> bool:
    """Check that ``P = nRT/V`` is ``PV = nRT`` solved for one letter.

    The letter must have a product for its factor; of y(x - 1) = 0 there are other solutions.
    """
    if not re.fullmatch("[a-zA-Z]", solution.names[0]):
        return False
    try:
        value = expressions.parse(_side(solution, 1))
        difference = expressions.parse(_side(equation, 0)) - expressions.parse(_side(equation, 1))
    except NotParsedError:
        return False
    letter = next((s for s in difference.free_symbols if str(s) == solution.names[0]), None)
    if letter is None or value.has(letter) or not _is_short(difference):
        return False
    factor = sympy.expand(difference).coeff(letter)
    rest = sympy.expand(difference - factor * letter)
    if rest.has(letter) or factor == 0 or isinstance(factor, sympy.Add):
        return False
    return expressions.equal(-rest / factor, value)


def _same_inequalities(gold: Relation, answer: Relation) -> bool:
    # Multiplying by a negative number turns the sign around.
    factor = _factor(gold, answer)
    if factor is None or abs(factor.imag) > 1e-20:
        return False
    sign = answer.signs[0] if factor.real > 0 else FLIPPED.get(answer.signs[0], answer.signs[0])
    return gold.signs[0] == sign


def _factor(gold: Relation, answer: Relation) -> complex | None:
    """Return the constant factor between (left − right) of two relations."""
    try:
        left, right = (
            expressions.parse(_side(relation, 0)) - expressions.parse(_side(relation, 1))
            for relation in (gold, answer)
        )
    except NotParsedError:
        return None
    return expressions.proportional(left, right)


def _side(relation: Relation, index: int) -> str:
    node = relation.sides[index]
    if isinstance(node, Words) and re.fullmatch("[a-zA-Z]{1,4}", relation.names[index]):
        return " ".join(relation.names[index])  # nRT is no word here
    if not isinstance(node, Scalar):
        raise NotParsedError("not a scalar")
    return expression_text(node.latex)


def _same_groups(gold: Node, answer: Node) -> bool:
    (left, left_names), (right, right_names) = _named_items(gold), _named_items(answer)
    # Named coordinates are matched by name, whatever order they stand in.
    if left_names and right_names:
        if set(left_names) == set(right_names) and len(set(left_names)) == len(left_names):
            order = [right_names.index(name) for name in left_names]
            return all(map(same, left.items, (right.items[i] for i in order)))
        if max(len(set(left_names)), len(set(right_names))) > 1:
            return False
    elif len(set(left_names or right_names)) > 1:
        # x = 1, y = 2 is an ordered pair, and so is y = 2, x = 1.
        items = _by_name(left, left_names), _by_name(right, right_names)
        return len(items[0]) == len(items[1]) and all(map(same, *items))
    return _same_plain_groups(left, right)


def _by_name(group: Group, names: list[str]) -> Sequence[Node]:
    if max(map(len, names), default=2) > 1:
        return group.items
    return [group.items[i] for i in sorted(range(len(names)), key=names.__getitem__)]


def _named_items(node: Node) -> tuple[Group, list[str]]:
    """Return the values and names of a list of assignments; other groups as they are."""
    if not isinstance(node, Group):
        return Group("list", (node,)), []
    assigned = [item for item in node.items if isinstance(item, Relation) and _is_assignment(item)]
    if node.kind != "list" or not assigned or len(assigned) < len(node.items):
        return node, []
    names = [relation.names[0] for relation in assigned]
    numbered = len({re.sub(r"_\{?\d\}?", "", name) for name in names}) == 1
    values = Group("list", tuple(relation.sides[-1] for relation in assigned))
    return values, [names[0]] * len(names) if numbered else names


def _same_plain_groups(gold: Group, answer: Group) -> bool:
    kinds = gold.kind, answer.kind
    if {*kinds} <= {"list", "set"} or kinds == ("list", "[]"):
        return _same_unordered(gold.items, answer.items)
    if gold.kind != answer.kind and not {*kinds} <= {"list", "()", "vector"}:
        return False
    return len(gold.items) == len(answer.items) and all(map(same, gold.items, answer.items))


def _same_unordered(gold: Sequence[Node], answer: Sequence[Node]) -> bool:
    if max(len(gold), len(answer)) > MAX_UNORDERED:
        return len(gold) == len(answer) and all(map(same, gold, answer))
    # A double root may be listed twice.
    gold, answer = _distinct(gold), _distinct(answer)
    if len(gold) != len(answer):
        return False
    return pair_off(gold, answer, same)


def _distinct(items: Sequence[Node]) -> list[Node]:
    distinct: list[Node] = []
    for item in items:
        if not any(same(item, other) for other in distinct):
            distinct.append(item)
    return distinct


def _same_matrices(gold: Node, answer: Node) -> bool:
    if isinstance(gold, Matrix) and isinstance(answer, Matrix):
        shapes = [[len(row) for row in matrix.rows] for matrix in (gold, answer)]
        if shapes[0] != shapes[1] or gold.determinant != answer.determinant:
            return False
        pairs = zip(_cells(gold), _cells(answer), strict=True)
        return all(same(left, right) for left, right in pairs)
    matrix, other = (gold, answer) if isinstance(gold, Matrix) else (answer, gold)
    assert isinstance(matrix, Matrix)
    # Only the other side tells how large I is.
    as_matrix = _as_identity(other, len(matrix.rows)) or _as_rows(other)
    if as_matrix is not None:
        return _same_matrices(matrix, as_matrix)
    # Rows and columns are told apart between matrices, not against a plain tuple.
    vector = len(matrix.rows) == 1 or all(len(row) == 1 for row in matrix.rows)
    if not vector or matrix.determinant:
        return False
    group = Group("vector", tuple(_cells(matrix)))
    return isinstance(other, Group) and _same_plain_groups(
        *((group, other) if isinstance(gold, Matrix) else (other, group))
    )


def _as_identity(node: Node, size: int) -> Matrix | None:
    """Read ``I``, ``I_2`` or ``2I`` as a matrix."""
    match = _IDENTITY.fullmatch(node.latex) if isinstance(node, Scalar) else None
    if match is None:
        return None
    factor = {"": "1", "-": "-1"}.get(match[1], match[1])
    return Matrix(
        tuple(tuple(Scalar(factor if i == j else "0") for j in range(size)) for i in range(size)),
        determinant=False,
    )


def _as_rows(node: Node) -> Matrix | None:
    """Read ``[[1, 2], [3, 4]]`` as a matrix."""
    if not isinstance(node, Group) or node.kind != "[]":
        return None
    rows = [item.items for item in node.items if isinstance(item, Group)]
    return Matrix(tuple(rows), determinant=False) if len(rows) == len(node.items) else None


def _in_unit_vectors(scalar: Scalar) -> Group | None:
    """Read ``i + 2j + 2k`` as a vector."""
    # Both i and j must occur: a lone i is the imaginary unit.
    letters = set(re.findall(r"(?<![a-zA-Z\\])[a-zA-Z]", scalar.latex))
    if not {"i", "j"} <= letters:
        return None
    try:
        expression = expressions.parse(expression_text(scalar.latex))
    except NotParsedError:
        return None
    if not _is_short(expression):
        return None
    symbols = {str(symbol): symbol for symbol in expression.free_symbols}
    names = _UNIT_VECTORS if "k" in letters else _UNIT_VECTORS[:2]
    units = [symbols.get(name, sympy.Symbol(name)) for name in names]
    try:
        vector = sympy.Poly(expression, *units)
    except sympy.PolynomialError:
        return None
    if not vector.is_linear or vector.coeff_monomial(1) != 0:
        return None
    return Group("vector", tuple(Scalar(sympy.latex(vector.coeff_monomial(u))) for u in units))


def _same_piece(gold: Sequence[Node], answer: Sequence[Node]) -> bool:
    """Compare a value and its condition; ``otherwise`` is whatever is left."""
    conditions = (gold[1], answer[1])
    return same(gold[0], answer[0]) and (same(*conditions) or _OTHERWISE in conditions)


def _cells(matrix: Matrix) -> list[Node]:
    return [cell for row in matrix.rows for cell in row]


def _same_choice(gold: Choice, answer: Node) -> bool:
    if isinstance(answer, Choice):
        if gold.letter != answer.letter:
            return False
        return gold.rest is None or answer.rest is None or same(gold.rest, answer.rest)
    return _is_letter(answer, gold.letter) or (gold.rest is not None and same(gold.rest, answer))


def _is_letter(node: Node, letter: str) -> bool:
    match node:
        case Scalar(latex=text) | Words(text=text):
            return text in (letter, letter.lower())
    return False


def _looks_like_letter(node: Node) -> bool:
    return isinstance(node, Scalar) and re.fullmatch("[A-Z]", node.latex) is not None


def _same_time(gold: Clock, answer: Clock) -> bool:
    minutes = [60 * time.hour + time.minute for time in (gold, answer)]
    if gold.half and answer.half:
        return gold == answer
    for index, time in enumerate((gold, answer)):
        if time.half:  # 4:45 p.m. is 16:45
            minutes[index] = minutes[index] % 720 + (720 if time.half == "p" else 0)
    # 4:45 may be meant for 4:45 p.m., but 16:45 is no morning.
    unsaid = any(not time.half and time.hour <= 12 for time in (gold, answer))
    return minutes[0] == minutes[1] or (
        unsaid and bool(gold.half or answer.half) and minutes[0] % 720 == minutes[1] % 720
    )


def _same_ratios(gold: Ratio, answer: Ratio) -> bool:
    if len(gold.items) != len(answer.items):
        return False
    return all(
        same_scalars(quotient((gold.items[0], left)), quotient((answer.items[0], right)))
        for left, right in zip(gold.items[1:], answer.items[1:], strict=True)
    )


def quotient(items: Sequence[Node]) -> Scalar:
    top, bottom = (item.latex if isinstance(item, Scalar) else "" for item in items)
    return Scalar(rf"\frac{{{top}}}{{{bottom}}}")
