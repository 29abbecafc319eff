"""The structure of an answer: lists, tuples, intervals, equations, matrices, words, numbers.

`readings` gives what a text can mean; most texts have one reading, ``1,234`` has two.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

from deft.evaluators.grading.math.text import MAX_ANSWER, normalize, read_group, split_texts
from deft.evaluators.grading.math.units import UNIT_LETTERS, canonical_unit, is_unit, number_word

MAX_ITEMS = 200
"""Items of a list that are compared; longer ones are compared as text alone."""
MAX_LEVELS = 8
"""Levels of lists within lists."""


@dataclass(frozen=True)
class Scalar:
    """A number or an expression."""

    latex: str
    """Normalised LaTeX without units, percent sign and words."""
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
class Difference:
    """All of the first set but the second."""

    whole: Node
    removed: Node


@dataclass(frozen=True)
class Relation:
    """A chain such as ``0 < x ≤ 1`` or ``y = 2x + 1 ≈ 3``."""

    sides: tuple[Node, ...]
    signs: tuple[str, ...]
    names: tuple[str, ...]
    """The normalised LaTeX of each side."""


@dataclass(frozen=True)
class Ratio:
    """Numbers in proportion, or a time of day."""

    items: tuple[Node, ...]


@dataclass(frozen=True)
class Matrix:
    """Rows of cells; ``determinant`` if between vertical bars."""

    rows: tuple[tuple[Node, ...], ...]
    determinant: bool


Node = Scalar | Words | Choice | Group | Union | Difference | Relation | Ratio | Matrix


@dataclass(frozen=True)
class Number:
    """A rational number as it was written."""

    value: Fraction
    decimals: int | None = None
    """Digits behind the decimal point, trailing zeros included; None if there is no point."""
    digits: int = 0
    """Significant digits, of decimals only."""
    scientific: bool = False


def readings(text: str) -> list[Node]:
    """What ``text`` can mean, likeliest first; text too long for an answer means itself."""
    if len(text) > MAX_ANSWER:
        return [Words(text.strip())]
    try:
        normal = [normalize(text, thousands=True), normalize(text, thousands=False)]
        nodes = [_read(form, 0) for form in dict.fromkeys(normal)]
    except RecursionError:
        return [Words(text.strip())]
    decimal = re.fullmatch(r"-?\d+,\d+", normal[1])
    if decimal:
        nodes.append(Scalar(normal[1].replace(",", ".")))
    return nodes


def _read(text: str, level: int) -> Node:
    text = _unwrap(text)
    if level > MAX_LEVELS:
        return Words(text)
    whole = _whole(text)
    if whole is not None:
        return whole
    choice = _choice(text, level)
    if choice is not None:
        return choice
    text = re.sub(r"_\{\s*\\text\{(?:base )?(\w+)\}\s*\}", r"_{\1}", text)
    text = _without_label(_mark_words(text))
    matrix = _matrix(text, level)
    if matrix is not None:
        return matrix
    parts, word = _split_list(text)
    if len(parts) > MAX_ITEMS:
        return Words(text)
    if len(parts) > 1:
        return _list(parts, word, level)
    return _read_one(text, level)


def _read_one(text: str, level: int) -> Node:
    member = _relation(text, level) if r"\in" in text else None
    if member is not None and r"\in" in member.signs:
        return member
    parts = split_top(text, (r"\cup",))
    if len(parts) > 1:
        return Union(tuple(_read(part, level + 1) for part in parts))
    parts = split_top(text, (r"\setminus",))
    if len(parts) == 2:
        return Difference(_read(parts[0], level + 1), _read(parts[1], level + 1))
    relation = _relation(text, level)
    if relation is not None:
        return relation
    group = _group(text, level)
    if group is not None:
        return group
    ratio = re.split(r":|\\text\{to\}", text)
    if len(ratio) in (2, 3) and all(re.fullmatch(_RATIO_TERM, part.strip()) for part in ratio):
        return Ratio(tuple(_read(part, level + 1) for part in ratio))
    if r"\pm" in text or r"\mp" in text:
        plus = text.replace(r"\pm", "+").replace(r"\mp", "-")
        minus = text.replace(r"\pm", "-").replace(r"\mp", "+")
        both = tuple(_read(re.sub(r"^\s*\+", "", side), level + 1) for side in (plus, minus))
        return Group("list", both)
    return _leaf(text)


_RATIO_TERM = r"(?:\d+(?:\.\d+)?|[a-zA-Z]|\d*\\sqrt\{\d+\}|\\frac\{\d+\}\{\d+\}|\\pi)"


def _unwrap(text: str) -> str:
    """Strip punctuation, markdown and braces that hold the whole."""
    while True:
        before = text
        text = re.sub(r"\\(?:boxed|fbox|framebox)(?=\s*\{)", "", text)
        text = re.sub(r"\*\*|__|`|^\s*[=:]\s*", "", text)
        text = text.strip().strip('"').rstrip(".,;:").strip()
        text = re.sub(r"(?:\\\\)+$", "", text)
        if text.startswith("{"):
            content, end = read_group(text, 0)
            if end == len(text) and text.endswith("}"):
                text = content
        if text == before:
            return text


_REALS = Scalar(r"\mathbb{R}")
_EMPTY = Scalar(r"\emptyset")
_WHOLE_WORDS: dict[str, Node] = {
    **dict.fromkeys(
        ("all real numbers", "all reals", "all real", "real numbers", "set of all real numbers",
         "set of real numbers", "any real number", "every real number", "all real numbers x",
         "x is any real number", "x can be any real number", "reals"),
        _REALS,
    ),
    **dict.fromkeys(
        ("no solution", "no solutions", "no real solution", "no real solutions", "empty set",
         "no solution exists", "no solutions exist", "none", "no such", "no real roots",
         "no values", "no value"),
        _EMPTY,
    ),
    **dict.fromkeys(("dne", "does not exist", "doesn't exist"), Words("does not exist")),
    **dict.fromkeys(("undefined", "not defined", "is undefined"), Words("undefined")),
    **dict.fromkeys(("infinity", "positive infinity", "plus infinity"), Scalar(r"\infty")),
    **dict.fromkeys(("negative infinity", "minus infinity"), Scalar(r"-\infty")),
}  # fmt: skip


def _whole(text: str) -> Node | None:
    """Phrases that stand for something else."""
    words = plain_words(text)
    if words in _WHOLE_WORDS:
        return _WHOLE_WORDS[words]
    answered = re.match(r"(yes|no|true|false)[,.;]", text.removeprefix(r"\text{").lower())
    if answered:
        return Words(answered[1])
    number = number_word(words)
    return None if number is None else Scalar(str(number))


_ARTICLES = re.compile(r"\b(?:the|an?|is|it|its|it's|there (?:is|are)|triangle|function|student)\b")


_ORDINAL = re.compile(r"(?<=\d)(?:st|nd|rd|th)\b")


def plain_words(text: str) -> str:
    """Lower case, without markup, articles and punctuation: how two phrases are compared."""
    text = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text)
    text = re.sub(r"[\\${}*_`\".,;:!?]", " ", text.lower())
    words = " ".join(_ORDINAL.sub("", _ARTICLES.sub(" ", text)).split())
    return words or " ".join(text.split())


_CHOICE = re.compile(
    r"^\s*(?:\\text\{\s*)?(?:option|choice|answer)?\s*"
    r"(?:\(([A-Za-z])\)|([A-Z])[.):](?!\d)|([A-Z])\}(?=\s*$))\s*[.:]?\s*\}?(.*)$",
    re.DOTALL | re.IGNORECASE,
)
_LABELLED_CHOICE = re.compile(
    r"^\s*(?:\\text\{\s*)?(?:option|choice|answer)\s+\(?([A-Z])\)?\s*\}?$", re.IGNORECASE
)


def _choice(text: str, level: int) -> Choice | None:
    labelled = _LABELLED_CHOICE.match(text)
    if labelled:
        return Choice(labelled[1].upper(), None)
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
    return Choice(letter, _read(rest, level + 1))


_WORD_RUN = re.compile(r"(?<![a-zA-Z\\])[A-Za-z][a-zA-Z']*(?:[ -][A-Za-z][a-zA-Z']*)*")
_SHORT_WORDS_TEXT = (
    "or and to no is of by in at if not yes per am pm cm km mm kg mg ml ft mi hr hrs min sec "
    "mph lb lbs oz rad cent cents odd even day days deg kph kmh mol"
)
_SHORT_WORDS = frozenset(_SHORT_WORDS_TEXT.split())


_RATE = re.compile(r"\\text\{([a-zA-Z]+)\}/([a-zA-Z]+)(?![a-zA-Z(])")
"""``km/h``, of which only the first is long enough to be a word."""


def _mark_words(text: str) -> str:
    """Put words that stand outside ``\\text{…}`` into it; letters in products stay variables."""

    def mark(piece: str) -> str:
        pieces, position = [], 0
        for match in _WORD_RUN.finditer(piece):
            if _inside_command(piece, match.start()):
                continue
            loose = (match.start() == 0 or piece[match.start() - 1] in " ),}") and (
                match.end() == len(piece) or piece[match.end()] in " (,.^={"
            )
            pieces.append(piece[position : match.start()])
            pieces.append(_mark_run(match.group(), loose=loose))
            position = match.end()
        pieces.append(piece[position:])
        return "".join(pieces)

    marked = "".join(p if p.startswith(r"\text{") else mark(p) for p in split_texts(text))
    marked = _RATE.sub(lambda m: rf"\text{{{m[1]}/{m[2]}}}" if is_unit(m[2]) else m[0], marked)
    # Neighbouring texts are one.
    return re.sub(r"\}\s*\\text\{", " ", marked) if marked.count(r"\text{") > 1 else marked


def _mark_run(run: str, *, loose: bool) -> str:
    """``or x`` is a word and a variable, ``red marbles`` is one text."""
    pieces: list[str] = []
    phrase: list[str] = []

    def close() -> None:
        while phrase and len(phrase[-1]) == 1 and phrase[-1].islower():
            pieces.append(phrase.pop())
        if phrase:
            wordy = _is_wordy(phrase, loose=loose)
            pieces.append(rf"\text{{{' '.join(phrase)}}}" if wordy else " ".join(phrase))
            phrase.clear()

    for word in run.split(" "):
        if word.lower() in ("or", "and"):
            close()
            pieces.append(rf"\text{{{word}}}")
        elif not phrase and len(word) == 1 and word not in ("a", "A", "I"):
            pieces.append(word)
        else:
            phrase.append(word)
    close()
    return " ".join(pieces)


def _inside_command(text: str, position: int) -> bool:
    opening = text.rfind("{", 0, position)
    return opening >= 0 and bool(
        re.search(r"\\(?:begin|end|mathbb|mathcal|overline)\{$", text[: opening + 1])
    )


def _is_wordy(words: list[str], *, loose: bool) -> bool:
    words = [part for word in words for part in word.split("-")]
    if any(word.lower() in _SHORT_WORDS for word in words):
        return True
    longest = max(map(len, words))
    return longest >= 3 if loose else longest >= 5


_NEGATIONS = re.compile(
    r"\b(?:not|no|never|none|except|unless|least|most|more|less|than|greater|neither|if|when|"
    r"n't|other|minus|negative|plus|times|divided|over|half|twice|double|below|above|between)\b"
    r"|n't\b",
    re.IGNORECASE,
)


def _without_label(text: str) -> str:
    """Drop a text that introduces a formula: ``The area is 5``, ``approximately 5``."""
    match = re.match(r"\\text\{([^{}]*)\}\s*[:=]?\s*(?=[^\s,;])", text)
    if match is None or _NEGATIONS.search(match[1]):
        return text
    rest = text[match.end() :]
    words = match[1].lower().split()
    if rest.startswith((r"\text", "(", "^", "_", "/", "'")) and not rest.startswith("(-"):
        return text
    if not re.search(r"[\d\\a-zA-Z]", rest) or (words and words[-1] in ("or", "and", "to", "by")):
        return text
    return rest if not is_unit(match[1]) else text


def split_top(text: str, separators: tuple[str, ...]) -> list[str]:
    """Split at separators outside all brackets, environments and absolute values."""
    pieces, start = [], 0
    for position, separator in _separators(text, separators):
        if position < start:
            continue
        pieces.append(text[start:position])
        start = position + len(separator)
    pieces.append(text[start:])
    return pieces


def _separators(text: str, separators: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    depth = 0
    position = 0
    while position < len(text):
        if depth == 0:
            found = next((s for s in separators if text.startswith(s, position)), None)
            if found and not (found[-1].isalpha() and _letter_at(text, position + len(found))):
                yield position, found
                position += len(found)
                continue
        for opening in (r"\{", r"\langle", r"\begin", r"\lfloor", r"\lceil"):
            if text.startswith(opening, position):
                depth += 1
                position += len(opening)
                if opening == r"\begin":
                    position = read_group(text, position)[1]
                break
        else:
            for closing in (r"\}", r"\rangle", r"\end", r"\rfloor", r"\rceil"):
                if text.startswith(closing, position):
                    depth = max(depth - 1, 0)
                    position += len(closing)
                    if closing == r"\end":
                        position = read_group(text, position)[1]
                    break
            else:
                character = text[position]
                if character == "\\":
                    position += 2
                    continue
                if character in "([{":
                    depth += 1
                elif character in ")]}":
                    depth = max(depth - 1, 0)
                position += 1


def _letter_at(text: str, position: int) -> bool:
    return position < len(text) and text[position].isascii() and text[position].isalpha()


_OR = re.compile(r"\\text\{\s*(?:or|OR)\s*\}|\\(?:lor|vee)(?![a-zA-Z])")
_AND = re.compile(r"\\text\{\s*(?:and|AND)\s*\}|\\(?:land|wedge)(?![a-zA-Z])|(?<!\\)&")


def _split_list(text: str) -> tuple[list[str], str]:
    """The items of a bare list, and the word (or comma) that joins them."""
    word = "or" if _OR.search(text) else "and" if _AND.search(text) else ","
    text = _AND.sub(";", _OR.sub(";", text)) if "begin" not in text else _OR.sub(";", text)
    text = re.sub(r"\\text\{\s*(?:or|and)\s+([^{}]*)\}", r";\\text{\1}", text)
    if re.search(r"\\text\{[^{}]*(?:, | or | and )[^{}]*\}", text) and "begin" not in text:
        text = re.sub(r"\\text\{([^{}]*)\}", _split_text, text)
    parts = [part for part in split_top(text, (",", ";")) if part.strip()]
    return [re.sub(r"^\s*;|;\s*$", "", part) for part in parts], word


def _split_text(match: re.Match[str]) -> str:
    words = re.split(r",\s*(?:and |or )?| and | or ", match[1])
    # Names, not sentences: "red and blue", not "between 5 and 6".
    if any(len(word.split()) > 3 for word in words) or _NEGATIONS.search(match[1]):
        return match[0]
    return ";".join(rf"\text{{{word.strip()}}}" for word in words)


def _list(parts: list[str], word: str, level: int) -> Node:
    items = tuple(_read(part, level + 1) for part in parts)
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
    flat: list[Node] = []
    for item in items:
        flat.extend(item.items if isinstance(item, Group) and item.kind == "list" else [item])
    return Group("list", tuple(flat))


def _is_inequality(relation: Relation) -> bool:
    return all(sign in _ORDER or sign == r"\neq" for sign in relation.signs)


_ORDER = ("<", ">", r"\leq", r"\geq")
_SIGNS = (r"\leq", r"\geq", r"\neq", r"\approx", r"\in", r"\to", "<", ">", "=")


def _relation(text: str, level: int) -> Relation | None:
    found = list(_separators(text, _SIGNS))
    if not found:
        return None
    sides = [side.strip() for side in split_top(text, _SIGNS)]
    signs = [sign for _, sign in found]
    while sides and not sides[-1]:
        sides, signs = sides[:-1], signs[:-1]
    if len(sides) != len(signs) + 1 or not signs:
        return None
    if not sides[0]:
        sides, signs = sides[1:], signs[1:]
    if any(not side for side in sides) or not signs:
        return None
    return Relation(
        tuple(_read(side, level + 1) for side in sides),
        tuple(signs),
        tuple(_bare_name(side) for side in sides),
    )


def _bare_name(side: str) -> str:
    return re.sub(r"\\text\{([^{}]*)\}", r"\1", side).replace(" ", "")


_BRACKETS = (
    (r"\{", r"\}"),
    (r"\langle", r"\rangle"),
    ("(", ")"),
    ("(", "]"),
    ("[", ")"),
    ("[", "]"),
)


def _group(text: str, level: int) -> Node | None:
    for opening, closing in _BRACKETS:
        if not (text.startswith(opening) and text.endswith(closing)):
            continue
        inner = text[len(opening) : len(text) - len(closing)]
        if not _is_balanced(inner):
            continue
        conditioned = re.split(r"\\mid|\||:", inner) if opening == r"\{" else [inner]
        if len(conditioned) == 2 and re.search(r"[<>=]|\\leq|\\geq|\\neq", conditioned[1]):
            return _read(conditioned[1], level + 1)  # {x | x > 3}
        parts = split_top(inner, (",", ";"))
        if len(parts) > MAX_ITEMS:
            return Words(text)
        if len(parts) == 1 and opening in "(" and closing == ")":
            return _read(inner, level + 1)
        if len(parts) == 1 and opening in "[(":
            return _read(inner, level + 1) if closing in ")]" else None
        items = tuple(_read(part, level + 1) for part in parts if part.strip())
        if opening == r"\{":
            flat: list[Node] = []
            for item in items:
                nested = isinstance(item, Group) and item.kind == "list"
                flat.extend(item.items if nested and isinstance(item, Group) else [item])
            return Group("set", tuple(flat))
        if opening == r"\langle":
            return Group("vector", items)
        return Group(opening + closing, items)
    return None


def _is_balanced(text: str) -> bool:
    depth = 0
    for character in text:
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
            if depth < 0:
                return False
    return depth == 0


_MATRIX = re.compile(
    r"^\s*[\[(]?\s*\\begin\{(p|b|B|v|V|small)?(matrix|array)\}(?:\{[^{}]*\})?(.*)"
    r"\\end\{(?:p|b|B|v|V|small)?(?:matrix|array)\}\s*[\])]?\s*$",
    re.DOTALL,
)


def _matrix(text: str, level: int) -> Matrix | None:
    match = _MATRIX.match(text)
    if match is None or r"\begin" in match[3]:
        return None
    rows = [row for row in re.split(r"\\\\(?:\[[^\]]*\])?", match[3]) if row.strip()]
    cells = tuple(tuple(_read(cell, level + 1) for cell in row.split("&")) for row in rows)
    if sum(map(len, cells)) > MAX_ITEMS:
        return None
    return Matrix(cells, determinant=match[1] in ("v", "V"))


_POWER = r"(?:\^\{?-?\d\}?)?"
_TRAILING_TEXT = re.compile(
    rf"^(.*?)((?:[/\s]*\\text\{{[^{{}}]*\}}{_POWER}(?:\s*(?:\\cdot)?\s*)?)+)$", re.DOTALL
)
_NUMERIC = r"-?(?:\d|\\frac|\\sqrt|\\pi|\\cdot|[{}.^()+/\s-])+"
_TRAILING_UNIT = re.compile(rf"^({_NUMERIC})\s?((?:[a-zA-Z]+{_POWER}[/\s]?)+)$")
_MULTIPLIERS = {
    "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
    "dozen": 12,
}  # fmt: skip


def _leaf(text: str) -> Node:
    text = text.strip()
    ordinal = re.fullmatch(r"(\d+)\^?\{?(?:\\text\{)?(?:st|nd|rd|th)\}?\}?", text)
    if ordinal:
        return Scalar(ordinal[1])
    unit, percent = "", False
    match = _TRAILING_TEXT.match(text)
    if match and re.search(r"[\d\\a-zA-Z]", match[1]):
        words = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", match[2])
        if _NEGATIONS.search(words) and not is_unit(words):
            return Words(plain_words(text))
        text, percent, unit = _take_unit(match[1].strip(), words)
    elif r"\text{" in text:
        return Words(plain_words(text))
    else:
        unit_match = _TRAILING_UNIT.match(text)
        if unit_match and is_unit(unit_match[2]) and " " in text[: unit_match.start(2)][-1:]:
            text, unit = unit_match[1].strip(), canonical_unit(unit_match[2])
    if r"\text{" in text:
        return Words(plain_words(text + " " + unit))
    text = re.sub(r"(?<=[\d}])\s+(?=\\?[a-zA-Z])", "", text)
    if text.endswith("%"):
        text, percent = text[:-1].strip(), True
    degree = text.endswith("°") and not re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", text)
    text = text[:-1].strip() if degree else text
    based = re.fullmatch(
        r"(-?[\dA-F]+)_\{?\(?(\d{1,2}|two|three|four|five|eight|ten|sixteen)\)?\}?", text
    )
    if based:
        return Scalar(based[1], unit, base=str(number_word(based[2]) or based[2]))
    base_words = re.fullmatch(r"base (\d+|[a-z]+)", unit)
    if base_words:
        return Scalar(text, base=str(number_word(base_words[1]) or base_words[1]))
    if re.fullmatch(r"[A-Za-z]{3,}(?:[ '-][A-Za-z]+)*", text):
        return Words(plain_words(text))
    return Scalar(_tidy(text), unit, percent, degree)


def _take_unit(formula: str, words: str) -> tuple[str, bool, str]:
    """Formula, percent and unit of ``formula words``."""
    percent = False
    parts = words.lower().split()
    if parts and parts[0] in _MULTIPLIERS:
        formula = rf"{formula}\cdot {_MULTIPLIERS[parts[0]]}"
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


_DECIMAL = re.compile(r"(-?)(\d*)(?:\.(\d*))?")
_SCIENTIFIC = re.compile(r"(-?(?:\d+(?:\.\d+)?\\cdot ?)?)10\^\{?\(?(-?\d{1,4})\)?\}?")
_FRACTION = re.compile(r"(-?)(\d*)(?:\\frac\{(-?)(\d+)\}\{(-?)(\d+)\}|(?<=\d)/(-?)(\d+))")


@lru_cache(maxsize=8192)
def number(latex: str) -> Number | None:
    """The rational number that ``latex`` writes directly; None for any other expression."""
    latex = latex.strip()
    if latex.startswith("(") and latex.endswith(")") and _is_balanced(latex[1:-1]):
        latex = latex[1:-1]
    if not latex or len(latex) > 3000:
        return None
    decimal = _DECIMAL.fullmatch(latex)
    if decimal and (decimal[2] or decimal[3]):
        return _decimal(*decimal.groups(default=""), pointed=decimal[3] is not None)
    scientific = _SCIENTIFIC.fullmatch(latex)
    if scientific:
        front = re.sub(r"\\cdot ?", "", scientific[1])
        base = number(front) if front not in ("", "-") else Number(Fraction(-1 if front else 1))
        assert base is not None
        value = base.value * Fraction(10) ** int(scientific[2])
        return replace(base, value=value, scientific=True, decimals=base.decimals)
    fraction = _FRACTION.fullmatch(latex)
    return _fraction(fraction) if fraction else None


def _decimal(sign: str, whole: str, behind: str, *, pointed: bool) -> Number:
    value = _fraction_of(whole + behind) / Fraction(10) ** len(behind)
    digits = len((whole + behind).lstrip("0"))
    value = -value if sign else value
    if not pointed or not behind.strip("0"):
        return Number(value, digits=digits)  # 27.0 is the integer 27
    return Number(value, len(behind), digits)


def _fraction_of(digits: str) -> Fraction:
    # Python refuses to read more than 4300 digits, by design; so do we, below that.
    return Fraction(int(digits or "0"))


def _fraction(match: re.Match[str]) -> Number | None:
    sign, whole, top_sign, top, bottom_sign, bottom, slash_sign, slash = match.groups()
    if slash is not None:
        numerator, denominator = int(whole), int(slash)
        negative = bool(sign) != bool(slash_sign)
        mixed = 0
    else:
        numerator, denominator = int(top), int(bottom)
        negative = bool(sign) ^ bool(top_sign) ^ bool(bottom_sign)
        mixed = int(whole) if whole else 0
        if whole and (top_sign or bottom_sign):
            return None
    if denominator == 0:
        return None
    value = mixed + Fraction(numerator, denominator)
    return Number(-value if negative else value)


def without_unit_letter(scalar: Scalar) -> Scalar | None:
    """``5m`` read as five metres, where nothing else in it is a variable."""
    match = re.fullmatch(rf"({_NUMERIC})([{UNIT_LETTERS}])({_POWER})", scalar.latex)
    if match is None or scalar.unit:
        return None
    return replace(scalar, latex=match[1].strip(), unit=canonical_unit(match[2] + match[3]))
