"""Finding the final answer in the response to a mathematical problem.

In this order:

1. The last box (``\\boxed``, ``\\fbox``, ``\\framebox``). Boxes that only a comma, "and" or "or"
   separates are one answer; so are the last n boxes where the gold answer has n parts.
2. The last statement that names itself the answer ("the answer is …", "Answer: …", "#### …",
   "final answer is $…$. I hope it is correct"), which also wins over a box further up.
3. The conclusion: the last formula or number of the last line, if that line is nothing else, or
   is a sentence that concludes ("so x = 5", "There are 12 ways."); the items of a closing list of
   solutions; where the gold answer is a word, what stands in bold or behind the last "is".

Where a response goes on to a next problem of its own, only what stands before that counts.
A response that was cut off has a final answer only by 1 or 2, in full.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from deft.evaluators.grading.brackets import read_group
from deft.evaluators.grading.math.latex import MAX_ANSWER
from deft.evaluators.grading.math.units import is_unit, number_word
from deft.evaluators.grading.responses import before_next_problem

MAX_BOXES = 60
"""Boxes that are looked at, from the last one back."""
MAX_SENTENCE = 1000
"""Characters of a closing sentence that are looked at."""


@dataclass(frozen=True)
class Found:
    """A final answer."""

    text: str
    explicit: bool
    """Whether the response says that this is its answer; else it is what it concludes with."""


@dataclass(frozen=True)
class _Box:
    start: int
    end: int
    content: str
    closed: bool


_BOX = re.compile(
    r"(?:\\?boxed|\x08oxed|\\?fbox|\\?framebox)(?![a-zA-Z])\s*(?:\[[^\[\]]{0,20}\]\s*)*"
)


def find_answer(response: str, parts: int = 1, *, worded: bool = False) -> Found | None:
    """The final answer of ``response``.

    Args:
        response: what the model said to its reader.
        parts: how many parts the gold answer has, which decides whether several boxes are one
            answer.
        worded: whether the gold answer is a word, as against a number or a formula.
    """
    first = before_next_problem(response)
    return (
        (_explicit_answer(first, parts) if first != response else None)
        or _explicit_answer(response, parts)
        or (_concluded_word(response) if worded else None)
        or _conclusion(response)
    )


def _explicit_answer(response: str, parts: int) -> Found | None:
    boxes = _boxes(response)
    stated = _stated_answer(response, after=boxes[-1].end if boxes else 0)
    if stated is None and boxes:
        return Found(_joined(response, boxes, parts), explicit=boxes[-1].closed)
    return stated


# --- boxes


def _boxes(text: str) -> list[_Box]:
    """The last boxes of a text, in order; a box within a box is part of its content."""
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
    return boxes


_BOX_OPENS = re.compile(rf"[$\\(\[\s]*(?:{_BOX.pattern})\{{?")
_BOX_TOKEN = re.compile(r"\\?[a-zA-Z]+(?:\{[^{}]*\})*|-?[\d.,/]+|\S")
_PLACEHOLDER = re.compile(r"\s*(?:\\text\{\s*\}|\?+|\.\.\.|\\[dl]?dots|(?:\\boxed)?\{\s*\})\s*")


def _unclosed(content: str) -> str:
    """What a box without end holds: up to the end of the formula or of the line."""
    end = re.search(r"\$|\\\]|\\\)|\n", content)
    return content[: end.start()] if end else content


_CONNECTIVE = re.compile(
    r"(?:\s|\$|\\[()\[\],;!]|,|;|\\(?:quad|qquad)|\\text\{\s*(?:and|or|,)\s*\}|\band\b|\bor\b|&"
    r"|[a-zA-Z](?:_\{?\w\}?)?\s*=)*"
)


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


# --- statements


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
    | ^\s*[\#*_]*\s*(?:final\s+)?answer\s*[*_:\s]*\n+(?P<heading>[^\n]+(?:\n(?!\s*\n)[^\n]*)?)
    """,
    re.IGNORECASE | re.VERBOSE | re.MULTILINE,
)
# Dollars around a formula touch it from within, and no digit follows the second: else it is money.
_MATH = re.compile(
    r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)"
    r"|(?<![\\\d$])\$(?![\s$])((?:\\.|[^$\\\n])*?(?:\\.|[^$\\\n\s]))\$(?!\d)",
    re.DOTALL,
)
_NUMBER = re.compile(
    r"(?<![\w.\\])[-−+]?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
    r"(?:\s*[eE][-+]?\d+)?(?:\s?/\s?\d+(?!\d*(?:/|\.\d)))?(?:\s*(?:\\?%|°|percent\b))?"
)
_WAVERING = re.compile(
    r"\b(?:not|n't|isn't|cannot|can't|unless|if|whether|unknown|unclear|incorrect|wrong|close to|"
    r"somewhere|between|less than|greater than|more than|at least|at most|either)\b",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"\b(?:cannot|can't|can not|unable|not sure|don't know|do not know|not possible|impossible to"
    r"|unsure|no idea|stuck|give up|not enough information|insufficient|sorry|let me know|"
    r"i would need|i need more|uncertain)\b",
    re.IGNORECASE,
)
_CHECKING = re.compile(
    r"\b(?:check|checking|verify|verifying|confirm|confirming)\b[^.\n]*$", re.IGNORECASE
)


def _stated_answer(response: str, after: int) -> Found | None:
    """The last statement behind ``after`` that gives an answer."""
    for match in reversed(list(_STATEMENT.finditer(response, max(0, after - 1)))):
        if match.start() < after or _CHECKING.search(
            response, max(0, match.start() - 40), match.start()
        ):
            continue
        if match["hashes"] is not None:
            return Found(match["hashes"].strip(), explicit=True)
        if match["heading"] is not None:
            content = match["heading"]
        else:
            content = match["rest"]
            loose = "=" in match["link"] and not match["final"]
            if after and (loose or not _says_a_value(content)):
                continue
        text = _statement_value(content, colon=":" in (match["link"] or ":"))
        if text is not None:
            return Found(text, explicit=True)
    return None


def _says_a_value(content: str) -> bool:
    """Whether what follows "the answer is" begins with a value, as against a remark about it."""
    return (
        re.match(
            r"\s*(?:\*\*|now |therefore |thus )*(?:\$|\\\(|\\\[|\\frac|\\sqrt|[-−]?\.?\d)", content
        )
        is not None
    )


_SENTENCE_END = re.compile(r"(?<=[^\s\d.])\.(?=\s|$)|(?<=\d)\.(?=\s|$)|\n|(?<=[a-z)])[!?](?=\s|$)")
_LEAD = re.compile(
    r"^(?:(?:(?:as follows|given by|below|found to be|simply|thus|therefore|then|likely|"
    r"probably|approximately|"
    r"about|"
    r"exactly|just|now|actually|indeed|equal to)(?![a-zA-Z])|:|\*\*|[~≈])[\s:]*)+",
    re.IGNORECASE,
)


def _statement_value(content: str, *, colon: bool) -> str | None:
    """The value in what follows "the answer is"; None if there is none."""
    content = _LEAD.sub("", content.strip())
    if not content:
        return None
    formula = _MATH.match(content)
    if formula:
        return _formulas(content)
    sentence = _first_sentence(content)
    bare = sentence.strip().strip("*_`").strip()
    if not bare or bare in "$\\" or _BOX_OPENS.fullmatch(bare) or _METHOD.match(bare):
        return None
    if re.match(r"[-−+(\[{\\.\d√π∞±]|[a-zA-Z](?:\s*\([a-z]\))?\s*=|[A-Za-z]\s*[-+*/^<>]", bare):
        return _cut_comment(bare)
    inner = _MATH.search(sentence)
    if inner:
        if _WAVERING.search(sentence[: inner.start()]):
            return None
        return _formulas(sentence[inner.start() :])
    bare = re.split(r",?\s*\b(?:not|rather than|instead of)\b", bare)[0] or bare
    if _WAVERING.search(bare) or _REFUSAL.search(bare):
        return None
    numbers = list(_NUMBER.finditer(bare))
    words = bare.split()
    if numbers and len(words) > 3:
        return numbers[0].group() if len(numbers) == 1 else numbers[-1].group()
    if len(words) <= (8 if colon else 6):
        return (
            re.split(r"\s+(?:because|since|as|which)\b|,\s", bare)[0]
            if not re.search(r"\d|, and|,.*,", bare)
            else bare
        )
    return None


_METHOD = re.compile(r"(?:found|obtained|calculated|computed|determined|derived)\s+by\b")


def _first_sentence(content: str) -> str:
    for end in _SENTENCE_END.finditer(content):
        # A formula may hold full stops and line ends.
        opened = len(re.findall(r"(?<!\\)\$", content[: end.start()])) % 2
        if not opened and content[: end.start()].count(r"\(") == content[: end.start()].count(
            r"\)"
        ):
            return content[: end.start()]
    return content


_COMMENT = re.compile(
    r"\s*,?\s*\(?\b(?:because|since|as (?:the|we|it|required|desired)|which|where|so that|so|"
    r"from|by|"
    r"using|after|when|therefore|hence|thus|but|not|rather|i hope|obtained)\b.*$"
    r"|\s\((?!mod\b)(?=[^()]*[a-z]{2} [a-z]{2})[^()]*\)$",
    re.IGNORECASE | re.DOTALL,
)


def _cut_comment(text: str) -> str:
    """Drop the remark behind a value: "42, because …"."""
    return _COMMENT.sub("", text).replace("**", "").strip()


def _formulas(text: str) -> str:
    """The formula at the start of ``text``, with those that "and", "or" or a comma adds to it."""
    match = _MATH.match(text)
    assert match is not None
    values = [_content(match)]
    position = match.end()
    while True:
        link = re.compile(r"\s*(?:,\s*(?:and|or)?|;|\band\b|\bor\b)\s*").match(text, position)
        following = _MATH.match(text, link.end()) if link else None
        if link is None or following is None:
            break
        values.append(_content(following))
        position = following.end()
    if len(values) == 1:
        unit = re.compile(
            r"\s*(%|percent\b|degrees?\b|°"
            r"|[a-zA-Z]+(?:\^?\d)?(?: [a-z]+)?(?=[.,;]?\s*$|[.,;]\s|\*\*))"
        ).match(text, position)
        if unit and not _WAVERING.search(unit[1]):
            return (
                rf"{values[0]} \text{{{unit[1]}}}" if unit[1] not in "%°" else values[0] + unit[1]
            )
        return values[0]
    return ", ".join(value.strip().rstrip(".,") for value in values)


# --- conclusions


_PLANNING = re.compile(
    r"^\W*(?:problem|question|find|compute|evaluate|calculate|determine|solve|simplify|prove|"
    r"show)\b|"
    r"^(?:the (?:question|problem) is|let|now,? (?:let|we need)|next|first|suppose|assume|"
    r"consider|step|recall|note that|"
    r"remember|"
    r"we (?:need|want|must|have) to|i (?:will|need|would))\b|\b(?:let me|let's|let us|we will|i'll|"
    r"maybe|perhaps|might|we should|we could|to go on|to proceed|then we (?:can|need)|"
    r"the (?:question|problem) (?:asks|says)(?![^.]*\bwhich (?:is|equals)\b))\b",
    re.IGNORECASE,
)
_CIRCUMSTANCE = re.compile(
    r"\b(?:in|after|for|per|on|at|of|from|by|every|with|than|within|during|over|if|when|all|these|"
    r"those|each)\s+(?:the\s+|all\s+|these\s+|those\s+|of\s+)*(?:\w+\s+)?$",
    re.IGNORECASE,
)
_DISPLAY_END = re.compile(r"\$\$|\\\]|\\end\{(?:align|equation|gather)\w*\*?\}(?:\s*\$\$)?")
_UNFINISHED = re.compile(
    r"[:,+*/=(?]$|\b(?:and|or|until|the|an?|of|is|to|that|with|by|we|so|which|then|for|in|as|if|"
    r"are|have|from|because|but|get|where|when|since|let|equals|gives|yields|obtain)$",
    re.IGNORECASE,
)
"""It was about to go on, or asks."""
_YES_NO = re.compile(r"\W*(yes|no|true|false)\b(?=\W*[*,.:])", re.IGNORECASE)
_BOLD = re.compile(r"(?:\*\*|__)([^*_\n]{1,60}?)(?:\*\*|__)\W*$")
_PREDICATE = re.compile(
    r"\b(?:is|are|was|be|becomes|equals|called)\s+(?:an?\s+|"
    r"the\s+)?([a-zA-Z][a-zA-Z' -]{0,40})\W*$",
    re.IGNORECASE,
)
_DATE = re.compile(r"\b(?:on|in)\s+(?:a\s+)?([A-Z][a-z]+)\W*$")


def _concluded_word(response: str) -> Found | None:
    """The word that the last line ends with in bold, or says that something is."""
    last = response.rstrip().rpartition("\n")[2].strip()
    if _REFUSAL.search(last) or _WAVERING.search(last) or _PLANNING.search(last):
        return None
    said = (
        _YES_NO.match(last) or _BOLD.search(last) or _PREDICATE.search(last) or _DATE.search(last)
    )
    return Found(said[1].strip(), explicit=False) if said else None


_LIST_ITEM = re.compile(r"(?:[-*•]|\d+[.)]|\([a-z]\))\s+(\S.*)")
_LIST_OPENS = re.compile(
    r"\b(?:solutions?|roots?|answers?|values?|zeros|results?)\b.*:$", re.IGNORECASE
)


def _listed_solutions(lines: list[str]) -> str | None:
    """The items of the list that a response ends in, if it is announced as one of solutions."""
    items: list[str] = []
    for line in reversed(lines):
        item = _LIST_ITEM.fullmatch(line)
        if item is None or not _is_bare_value(item[1].strip("*_ ")):
            opens = _LIST_OPENS.search(line.strip("*_ "))
            return ", ".join(reversed(items)) if opens and len(items) > 1 else None
        items.append(item[1].strip("*_$ ").rstrip(".,;").strip("$"))
    return None


def _conclusion(response: str) -> Found | None:
    lines = [line.strip() for line in response.split("\n") if line.strip(" *_-#`>\t")]
    if not lines:
        return None
    listed = _listed_solutions(lines)
    if listed:
        return Found(listed, explicit=False)
    last = re.sub(
        r"^(?:\d+[.)]\s+(?=\S)|(?:So|Thus|Hence|Therefore|Then),?\s+(?=[-\d$\\(])|(?:A|Ans|Result|Total|Sum|Solution)\s*:\s*)",
        "",
        lines[-1].strip("*_` "),
    )
    if _DISPLAY_END.fullmatch(last):
        block = _last_display(response)
        return Found(block, explicit=False) if block else None
    if _REFUSAL.search(last) or (len(last) < 40 and _REFUSAL.search(" ".join(lines[-2:]))):
        return None
    if _UNFINISHED.search(last):
        return None
    if _is_bare_value(last):
        return Found(last, explicit=False)
    for sentence in reversed(re.split(r"(?<=[.!?])\s+(?=[A-Z\\$])", last)):
        value = _concluded_value(sentence)
        if value is not None:
            return Found(value, explicit=False)
        if re.search(r"\d", sentence) or _WAVERING.search(sentence) or _PLANNING.search(sentence):
            return None
    return None


def _last_display(response: str) -> str | None:
    displays = [m for m in _MATH.finditer(response) if m.group().startswith(("$$", r"\["))]
    if displays:
        return _last_step(_content(displays[-1]))
    environment = re.search(
        r"\\begin\{((?:align|equation|gather)\w*\*?)\}(.*?)\\end\{\1\}\s*$", response, re.DOTALL
    )
    return _last_step(environment[2]) if environment else None


def _last_step(display: str) -> str:
    """The last line of a display; a matrix stays whole."""
    display = re.sub(r"\\(?:begin|end)\{(?:align|equation|gather|split)\w*\*?\}", "", display)
    if "matrix" in display or "array" in display:
        return display.strip()
    steps = [step for step in display.split(r"\\") if step.strip(" &\n")]
    return steps[-1].replace("&", "").strip() if steps else ""


def _is_bare_value(line: str) -> bool:
    """Whether a line is a value and nothing else: ``42``, ``x = 5``, ``$\\frac{1}{2}$``."""
    if not line or len(line) > 200:
        return False
    if _MATH.search(line):
        return _MATH.fullmatch(line.rstrip(".,")) is not None
    line = re.sub(r"\\(?:boxed|fbox|framebox)\s*\{\s*\}", "", line)
    stripped = re.sub(r"\\[a-zA-Z]+|\b[a-zA-Z]\b", "", line)
    if re.search(r"[a-zA-Z]{4,}", stripped) or len(re.findall(r"[a-zA-Z]{2,}", stripped)) > 1:
        return False
    return re.search(r"[\d\\π∞]", line) is not None and not re.match(r"\(?\d+[.)]\s*$", line)


_WHERE = re.compile(
    r"\s*[,(]?\s*\b(?:attained|achieved|reached|occurs|occurring|when|where|at which|"
    r"for which)\b.*$",
    re.IGNORECASE | re.DOTALL,
)


def _concluded_value(sentence: str) -> str | None:
    """What a closing sentence says: behind its last "=", its last formula, or its number."""
    if (
        _REFUSAL.search(sentence)
        or _PLANNING.search(sentence)
        or sentence.rstrip(" *").endswith("?")
    ):
        return None
    sentence = " ".join(sentence.split())
    where = _WHERE.search(sentence)
    # "5, attained at x = 2" says 5; "when he drops three, 7 − 3 = 4" says 4.
    if where and not re.search(r"[\d)]\s*=", where.group()):
        before = re.sub(r",?\s*\b(?:so|and|then)$", "", sentence[: where.start()])
        sentence = before if re.search(r"\d|\\[a-z]", before) else sentence
    formulas = [f for f in _MATH.finditer(sentence) if not _NAME.fullmatch(_content(f))]
    named = _number_behind(sentence, formulas[-1].end()) if formulas else None
    if named is not None:
        return named
    if formulas:
        # Formulas joined by "and" are one answer; else the last one is.
        first = formulas[-1]
        for formula in reversed(formulas[:-1]):
            between = sentence[formula.end() : first.start()]
            if not re.fullmatch(r"\s*(?:,|,?\s*(?:and|or))\s*", between):
                break
            first = formula
        return _formulas(sentence[first.start() :])
    sentence = _MATH.sub(lambda m: m.group() if "=" in m.group() else "", sentence)
    sentence = sentence.replace("**", "")
    _, equals, behind = sentence.rpartition("=")
    if equals:
        behind = behind.strip().rstrip(".")
        if _is_bare_value(behind):
            return behind
        leading = re.match(rf"[\s$€£]*({_NUMBER.pattern})", behind)
        return leading[1].strip() if leading else None
    point = _POINT.search(sentence)
    if point:
        return point[1]
    listed = _NUMBERS_LISTED.search(sentence)
    if listed:
        return listed[1]
    said = re.search(r"\b(?:is|are|equals|gives|get|obtain|be)\s+([^,;]+?)\.?$", sentence)
    if said and _is_bare_value(said[1]):
        number = _NUMBER.match(said[1])
        unit = _unit_behind(said[1], number.end()) if number else ""
        return number.group() + unit if number and unit else said[1]
    numbers = list(_NUMBER.finditer(sentence[-MAX_SENTENCE:]))
    sentence = sentence[-MAX_SENTENCE:]
    if len(numbers) > 1:
        main = [n for n in numbers if not _is_circumstance(sentence[: n.start()].rstrip("$€£"))]
        numbers = main or numbers
    if not numbers:
        words = (_COUNTED.search(sentence), _PREDICATE.search(sentence))
        spelled = [n for word in words if word for n in [number_word(word[1])] if n is not None]
        return str(spelled[0]) if spelled and not _WAVERING.search(sentence) else None
    if _WAVERING.search(sentence[: numbers[-1].start()]):
        return None
    return numbers[-1].group().strip() + _unit_behind(sentence, numbers[-1].end())


_COUNTED = re.compile(
    r"\bthere (?:are|is)\s+(?:exactly |only |a total of )?([a-z]+(?:-[a-z]+)?)\b", re.IGNORECASE
)
_MEASURE = re.compile(
    r"\b(?:increase|decrease|change|total|sum|difference|area|volume|length|distance|speed|rate|"
    r"probability|chance|profit|loss|value|average|perimeter|age|cost)\s+of\s+(?:only\s+)?$",
    re.IGNORECASE,
)


def _is_circumstance(before: str) -> bool:
    """Whether what stands ahead of a number makes it a circumstance of the answer."""
    return _CIRCUMSTANCE.search(before) is not None and _MEASURE.search(before) is None


_UNIT_WORDS = re.compile(
    r"\s*((?:square |cubic )?(?:[a-zA-Z]{3,}|cm|mm|km|kg|mg|mL|ml|ft|m(?=/s))"
    r"(?: (?:squared|cubed)\b| per [a-z]+|/[a-z]+)?)(?![a-zA-Z^/])"
)


def _unit_behind(sentence: str, position: int) -> str:
    """The unit that stands behind a number, as text; things that are counted are none."""
    words = _UNIT_WORDS.match(sentence, position)
    return rf" \text{{{words[1]}}}" if words and is_unit(words[1]) else ""


_NAME = re.compile(r"\s*(?!\\pi\b|\\infty\b)\\?[a-zA-Z]+(?:_\{?\w+\}?)?(?:\([a-z]\))?\s*")
_POINT = re.compile(
    rf"(?<![a-zA-Z])([(\[]\s*{_NUMBER.pattern}(?:\s*,\s*{_NUMBER.pattern}){{1,10}}\s*[)\]])\W*$"
)
_NUMBERS_LISTED = re.compile(
    rf"(?:\b(?:is|are|be|namely)|:)\s+"
    rf"((?:{_NUMBER.pattern}(?:,\s*(?:and\s+|or\s+)?|\s+(?:and|or)\s+)){{1,20}}{_NUMBER.pattern})\.?$"
)


def _number_behind(sentence: str, position: int) -> str | None:
    """The number that a sentence says its last formula is: "$x + y$, which equals 21"."""
    found = re.compile(
        r"[^.=]{0,80}?\b(?:is|are|equals|be|was|measures)\s+(?:\w+\s+)?" + f"({_NUMBER.pattern})"
    ).match(sentence, position)
    return found[1].strip() if found else None


def _content(match: re.Match[str]) -> str:
    """What stands between the delimiters of a formula."""
    return next(group for group in match.groups() if group is not None)
