"""Finding the final answer: the last box, else the last statement of it, else the conclusion.

Where a response goes on to a next problem of its own, only what stands before that counts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from deft.evaluators.grading.brackets import read_group
from deft.evaluators.grading.final_answer import announced, without_emoji
from deft.evaluators.grading.math.conclusion import (
    FORMULA,
    NUMBER,
    OTHER_SCRIPT,
    REFUSAL,
    WAVERING,
    Found,
    bold_as_formula,
    concluded_value,
    concluded_word,
    conclusion,
    joined_formulas,
    without_asides,
)
from deft.evaluators.grading.math.latex import MAX_ANSWER
from deft.evaluators.grading.responses import before_next_problem

MAX_BOXES = 60
"""Boxes and statements that are looked at, from the last one back."""
_BOX = re.compile(
    r"(?:\\?boxed|\x08oxed|\\?fbox|\\?framebox)(?![a-zA-Z])\s*(?:\[[^\[\]]{0,20}\]\s*)*"
)
_CHOSEN = re.compile(
    r"\b(?:choose|pick|select|go with|answer is|choice is)\s+(?:option\s+"
    r"|choice\s+)?\(?([A-Z])\)?\W*$"
)
_BOLD_VALUE = re.compile(r"\*\*[^*]*[\d$\\:][^*]*\*\*")
_BOX_OPENS = re.compile(rf"[$\\(\[\s]*(?:{_BOX.pattern})\{{?")
_BOX_TOKEN = re.compile(r"\\?[a-zA-Z]+(?:\{[^{}]*\})*|-?[\d.,/]+|\S")
_TAKEN_BACK = re.compile(
    r"[^.\n]{0,20}(?:which|this|that|it) (?:is|would be|was) (?:wrong|incorrect"
    r"|not (?:right|correct))\b"
)
_PLACEHOLDER = re.compile(
    r"\s*(?:(?:\\text\{)?(?:your |the |final )*(?:answer|result|value)(?: here)?\}?"
    r"|\\text\{\s*\}|\?+|\.\.\.|\\[dl]?dots|(?:\\boxed)?\{\s*\})\s*"
)
_CONNECTIVE = re.compile(
    r"(?:\s|\$|\\[()\[\],;! ]|,|;|\\(?:quad|qquad)|\\text\{\s*(?:and|or|,)\s*\}|\band\b|\bor\b|&"
    r"|[a-zA-Z](?:_\{?\w\}?)?\s*=)*"
)
_STATEMENT = re.compile(
    r"""
    \#\#\#\#[ \t]*(?P<hashes>[^\n]+)
    | (?P<final>(?:final|correct|right|my|the|an|our|so|hence|thus|therefore)\s+(?:\w+\s+)?)?
      (?:\b(?:answers?|(?<=the\s)final\s+result
            |(?:correct|right|best)\s+(?:option|choice)(?=(?:\s+is)?\W{1,6}(?-i:[A-Z])\b))|答案)
      (?P<link>
        \s*(?:\*\*|__)?\s*[:：是为]\s*(?:\*\*|__)?\s*
        | (?:\s+(?:to|for|of|in)\s+(?!is\b)[^.:\n]{1,80}?)?
          \s*(?:\*\*|__)?\s+(?:is|are|must\s+be|should\s+be|would\s+be|will\s+be|becomes|equals|comes\s+out\s+to\s+be)
          (?![a-zA-Z])\s*:?\s*
        | \s*=\s*
      )
      (?=(?P<rest>[^\n]{0,500}(?:\n(?!\s*\n)[^\n]{0,500})?))
    """,
    re.IGNORECASE | re.VERBOSE | re.MULTILINE,
)
_CHECKING = re.compile(
    r"\b(?:check|checking|verify|verifying|confirm|confirming)\b[^.\n]*$", re.IGNORECASE
)
_SENTENCE_END = re.compile(r"(?<=[^\s\d.])\.(?=\s|$)|(?<=\d)\.(?=\s|$)|\n|(?<=[a-z)])[!?](?=\s|$)")
_LEAD = re.compile(
    r"^(?:(?:(?:as follows|given by|below|found to be|simply|thus|therefore|then|likely|probably"
    r"|approximately|about|exactly|just|now|actually|indeed|equal to|an?(?=\s+\d))(?![a-zA-Z])"
    r"|:|\*\*|[~≈])[\s:]*)+",
    re.IGNORECASE,
)
_PROSE = re.compile(r"^\W*\d[\d.,]* [a-z]+ (?:for|to|of|from|who|that|with|if|when)\b")
"""A number at the beginning of a clause: ``14 boxes for 84 eggs``."""
_CLOSING = re.compile(rf"[.,;] (?i:so|hence|thus|therefore),? ({NUMBER.pattern}(?: [a-z]+)?)\W*$")
_METHOD = re.compile(r"(?:found|obtained|calculated|computed|determined|derived)\s+by\b")
_COMMENT = re.compile(
    r"\s*,?\s*\(?\b(?:because|since|as (?:the|we|it|required|desired)|which|where|so that|so|from"
    r"|by|using|after|when|therefore|hence|thus|but|not|rather|i hope|obtained)\b.*$"
    r"|(?<=\d): (?=[A-Za-z]+ [a-z]).*$|\s\((?!mod\b)(?=[^()]*[a-z]{2} [a-z]{2})[^()]*\)$",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True)
class _Box:
    start: int
    end: int
    content: str
    closed: bool


def find_answer(
    response: str, parts: int = 1, *, worded: bool = False, lettered: bool = False
) -> Found | None:
    """Find the final answer of ``response``.

    Args:
        response: what the model said to its reader.
        parts: how many parts the gold answer has, which decides whether several boxes are one
            answer.
        worded: whether the gold answer is a word, as against a number or a formula.
        lettered: whether it is the letter of a choice.
    """
    marked = without_emoji(announced(response))
    response = _without_bold(marked)
    first = before_next_problem(response)
    if first != response and (found := _explicit_answer(first, parts) or conclusion(first)):
        return replace(found, explicit=True)  # it was complete, wherever the rest was cut off
    return (
        _explicit_answer(response, parts)
        or (_chosen_letter(response) if lettered else None)
        or (concluded_word(response) if worded else None)
        or conclusion(
            _without_bold("\n".join(map(bold_as_formula, marked.split("\n")))), listed=parts > 1
        )
    )


def _chosen_letter(response: str) -> Found | None:
    chosen = _CHOSEN.search(response[-200:])
    return Found(chosen[1], explicit=True) if chosen else None


def _without_bold(text: str) -> str:
    """Drop the stars of Markdown; a last line keeps them, where they may mark a word."""
    body, line_end, last = text.rpartition("\n")
    if _BOLD_VALUE.search(last):
        last = last.replace("**", "")
    return body.replace("**", "") + line_end + last


def _explicit_answer(response: str, parts: int) -> Found | None:
    boxes = _boxes(response)
    stated = _stated_answer(response, after=boxes[-1].end if boxes else 0)
    if stated is None and boxes:
        return Found(_joined(response, boxes, parts), explicit=boxes[-1].closed)
    return stated


def _boxes(text: str) -> list[_Box]:
    """Return the last boxes of a text; a box within a box is part of its content."""
    boxes: list[_Box] = []
    position = 0
    for match in list(_BOX.finditer(text))[-MAX_BOXES:]:
        if match.start() < position:
            continue
        if text.startswith("{", match.end()):
            content, end = read_group(text, match.end(), MAX_ANSWER)
            closed = text[end - 1] == "}" and end - match.end() >= 2
            if not closed:
                content = _unclosed(content)
                end = match.end() + 1 + len(content)
        elif match.group()[0] in "\\\x08":
            token = _BOX_TOKEN.match(text, match.end())
            if token is None:
                continue
            content, end, closed = token[0], token.end(), True
        else:
            continue  # the word "boxed" in a sentence
        if content.strip(" \n$.,;:") and not _PLACEHOLDER.fullmatch(content):
            boxes.append(_Box(match.start(), end, content, closed))
        position = end
    return [box for box in boxes if not _TAKEN_BACK.match(text, box.end)] or boxes


def _unclosed(content: str) -> str:
    """Cut a box without end where the formula or the line ends."""
    end = re.search(r"\$|\\\]|\\\)|\n", content)
    return content[: end.start()] if end else content


def _joined(response: str, boxes: list[_Box], parts: int) -> str:
    group = [boxes[-1]]
    for box in reversed(boxes[:-1]):
        between = response[box.end : group[0].start]
        if not _CONNECTIVE.fullmatch(between) or between.count("\n\n"):
            break
        if not re.search(r",|;|and|or|&|quad", between) and not parts > 1:
            break
        group.insert(0, box)
    distinct = list(dict.fromkeys(box.content.strip() for box in group))
    if len(distinct) == 1 and parts > 1:
        # One box for each part of the question, with prose between them.
        last = list(dict.fromkeys(box.content.strip() for box in boxes))[-parts:]
        if len(last) == parts and all(_is_single(content) for content in last):
            distinct = last
    return ", ".join(distinct)


def _is_single(content: str) -> bool:
    return not re.search(r",(?!\d{3})|\\text\{ *(?:and|or) *\}", content)


def _stated_answer(response: str, after: int) -> Found | None:
    """Return the answer of the last statement behind ``after`` that gives one."""
    for match in list(_STATEMENT.finditer(response, max(0, after - 1)))[: -MAX_BOXES - 1 : -1]:
        if match.start() < after or _CHECKING.search(
            response, max(0, match.start() - 40), match.start()
        ):
            continue
        if match["hashes"] is not None:
            return Found(match["hashes"].strip(), explicit=True)
        content = match["rest"]
        loose = "=" in match["link"] and not match["final"]
        if after and (loose or not _says_a_value(content)):
            continue
        text = _statement_value(content, colon=":" in (match["link"] or ":"))
        if text is not None:
            return Found(text, explicit=True)
    return None


def _says_a_value(content: str) -> bool:
    """Check that "the answer is" is followed by a value, not by a remark about it."""
    return (
        re.match(
            r"\s*(?:\*\*|now |therefore |thus )*(?:\$|\\\(|\\\[|\\frac|\\sqrt|[-−]?\.?\d)", content
        )
        is not None
    )


def _statement_value(content: str, *, colon: bool) -> str | None:
    """Return the value in what follows "the answer is"; None if there is none."""
    content = _LEAD.sub("", content.strip())
    content = re.sub(r"^[$€£](?=\d[\d,.]*(?![\d,.]*[^$\n]*\$))", "", content)
    if not content:
        return None
    if FORMULA.match(content):
        return joined_formulas(content)
    sentence = without_asides(_first_sentence(content))
    bare = sentence.strip().strip("*_`").strip()
    if not bare or bare in "$\\" or _BOX_OPENS.fullmatch(bare) or _METHOD.match(bare):
        return None
    stated = re.search(rf"\bor,? exactly,? ({NUMBER.pattern})", bare)
    stated = stated or re.fullmatch(rf"[A-Za-z-]+ \(({NUMBER.pattern})\)", bare)  # seven (7)
    if len(sentence) < len(content) - 1:
        stated = stated or _CLOSING.search(content)
    if stated:
        return stated[1]
    foreign = OTHER_SCRIPT.search(bare)
    if foreign:  # 共有 42 个, 36 입니다
        number = NUMBER.search(bare)
        inner = FORMULA.search(bare)
        return joined_formulas(bare[inner.start() :]) if inner else number and number.group()
    if re.match(r"[-−+(\[{\\.\d√π∞±]|[a-zA-Z](?:\s*\([a-z]\))?\s*=|[A-Za-z]\s*[-+*/^<>]", bare):
        prose = _PROSE.search(bare) and not FORMULA.search(bare)
        return (concluded_value(bare) if prose else None) or _cut_comment(bare)
    inner = FORMULA.search(sentence)
    if inner:
        # "The largest $n$ is 34" and "the pair $(x, y)$ is $(7, 6)$" end in their value.
        if not WAVERING.search(sentence[: inner.start()]):
            return concluded_value(sentence)
        return None
    bare = re.split(r",?\s*\b(?:not|rather than|instead of)\b", bare)[0] or bare
    if WAVERING.search(bare) or REFUSAL.search(bare):
        return None
    numbers = list(NUMBER.finditer(bare))
    words = bare.split()
    if numbers and len(words) > 3:
        return concluded_value(bare) or numbers[-1].group()
    if len(words) <= (8 if colon else 6):
        return (
            re.split(r"\s+(?:because|since|as|which)\b|,\s", bare)[0]
            if not re.search(r"\d|, and|,.*,", bare)
            else bare
        )
    return None


def _first_sentence(content: str) -> str:
    for end in _SENTENCE_END.finditer(content):
        # A formula may hold full stops and line ends.
        opened = len(re.findall(r"(?<!\\)\$", content[: end.start()])) % 2
        if not opened and content[: end.start()].count(r"\(") == content[: end.start()].count(
            r"\)"
        ):
            return content[: end.start()]
    return content


def _cut_comment(text: str) -> str:
    """Drop the remark behind a value: "42, because …"."""
    return _COMMENT.sub("", text).replace("**", "").strip()
