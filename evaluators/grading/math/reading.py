"""The structure of an answer: lists, tuples, intervals, equations, matrices, words, numbers.

`readings` gives what a text can mean; most texts have one reading, ``1,234`` has two.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from itertools import chain

from deft.evaluators.grading.brackets import (
    is_balanced,
    read_group,
    separator_positions,
    split_outside_brackets,
)
from deft.evaluators.grading.math.latex import MAX_ANSWER, normalize_latex
from deft.evaluators.grading.math.nodes import (
    FLIPPED,
    Cases,
    Choice,
    Clock,
    Group,
    Intersection,
    Matrix,
    Node,
    Ratio,
    Relation,
    Scalar,
    SetDifference,
    Union,
    Words,
)
from deft.evaluators.grading.math.phrases import (
    CLOCK_HALF,
    described_set,
    rational,
    read_clock,
    read_compound,
)
from deft.evaluators.grading.math.quantities import (
    NUMERIC,
    POWER,
    SCALES,
    canonical_unit,
    is_unit,
    number,
    number_word,
)
from deft.evaluators.grading.math.words import DATE, MONTHS, NEGATIONS, mark_words, plain_words

MAX_ITEMS = 200
"""Items of a list that are compared; longer ones are compared as text alone."""
MAX_LEVELS = 8
"""Levels of lists within lists."""
_CURRENCIES = {
    r"\$": "dollar", "£": "lb", r"\pounds": "lb", r"\£": "lb", "€": "euro", r"\euro": "euro",
    r"\texteuro": "euro", r"\€": "euro", "¥": "yen", "₹": "rupee",
}  # fmt: skip
"""Signs to units; pounds of money are spelled like pounds of weight."""
_SIGN = "|".join(re.escape(sign) for sign in _CURRENCIES)
_AMOUNT = r"(?:\\[dt]?frac\{[\d ]+\}\{[\d ]+\}|[\d.,{}\\! ]+)"
_CURRENCY = re.compile(
    rf"^[\s{{(]*-?\s*(?:US)?({_SIGN})\s*{_AMOUNT}(?:\\text\{{[^{{}}]*\}})?\s*$"
    rf"|^\s*{_AMOUNT}\s*({_SIGN})\s*$"
)
_RATIO_TERM = r"(?:\d+(?:\.\d+)?|[a-zA-Z]|\d*\\sqrt\{\d+\}|\\frac\{\d+\}\{\d+\}|\\pi)"
_REALS = Scalar(r"\mathbb{R}")
_EMPTY = Scalar(r"\emptyset")
_WHOLE_WORDS: dict[str, Node] = {
    phrase: node
    for phrases, node in (
        ("all real numbers/all reals/all real/real numbers/set of all real numbers/reals", _REALS),
        ("set of real numbers/any real number/every real number/all real numbers x", _REALS),
        ("x is any real number/x can be any real number", _REALS),
        ("no solution/no solutions/no real solution/no real solutions/empty set/none", _EMPTY),
        ("no solution exists/no solutions exist/no such/no real roots/no values/no value", _EMPTY),
        ("dne/does not exist/doesn't exist", Words("does not exist")),
        ("undefined/not defined/is undefined", Words("undefined")),
        ("infinity/positive infinity/plus infinity/infinitely many", Scalar(r"\infty")),
        ("infinite/infinitely many solutions", Scalar(r"\infty")),
        ("negative infinity/minus infinity", Scalar(r"-\infty")),
        ("noon/12 noon", Clock(12, 0, "p")),
        ("midnight/12 midnight", Clock(12, 0, "a")),
    )
    for phrase in phrases.split("/")
}
_CHOICE = re.compile(
    r"^\s*(?:\\text\{\s*)?(?:option|choice|answer)?\s*"
    r"(?:\(([A-Za-z])\)|([A-Z])[.):](?!\d)|([A-Z])\}(?=\s*$))\s*[.:]?\s*\}?(.*)$",
    re.DOTALL | re.IGNORECASE,
)
_LABELED_CHOICE = re.compile(
    r"^\s*(?:\\text\{\s*)?(?:option|choice|answer)\s+\(?([A-Z])\)?\s*\}?$", re.IGNORECASE
)
_OR = re.compile(r"\\text\{\s*(?:or|OR)\s*\}|\\(?:lor|vee)(?![a-zA-Z])")
_AND = re.compile(r"\\text\{\s*(?:and|AND)\s*\}|\\(?:land|wedge)(?![a-zA-Z])|(?<!\\)&")
_MONTH = re.compile(rf"\b(?:{MONTHS})\b", re.IGNORECASE)
_SIGNS = (r"\leq", r"\geq", r"\neq", r"\approx", r"\in", r"\to", "<", ">", "=")
_BRACKETS = (
    *((r"\{", r"\}"), (r"\langle", r"\rangle")),
    *(("(", ")"), ("(", "]"), ("[", ")"), ("[", "]")),
)
_MATRIX = re.compile(
    r"^\s*(?P<factor>[^&\[\]]*?)(?:\\cdot\s?)?[\[(]?\s*\\begin\{(p|b|B|v|V|small)?(matrix"
    r"|array)\}(?:\{[^{}]*\})?(?P<body>.*)\\end\{(?:p|b|B|v|V|small)?(?:matrix"
    r"|array)\}\s*[\])]?\s*(?P<transposed>\^\{?(?:T|\\top|t|\\intercal)\}?)?\s*$",
    re.DOTALL,
)
_CASES = re.compile(r"^\s*\\begin\{cases\}(.*)\\end\{cases\}\s*$", re.DOTALL)
_CASE_WORDS = re.compile(r"\\text\{\s*(?:if|for|when|where)?\s*\}")
_TRAILING_TEXT = re.compile(
    rf"^(.*?)((?:[/\s]*\\text\{{[^{{}}]*\}}{POWER}(?:\s*(?:\\cdot)?\s*)?)+)$", re.DOTALL
)
_TRAILING_UNIT = re.compile(rf"^({NUMERIC})\s?((?:[a-zA-Z]+{POWER}[/\s]?)+)$")


@lru_cache(maxsize=4096)
def readings(text: str) -> list[Node]:
    """Return what ``text`` can mean, likeliest first; text too long for an answer means itself."""
    if len(text) > MAX_ANSWER:
        return [Words(text.strip())]
    try:
        normal = [normalize_latex(text, thousands=True), normalize_latex(text, thousands=False)]
        nodes = [read_node(form, 0) for form in dict.fromkeys(normal)]
    except RecursionError:
        return [Words(text.strip())]
    currency = _CURRENCY.search(text)
    if currency:
        unit = _CURRENCIES[currency[1] or currency[2]]
        nodes = [
            replace(n, unit=unit) if isinstance(n, Scalar) and not n.unit and not n.percent else n
            for n in nodes
        ]
    decimal = re.fullmatch(r"-?\d+,\d+", normal[1])
    if decimal:
        nodes.append(Scalar(normal[1].replace(",", ".")))
    return nodes


def read_node(text: str, level: int) -> Node:
    text = _unwrap(text)
    if level > MAX_LEVELS:
        return Words(text)
    whole = _read_phrase(text, level)
    if whole is not None:
        return whole
    choice = _read_choice(text, level)
    if choice is not None:
        return choice
    text = re.sub(r"_\{\s*\\text\{(?:base )?(\w+)\}\s*\}", r"_{\1}", text)
    bare = text
    text = _without_label(mark_words(text))
    if re.fullmatch("[A-Z]{2,6}=[A-Z]{2,6}", bare):
        left, right = bare.split("=")  # abbreviations, as in MR=MC
        return Relation((Words(left.lower()), Words(right.lower())), ("=",), (left, right))
    cases = _read_cases(text, level)
    if cases is not None:
        return cases
    matrix = _read_matrix(text, level)
    if matrix is not None:
        return matrix
    parts, word = _split_list(text)
    if len(parts) > MAX_ITEMS:
        return Words(text)
    if len(parts) > 1:
        return _read_list(parts, word, level)
    return _read_one(text, level)


def _read_one(text: str, level: int) -> Node:
    transposed = re.fullmatch(r"([(\[].*[)\]])\^\{?(?:T|\\top|t)\}?", text)
    if transposed:
        vector = read_node(transposed[1], level + 1)
        if isinstance(vector, Group):
            return Group("vector", vector.items)
    member = _read_relation(text, level) if r"\in" in text else None
    if member is not None and r"\in" in member.signs:
        return member
    named = len(split_outside_brackets(text, ("=",))) > 1  # A ∪ B = {1, 2} is no union
    for operator, kind in ((r"\cup", Union), (r"\cap", Intersection)):
        parts = split_outside_brackets(text, (operator,))
        if len(parts) > 1 and not named:
            return kind(tuple(read_node(part, level + 1) for part in parts))
    parts = split_outside_brackets(text, (r"\setminus",))
    if len(parts) == 2 and not named:
        return SetDifference(read_node(parts[0], level + 1), read_node(parts[1], level + 1))
    relation = _read_relation(text, level)
    if relation is not None:
        return relation
    group = _read_group(text, level)
    if group is not None:
        return group
    ratio = re.split(r":|\\text\{to\}", text)
    if len(ratio) in (2, 3) and all(re.fullmatch(_RATIO_TERM, part.strip()) for part in ratio):
        return Ratio(tuple(read_node(part, level + 1) for part in ratio))
    if r"\pm" in text or r"\mp" in text:
        plus = text.replace(r"\pm", "+").replace(r"\mp", "-")
        minus = text.replace(r"\pm", "-").replace(r"\mp", "+")
        both = tuple(read_node(re.sub(r"^\s*\+", "", side), level + 1) for side in (plus, minus))
        return Group("list", both)
    return _read_scalar(text)


def _unwrap(text: str) -> str:
    """Strip punctuation, markdown and braces that hold the whole."""
    while True:
        before = text
        text = re.sub(r"\\(?:boxed|fbox|framebox)(?=\s*\{)", "", text)
        text = re.sub(r"\*\*|__|`|^\s*[=:]\s*", "", text)
        text = text.strip().strip('"').rstrip(".,;:?").strip()
        text = re.sub(r"(?:\\\\)+$", "", text)
        if text.startswith("{"):
            content, end = read_group(text, 0)
            if end == len(text) and text.endswith("}"):
                text = content
        if text == before:
            return text


def _read_phrase(text: str, level: int) -> Node | None:
    """Read phrases that stand for a set, a limit or a number."""
    words = plain_words(text)
    if words in _WHOLE_WORDS:
        return _WHOLE_WORDS[words]
    if DATE.fullmatch(words):
        return Words(words)
    answered = re.match(r"(yes|no|true|false)[,.;]", text.removeprefix(r"\text{").lower())
    if answered:
        return Words(answered[1])
    spelled = number_word(words)
    if spelled is not None:
        return rational(spelled)
    counted = re.fullmatch(r"\\text\{\s*(\d[\d,.]*)\s+([a-zA-Z ]+)\}", text)
    if counted and not CLOCK_HALF.fullmatch(counted[2].strip()):
        return read_node(rf"{counted[1]}\text{{ {counted[2]}}}", level + 1)
    described = described_set(text)
    if described:
        return read_node(described, level + 1)
    return read_clock(text) or read_compound(text)


def _read_choice(text: str, level: int) -> Choice | None:
    labeled = _LABELED_CHOICE.match(text)
    if labeled:
        return Choice(labeled[1].upper(), None)
    match = _CHOICE.match(text)
    if match is None:
        return None
    letter = (match[1] or match[2] or match[3]).upper()
    rest = match[4].strip().lstrip("}").strip()
    if not rest:
        return Choice(letter, None)
    # (x)(x+1) and (a)^2 are products and powers.
    if match[1] and (match[1].islower() or rest[0] in "(^_+-=*/,:<>|" or rest.startswith("\\c")):
        return None
    if re.match(r"[\^_+=*/,<>]", rest):
        return None
    return Choice(letter, read_node(rest, level + 1))


def _without_label(text: str) -> str:
    """Drop a text that introduces a formula: ``The area is 5``, ``approximately 5``."""
    match = re.match(r"\\text\{([^{}]*)\}\s*[:=]?\s*(?=[^\s,;])", text)
    if match is None or NEGATIONS.search(match[1]):
        return text
    rest = text[match.end() :]
    words = match[1].lower().split()
    if rest.startswith((r"\text", "(", "^", "_", "/", "'")) and not rest.startswith("(-"):
        return text
    if not re.search(r"[\d\\a-zA-Z]", rest) or (words and words[-1] in ("or", "and", "to", "by")):
        return text
    return rest if not is_unit(match[1]) else text


def _split_list(text: str) -> tuple[list[str], str]:
    """Return the items of a bare list, and the word (or comma) that joins them."""
    word = "or" if _OR.search(text) else "and" if _AND.search(text) else ","
    text = _AND.sub(";", _OR.sub(";", text)) if "begin" not in text else _OR.sub(";", text)
    text = re.sub(r"\\text\{\s*(?:or|and)\s+([^{}]*)\}", r";\\text{\1}", text)
    if re.search(r"\\text\{[^{}]*(?:, | or | and )[^{}]*\}", text) and "begin" not in text:
        text = re.sub(r"\\text\{([^{}]*)\}", _split_text, text)
    parts = [part for part in split_outside_brackets(text, (",", ";")) if part.strip()]
    return [re.sub(r"^\s*;|;\s*$", "", part) for part in parts], word


def _split_text(match: re.Match[str]) -> str:
    if _MONTH.search(match[1]):
        return match[0]  # March 14, 2024 is one date
    words = re.split(r",\s*(?:and |or )?| and | or ", match[1])
    # Names, not sentences: "red and blue", not "between 5 and 6".
    if any(len(word.split()) > 3 for word in words) or NEGATIONS.search(match[1]):
        return match[0]
    return ";".join(rf"\text{{{word.strip()}}}" for word in words)


def _read_list(parts: list[str], word: str, level: int) -> Node:
    items = tuple(read_node(part, level + 1) for part in parts)
    ordered = [isinstance(item, Relation) and _is_inequality(item) for item in items]
    related = all(isinstance(item, Relation) for item in items)
    if word == "or" and related and any(ordered):
        return Union(items)
    # x = 1, 2 means x = 1, x = 2.
    first = items[0]
    if (
        isinstance(first, Relation)
        and first.signs == ("=",)
        and not any(isinstance(item, Relation) for item in items[1:])
    ):
        items = (first.sides[-1], *items[1:])
    return Group("list", _flat(items))


def _flat(items: Sequence[Node]) -> tuple[Node, ...]:
    """Put the items of a list in the place of a list among ``items``."""
    nested = (i.items if isinstance(i, Group) and i.kind == "list" else (i,) for i in items)
    return tuple(chain.from_iterable(nested))


def _is_inequality(relation: Relation) -> bool:
    return all(sign in (*FLIPPED, r"\neq") for sign in relation.signs)


def _read_relation(text: str, level: int) -> Relation | None:
    positions = list(separator_positions(text, _SIGNS))
    if not positions:
        return None
    sides = [side.strip() for side in split_outside_brackets(text, _SIGNS)]
    signs = [sign for _, sign in positions]
    while sides and not sides[-1]:
        sides, signs = sides[:-1], signs[:-1]
    if len(sides) != len(signs) + 1 or not signs:
        return None
    if not sides[0]:
        sides, signs = sides[1:], signs[1:]
    if any(not side for side in sides) or not signs:
        return None
    return Relation(
        tuple(read_node(side, level + 1) for side in sides),
        tuple(signs),
        tuple(_bare_name(side) for side in sides),
    )


def _bare_name(side: str) -> str:
    return re.sub(r"\\text\{([^{}]*)\}", r"\1", side).replace(" ", "")


def _without_ellipsis(parts: list[str]) -> list[str]:
    """Fill in what ``1, 2, …, 5`` leaves out."""
    dots = next((i for i, part in enumerate(parts) if part.strip() == r"\ldots"), None)
    whole = [number(part.strip()) for part in parts]
    if dots is None or dots < 2 or dots + 2 != len(parts):
        return parts
    before, first, last = whole[dots - 2], whole[dots - 1], whole[dots + 1]
    if before is None or first is None or last is None:
        return parts
    step = first.value - before.value
    steps = (last.value - first.value) / step if step else Fraction(0)
    if steps.denominator != 1 or not 0 < steps <= MAX_ITEMS:
        return parts
    return [*parts[:dots], *(str(first.value + step * n) for n in range(1, int(steps) + 1))]


def _read_group(text: str, level: int) -> Node | None:
    for opening, closing in _BRACKETS:
        if not (text.startswith(opening) and text.endswith(closing)):
            continue
        inner = text[len(opening) : len(text) - len(closing)]
        if not is_balanced(inner):
            continue
        if (opening, inner.strip()) == (r"\{", r"\emptyset"):
            return Group("set", (Group("set", ()),))  # which has an element
        conditioned = re.split(r"\\mid|\||:", inner) if opening == r"\{" else [inner]
        if len(conditioned) == 2 and re.search(r"[<>=]|\\leq|\\geq|\\neq", conditioned[1]):
            return read_node(conditioned[1], level + 1)  # {x | x > 3}
        parts = split_outside_brackets(inner, (",", ";"))
        if len(parts) > MAX_ITEMS:
            return Words(text)
        if len(parts) == 1 and opening in "(" and closing == ")":
            return read_node(inner, level + 1)
        if len(parts) == 1 and opening in "[(":
            return read_node(inner, level + 1) if closing in ")]" else None
        parts = _without_ellipsis(parts)
        items = tuple(read_node(part, level + 1) for part in parts if part.strip())
        if opening == r"\{":
            return Group("set", _flat(items))
        if opening == r"\langle":
            return Group("vector", items)
        return Group(opening + closing, items)
    return None


def _read_matrix(text: str, level: int) -> Matrix | None:
    match = _MATRIX.match(text)
    if match is None or r"\begin" in match["body"] or re.search("[=<>,;]", match["factor"]):
        return None
    rows = [
        row.split("&") for row in re.split(r"\\\\(?:\[[^\]]*\])?", match["body"]) if row.strip()
    ]
    if match["transposed"]:
        rows = [list(column) for column in zip(*rows, strict=False)]
    factor = match["factor"].strip()
    if factor:
        factor = "-1" if factor == "-" else factor
        rows = [[rf"({factor})\cdot({cell.strip()})" for cell in row] for row in rows]
    if sum(map(len, rows)) > MAX_ITEMS:
        return None
    cells = tuple(tuple(read_node(cell, level + 1) for cell in row) for row in rows)
    return Matrix(cells, determinant=match[2] in ("v", "V"))


def _read_cases(text: str, level: int) -> Node | None:
    """Read a system of equations, or a function that is defined in pieces."""
    match = _CASES.match(text)
    if match is None:
        return None
    rows = [row.split("&") for row in match[1].split(r"\\") if row.strip()]
    if all(len(row) == 1 for row in rows):
        return read_node(",".join(row[0].strip().rstrip(",;.") for row in rows), level + 1)
    if any(len(row) != 2 for row in rows):
        return None
    return Cases(
        tuple(
            tuple(read_node(_CASE_WORDS.sub("", cell).strip(" ,;."), level + 1) for cell in row)
            for row in rows
        )
    )


def _read_scalar(text: str) -> Node:
    text = text.strip()
    ordinal = re.fullmatch(r"(\d+)\^?\{?(?:\\text\{)?(?:st|nd|rd|th)\}?\}?", text)
    if ordinal:
        return Scalar(ordinal[1])
    unit, percent = "", False
    match = _TRAILING_TEXT.match(text)
    if match and re.search(r"[\d\\a-zA-Z]", match[1]):
        words = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", match[2])
        if NEGATIONS.search(words) and not is_unit(words):
            return Words(plain_words(text))
        text, percent, unit = _take_unit(match[1].strip(), words)
        if text.endswith("°") and unit in ("C", "F"):
            text, unit = text[:-1], {"C": "celsius", "F": "fahrenheit"}[unit]
    elif r"\text{" in text:
        return Words(plain_words(text))
    else:
        unit_match = _TRAILING_UNIT.match(text)
        plain = unit_match and re.fullmatch(r"-?[\d.]+\s*", unit_match[1])
        spaced = unit_match and " " in text[: unit_match.start(2)][-1:]
        # Behind √3 or π a single letter is a variable, and so are several letters: 4 g h.
        symbols = unit_match and re.fullmatch(r"[a-zA-Z](?: [a-zA-Z])*", unit_match[2].strip())
        if (
            unit_match
            and spaced
            and is_unit(unit_match[2])
            and not (symbols and (not plain or len(unit_match[2].strip()) > 1))
        ):
            text, unit = unit_match[1].strip(), canonical_unit(unit_match[2])
    if r"\text{" in text:
        return Words(plain_words(text + " " + unit))
    text = re.sub(r"(?<=[\d}])\s+(?=\\?[a-zA-Z])", "", text)
    if text.endswith("%"):
        text, percent = text[:-1].strip(), True
    degree = text.endswith("°") and not re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", text)
    text = text[:-1].strip() if degree else text
    based = re.fullmatch(
        r"(-?[\dA-Fa-f]+)_\{?\(?(\d{1,2}|two|three|four|five|eight|ten|sixteen)\)?\}?", text
    )
    if based:
        base = str(number_word(based[2]) or based[2])
        # a_2 is a variable; letters are digits only beyond ten.
        if based[1].lstrip("-").isdigit() or int(base) > 10:
            return Scalar(based[1].upper(), unit, base=base)
    base_words = re.fullmatch(r"base (\d+|[a-z]+)", unit)
    if base_words:
        return Scalar(text, base=str(number_word(base_words[1]) or base_words[1]))
    if re.fullmatch(r"[A-Za-z]{3,}(?:[ '-][A-Za-z]+)*", text):
        return Words(plain_words(text))
    return Scalar(_tidy(text), unit, percent, degree)


def _take_unit(formula: str, words: str) -> tuple[str, bool, str]:
    """Split the words behind a formula into formula, percent sign and unit."""
    percent = False
    parts = words.lower().split()
    if parts and parts[0] in SCALES:
        formula = rf"{formula}\cdot {SCALES[parts[0]]}"
        parts = parts[1:]
        words = " ".join(parts)
    if parts and parts[0] in ("percent", "percentage", "pct"):
        return formula, True, ""
    if parts and parts[0] in ("degrees", "degree"):
        if len(parts) > 1 and parts[1] in ("celsius", "fahrenheit"):
            return formula, percent, parts[1]
        return f"{formula}°", percent, ""
    return formula, percent, canonical_unit(words)


def _tidy(text: str) -> str:
    text = re.sub(r"^\s*\+\s*", "", text)
    text = re.sub(r"^(-?)(\d+)\s+(\d+)/(\d+)$", r"\1\2\\frac{\3}{\4}", text)
    return text.strip()
