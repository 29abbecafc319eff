"""What a response to a mathematical problem concludes with, where it names no answer as such."""

from __future__ import annotations

import re
from dataclasses import dataclass

from deft.evaluators.grading.brackets import is_balanced
from deft.evaluators.grading.math.quantities import is_unit, number_word

MAX_SENTENCE = 1000
"""Characters of a closing sentence that are looked at."""
# Dollars around a formula touch it from within, and no digit follows the second: else it is money.
FORMULA = re.compile(
    r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)|(?<![\\\d$])\$(?![\s$])((?:\\.|[^$\\\n])*?(?:\\."
    r"|[^$\\\n\s]))\$(?!\d)|(?<![\\\d$])\$ +([^$\n]{0,300}?\\[a-zA-Z][^$\n]{0,600}?"
    r"|[-\d.,/a-zA-Z=+^()<>]{1,40}) +\$(?!\d)",
    re.DOTALL,
)
NUMBER = re.compile(
    r"(?<![\w.\\])(?:\d{1,2}:\d\d(?![\d:])(?:\s?[ap]\.?m\b\.?)?|\d{1,2}\s[ap]\.?m\b\.?"
    r"|[-−+]?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|[1-9]\d{0,2}(?: \d{3})+(?![\d.,]\d|\d)"
    r"|\d{1,4} \d{1,2}/\d{1,3}(?![\d/])|(?<!\d,)\d+,\d{1,2}(?![,\d])|\d+(?:\.\d+)?|\.\d+)"
    r"(?:\s*[eE][-+]?\d+)?(?:\s?/\s?\d+(?!\d*(?:/|\.\d)))?(?:\s*(?:\\?%|°|percent\b))?"
    r"(?!\d*(?:st|nd|rd|th)\b))",
    re.IGNORECASE,
)
"""A time of day, or a number with its groups of digits, as a mixed number, a fraction, a share."""
OTHER_SCRIPT = re.compile(
    "[\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u0400-\u1fff\u2e80-\ud7ff\uf900-\ufdff\ufe70-\ufeff]"
)
"""A letter with an accent, or of another script than Latin and Greek."""
WAVERING = re.compile(
    r"\b(?:not|n't|isn't|cannot|can't|unless|if|whether|unknown|unclear|incorrect|wrong|close to|"
    r"somewhere|between|less than|greater than|more than|(?:is|are|be) at (?:least|most)|either)\b",
    re.IGNORECASE,
)
REFUSAL = re.compile(
    r"\b(?:cannot|can't|can not|unable|not sure|don't know|do not know|not possible|impossible to"
    r"|unsure|no idea|stuck|give up|not enough information|insufficient|sorry|let me know|"
    r"i would need|i need more|uncertain|i only see|please (?:provide|send|share|clarify))\b",
    re.IGNORECASE,
)
_PLANNING = re.compile(
    r"^\W*(?:problem|question|find|compute|evaluate|calculate|determine|solve|simplify|prove"
    r"|show)\b|^(?:the (?:question|problem) is|let|now,? (?:let|we need)|next|first|suppose|assume"
    r"|consider|step|recall|note that|remember|we (?:need|want|must|have) to|i (?:will|need"
    r"|would))\b|\b(?:let me|let's|let us|we will|i'll|maybe|perhaps|might|we should|we could"
    r"|to go on|to proceed|then we (?:can|need)|the (?:question|problem) (?:asks"
    r"|says)(?![^.]*(?:\bwhich (?:is|equals)\b|, (?:so|that is|i\.e)\b)))\b",
    re.IGNORECASE,
)
_INSTRUCTION = re.compile(
    r"^(?:(?:with|given|using|for|from|then|now|finally)\b[^,]*, )?(?:just |simply )?(?:plug|use"
    r"|apply|substitute|multiply|divide|add|subtract|set up|take|you (?:can|should|need to))\b"
    r"(?!.*[=≈])(?!.*\b(?:gives?|get|is|are|be) \W?\d)",
    re.IGNORECASE,
)
"""What the reader is to do, without a result."""
_CIRCUMSTANCE = re.compile(
    r"\b(?:in|after|for|per|on|at|of|from|by|every|with|than|within|during|over|if|when|all|these"
    r"|those|each)\s+(?:the\s+|all\s+|these\s+|those\s+|of\s+)*(?:(?!gives?\b|makes?\b|needs?\b"
    r"|is\b|are\b|has\b|gets?\b|costs?\b)\w+\s+)?$"
    r"|(?<!need )(?<!needs )(?<!has )(?<!have )(?<!able )\bto\s+(?!about|approx|exactly|roughly"
    r"|nearly|only|be\b|get|equal|reach|total|around|just)[a-z]+\s+(?:(?:the|all|her|his|their"
    r"|these)\s+)?$",
    re.IGNORECASE,
)
_UNFINISHED = re.compile(
    r"[:,+*/=(?]$|\b(?:and|or|until|the|an?|of|is|to|that|with|by|we|so|which|then|for|in|as|if|"
    r"are|have|from|because|but|get|where|when|since|let|equals|gives|yields|obtain)$",
    re.IGNORECASE,
)
"""It was about to go on, or asks."""
_YES_NO = re.compile(r"\W*(yes|no|true|false)\b(?=\W*[*,.:])", re.IGNORECASE)
_BOLD = re.compile(r"(?:\*\*|__)([^*_\n]{1,60}?)(?:\*\*|__)(?: [a-z]+)?\W*$")
_PREDICATE = re.compile(
    r"\b(?:is|are|was|be|becomes|equals|called)\s+(?:on\s+)?(?:an?\s+|"
    r"the\s+)?([a-zA-Z][a-zA-Z' -]{0,40})\W*$",
    re.IGNORECASE,
)
_DATE = re.compile(r"\b(?:on|in)\s+(?:a\s+)?([A-Z][a-z]+(?: \d{1,2})?)(?:st|nd|rd|th)?\W*$")
_LIST_ITEM = re.compile(r"(?:[-*•]|\d+[.)]|\([a-z]\))\s+(\S.*)")
_LIST_OPENS = re.compile(
    r"\b(?:solutions?|roots?|answers?|values?|zeros|results?)\b.*:$", re.IGNORECASE
)
_REMARK = re.compile(
    r"(?:\d+[.)]\s*)?\W*(?:(?:double[- ]?)?check(?:ing|ed|s)?|verif(?:y|ication|ying|ied)|(?:to"
    r"|let me|let's|let us|just to) (?:quickly )?(?:double[- ]?)?(?:check|verify|confirm)|i(?:'m"
    r"| am) (?:\w+ )?(?:confident|sure|certain)|(?:we|you|i) (?:can )?(?:also )?(?:check|verify)"
    r"|confidence|assumptions?|great job|good luck|well done|congratulations|time(?: taken)?"
    r"|notes?|remarks?|explanation|justification|reason(?:ing)?|done|qed"
    r"|step[- ]by[- ]step|where \S{1,12} (?:is|are|denotes?|represents?)|(?:you|we"
    r"|i) (?:can )?(?:get|got|find|found) (?:this|that|it) by|q\.e\.d|that's it|indeed"
    r"|as (?:required|desired)|it(?:'s| is) worth noting|(?:this|that|it"
    r"|which) (?:is (?:an? (?:classic|simple|basic|common)|because|less|more|greater|smaller|within"
    r"|valid|consistent|correct|in)\b|(?:matches|agrees|satisfies|checks|confirms"
    r"|makes sense)))\b(?!\s*(?:=|≈))",
    re.IGNORECASE,
)
"""What speaks about the answer after it was given."""
_CONCLUDES = re.compile(r"\W*(?:so|thus|hence|therefore|answer|final(?:ly)?)\b", re.IGNORECASE)
_OPENING_WORDS = re.compile(
    r"^(?:[→⇒▶►>]+\s*|\d+[.)]\s+(?=\S)|(?:So|Thus|Hence|Therefore|Then|In conclusion|Finally),?\s+"
    r"(?=[-\d$\\(]|[a-z]+(?:-[a-z]+)?\.?$)"
    r"|(?:A|Ans|Result|Total|Sum|Solution|Remainder)\s*[:.]\s*(?=\S))",
)
_BOLD_PHRASE = re.compile(r"\*\*(\$?[^*$\n]{1,60})\*\*(?!\s*[:=])")
_BOLD_VALUE = re.compile(rf"\W*{NUMBER.pattern}(?: [a-zA-Z]+){{0,3}}\W*|\d+ to \d+", re.IGNORECASE)
_SENTENCE_GAP = re.compile(
    r"(?<=[.!?])\s+(?=[A-Z\\$(])|(?<=[a-z][.!?])(?<!\.[a-z]\.)\s+(?=\d)|(?<=。)(?=.)"
)
_BRACKETED = re.compile(r"\([^()]*\)\W*")
_TWO_CLAUSES = re.compile(r"\b[Ss]o\b|\d[.!?]\s+[A-Z][a-z]")
_WHERE = re.compile(
    r"\s*[,(]?\s*\b(?:attained|achieved|reached|occurs(?! is\b)|occurring|when|where|at which|"
    r"for which|for (?:every|all|any) \$?[a-z])\b.*$",
    re.IGNORECASE | re.DOTALL,
)
_ASIDE = re.compile(
    r"\s*(?<!\\)\((?!\s*(?:mod|base)\b)(?:[^()]*?[a-zA-Z]{3,}|\s*or\b|i\.e|=|≈|[\d.]+\\?%"
    r"|[\d.,]+ [a-zA-Z]{1,3}(?=\)))[^()]*\)"
)
_TRAILING_REMARK = re.compile(
    r"\s*(?:[,;:]|\s[—–-]+)\s*(?:since|because|including|as (?:the|we|it|\d)|i\.e\.|that is,"
    r"|and not\b|not\b|done\b|enough\b|up from\b|down from\b|while\b|whereas\b|(?:we |the other"
    r"|the negative|the root)[^.]*?(?:discard|reject)|which is (?:\S+ ){0,3}(?:less|more|fewer"
    r"|greater|larger|smaller|the (?:number|same|sum|total|product|difference|result|amount))\b).*$"
    r"|\s*;[^;]*\b(?:does not|doesn't|rejected|discarded|extraneous|invalid)\b.*$"
    r"|(?<=[\d$])\s*,?\s*(?:since|because)\b.*$|,\s+(?:bringing|with (?:each|every))\b.*$",
    re.IGNORECASE,
)
_RESTATED = re.compile(r"(?:,|\s[–—-]+)\s*i\.e\.,?\s+(\S[^;]*?)\.?$", re.IGNORECASE)
_CONDITION = re.compile(
    r"^(?:[Ii]f|[Ww]hen|[Ss]ince|[Bb]ecause|[Aa]s)\b[^,;]{1,120},\s+(?!.*\bwould\b)"
)
_HOW_MANY = re.compile(
    rf"(.*\b(?:there (?:are|is|were)|has|have)\s+{NUMBER.pattern}(?: [a-z]+| \$[a-z]\$){{1,5}})"
    r":[^=]*$",
    re.IGNORECASE,
)
_CORRECTED = re.compile(
    r"\b(?:is not|isn't|not)\s+[^;,.]{1,30}?[;,]?\s+((?:it's|it is|but(?: rather)?)\s.*)$",
    re.IGNORECASE,
)
_COMPOUND = re.compile(
    r"\b\d+ (?:days?|h(?:ours?|rs?)?|min(?:utes?)?|feet|foot|dollars?|pounds?|meters?)(?:,? and"
    r"|,)? \d+ (?:h(?:ours?|rs?)?|min(?:utes?)?|s(?:ec(?:onds?)?)?|inch(?:es)?|cents?|ounces?"
    r"|cm)\b",
    re.IGNORECASE,
)
"""One quantity in two units."""
_CHUNK = (
    r"(?:\d+(?:,\d{3})*(?:\.\d+)?|[π∞√∛⁰¹²³⁴-⁹ⁿ½¼¾θ°()\[\]^!|]|(?<![a-zA-Z])(?:sqrt|sin|cos|tan|log"
    r"|ln|pi|exp)(?![a-zA-Z])|(?<![a-zA-Z'’])[a-zA-Z](?![a-zA-Z'’])"
    r"|(?!and|or)(?<![a-zA-Z])[a-zA-Z]{2,3}(?=[/^*(])|(?<=[/*(])[a-zA-Z]{2,3}(?![a-zA-Z]))+"
)
_PLAIN_FORMULA = re.compile(rf"[-−+±]?{_CHUNK}(?:\s?[-−+±*/×·÷=<>≤≥≈≠]\s?[-−+]?{_CHUNK}){{0,40}}")
"""A formula that no delimiter marks: ``(7x - 5)``, ``3√13 ≈ 10.8``, ``mv/(qB)``."""
_COUNTED = re.compile(
    r"\b(?:there (?:are|is)|has)\s+(?:exactly |only |a total of )?([a-z]+(?:-[a-z]+)?)\b",
    re.IGNORECASE,
)
_MEASURE = re.compile(
    r"\b(?:increase|decrease|change|total|sum|difference|area|volume|length|distance|speed|rate|"
    r"probability|chance|profit|loss|value|average|perimeter|age|cost)\s+of\s+(?:only\s+)?$"
    r"|\b(?:end|start|begin|began|finish|arrive|leave|left|depart|meet|met|close|open|return|land)"
    r"(?:s|es|ed|d)? (?:\w+ )?at\s+$",
    re.IGNORECASE,
)
_COMPARED = re.compile(
    r"\s*(?:\w+ )?(?:(?:more|less|fewer|higher|lower|older|younger|later|earlier) than|after"
    r"|before)\b"
)
"""Behind a number that a comma sets off: ``350 points, 80 more than Bob``."""
_UNIT_WORDS = re.compile(
    r"\s*((?:square |cubic )?(?:[a-zA-Z]{3,}|cm|mm|km|kg|mg|mL|ml|ft|m(?=/s))"
    r"(?: (?:squared|cubed)\b| per [a-z]+|/[a-z]+)?)(?![a-zA-Z^/])"
)
_NAME = re.compile(r"\s*(?!\\pi\b|\\infty\b)\\?[a-zA-Z]+(?:_\{?\w+\}?)?(?:\([a-z]\))?\s*")
_RATIO = re.compile(r"\bratio\b.*?(?<![\d:])(\d+(?:(?:\s?:\s?| to )\d+){1,2})\W*$")
_ASSIGNMENTS = re.compile(
    rf"(?<![a-zA-Z\d])((?:[a-zA-Z]\s*=\s*{NUMBER.pattern}\s*(?:,\s*(?:and\s+)?|\band\s+))+"
    rf"[a-zA-Z]\s*=\s*{NUMBER.pattern})\s*\.?$"
)
_TOLD = re.compile(rf"[a-z]{{3}}: {NUMBER.pattern}(?: [a-z]+)?\W*$")
_END = rf"(?:{NUMBER.pattern}|[-−+]?∞)"
_POINT = re.compile(
    rf"(?<![a-zA-Z])([(\[]\s*{_END}(?:\s*,\s*{_END}){{1,10}}\s*[)\]])(?:\s[a-z]+){{0,3}}\W*$"
)
_NUMBERS_LISTED = re.compile(
    rf"(?:\b(?:is|are|be|namely)|:)\s+"
    rf"((?:{NUMBER.pattern}(?:,\s*(?:and\s+|or\s+)?|\s+(?:and|or)\s+)){{1,20}}{NUMBER.pattern})\.?$"
)


@dataclass(frozen=True)
class Found:
    """A final answer."""

    text: str
    explicit: bool
    """Whether the response says that this is its answer; else it is what it concludes with."""


def joined_formulas(text: str) -> str:
    """Return the formula that opens ``text``, with those that "and", "or" or a comma adds."""
    match = FORMULA.match(text)
    assert match is not None
    values = [_last_step(formula_content(match))]
    position = match.end()
    while True:
        link = re.compile(r"\s*(?:,\s*(?:and|or)?|;|\band\b|\bor\b)\s*").match(text, position)
        following = FORMULA.match(text, link.end()) if link else None
        if link is None or following is None:
            break
        values.append(formula_content(following))
        position = following.end()
    if len(values) == 1:
        unit = re.compile(
            r"\s*(%|percent\b|degrees?\b|°"
            r"|[a-zA-Z]+(?:\^?\d)?(?: [a-z]+)?(?=[.,;]?\s*$|[.,;]\s|\*\*))"
        ).match(text, position)
        if unit and not WAVERING.search(unit[1]):
            return (
                rf"{values[0]} \text{{{unit[1]}}}" if unit[1] not in "%°" else values[0] + unit[1]
            )
        return values[0]
    return ", ".join(value.strip().rstrip(".,") for value in values)


def concluded_word(response: str) -> Found | None:
    """Return the word that the last line sets in bold at its end, or says that something is."""
    last = response.rstrip().rpartition("\n")[2].strip()
    if REFUSAL.search(last) or WAVERING.search(last) or _PLANNING.search(last):
        return None
    predicate = (
        _YES_NO.match(last) or _BOLD.search(last) or _PREDICATE.search(last) or _DATE.search(last)
    )
    return Found(predicate[1].strip(), explicit=False) if predicate else None


def _listed_solutions(lines: list[str]) -> str | None:
    """Return the items of a list of solutions that a response ends in."""
    items: list[str] = []
    for line in reversed(lines):
        item = _LIST_ITEM.fullmatch(line)
        if item is None or not is_bare_value(item[1].strip("*_ ")):
            opens = _LIST_OPENS.search(line.strip("*_ "))
            return ", ".join(reversed(items)) if opens and len(items) > 1 else None
        items.append(item[1].strip("*_$ ").rstrip(".,;").strip("$"))
    return None


def bold_as_formula(line: str) -> str:
    """Write the one value that a line sets in bold as a formula: ``**4.5 hours** in all``."""
    values = [m for m in _BOLD_PHRASE.finditer(line) if _is_bold_value(m[1].strip())]
    if len(values) != 1 or values[0].end() == values[0].start() + len(line):
        return line
    bold = values[0]
    if "=" in line[bold.end() :] or FORMULA.search(line):
        return line
    return rf"{line[: bold.start()]}\({bold[1].strip().rstrip('.')}\){line[bold.end() :]}"


def _is_bold_value(text: str) -> bool:
    if re.fullmatch(r"\d+[.)]|.*:", text):
        return False  # the number of a step
    formula = _PLAIN_FORMULA.match(text)
    return _BOLD_VALUE.fullmatch(text) is not None or bool(formula and _is_formula(formula.group()))


def conclusion(response: str, *, listed: bool = False) -> Found | None:
    """Return the last formula or number of the last line that concludes.

    Where the gold answer is no list (``listed``), what is counted may be listed behind its number.
    """
    lines = [line.strip() for line in response.split("\n") if line.strip(" *_-#`>\t")]
    solutions = _listed_solutions(lines)
    if solutions:
        return Found(solutions, explicit=False)
    lines = _without_remarks(lines)
    if not lines:
        return None
    last = _OPENING_WORDS.sub("", lines[-1].strip("*_` "))[-MAX_SENTENCE:]
    last = re.sub(r"^<<\s*(.*?)\s*>>$", r"\1", last)
    if REFUSAL.search(last) or (len(last) < 40 and REFUSAL.search(" ".join(lines[-2:]))):
        return None
    if _UNFINISHED.search(last):
        return None
    if is_bare_value(last):
        display = FORMULA.fullmatch(last.rstrip(".,"))
        shown = display and display.group().startswith(("$$", r"\["))
        return Found(_last_step(formula_content(display)) if display and shown else last, False)
    for sentence in reversed(_SENTENCE_GAP.split(last)):
        if sentence != last and (_REMARK.match(sentence) or _BRACKETED.fullmatch(sentence)):
            continue
        counted = None if listed else _HOW_MANY.search(sentence)
        value = concluded_value(counted[1] if counted else sentence)
        if value is not None:
            return Found(value, explicit=False)
        if re.search(r"\d", sentence) or WAVERING.search(sentence) or _PLANNING.search(sentence):
            return None
    return None


def _without_remarks(lines: list[str]) -> list[str]:
    """Drop the lines at the end that check or comment on what was concluded before."""
    end = len(lines)
    for index in range(len(lines) - 1, max(len(lines) - 8, 0), -1):
        if _REMARK.match(lines[index]):
            end = index
        elif _CONCLUDES.match(lines[index]):
            break
    return lines[:end]


def _last_step(display: str) -> str:
    """Return the last line of a display; a matrix stays whole."""
    display = re.sub(r"\\(?:begin|end)\{(?:align|equation|gather|split)\w*\*?\}", "", display)
    if "matrix" in display or "array" in display or "cases" in display:
        before, begin, environment = display.partition(r"\begin")
        return (before.replace("&", "") + begin + environment).strip()
    steps = [step for step in display.split(r"\\") if step.strip(" &\n")]
    return steps[-1].replace("&", "").strip() if steps else ""


def is_bare_value(line: str) -> bool:
    """Check that a line is a value and nothing else: ``42``, ``x = 5``, ``$\\frac{1}{2}$``."""
    if not line or len(line) > 200 or OTHER_SCRIPT.search(line) or _TWO_CLAUSES.search(line):
        return False
    if FORMULA.search(line):
        return FORMULA.fullmatch(line.rstrip(".,")) is not None
    line = re.sub(r"\\(?:boxed|fbox|framebox)\s*\{\s*\}", "", line)
    stripped = re.sub(r"\\[a-zA-Z]+|\b[a-zA-Z]\b", "", line)
    if re.search(r"[a-zA-Z]{4,}", stripped) or len(re.findall(r"[a-zA-Z]{2,}", stripped)) > 1:
        return False
    return re.search(r"[\d\\π∞¼-¾⅐-⅞]", line) is not None and not re.match(r"\(?\d+[.)]\s*$", line)


def without_asides(sentence: str) -> str:
    """Drop parentheses in words, reasons, and what is turned down behind the answer."""
    formulas = [match.span() for match in FORMULA.finditer(sentence)]

    def outside(position: int) -> bool:
        return not any(start < position < end for start, end in formulas)

    restated = _RESTATED.search(sentence)
    if restated and re.search(r"[<>=≤≥]|\d/\d", restated[1]) and is_bare_value(restated[1]):
        return restated[1]
    remark = next((m for m in _TRAILING_REMARK.finditer(sentence) if outside(m.start())), None)
    if remark:
        before = sentence[: remark.start()]
        sentence = before if re.search(r"\d|\\[a-z]", before) else sentence
    return _ASIDE.sub(lambda m: "" if outside(m.start() + 1) else m.group(), sentence)


def concluded_value(sentence: str) -> str | None:
    """Return what a closing sentence says: behind its last "=", its last formula or number."""
    if (
        REFUSAL.search(sentence)
        or (_PLANNING.search(sentence) and not _TOLD.search(sentence))
        or _INSTRUCTION.search(sentence)
        or sentence.rstrip(" *").endswith("?")
    ):
        return None
    sentence = without_asides(" ".join(sentence.split()))
    claim = _CONDITION.sub("", sentence)
    sentence = claim if re.search(r"\d|\\[a-z]", claim) else sentence
    corrected = _CORRECTED.search(sentence)
    if corrected:
        sentence = corrected[1]
    compounds = list(_COMPOUND.finditer(sentence))
    if compounds and not NUMBER.search(sentence, compounds[-1].end()):
        return compounds[-1].group()
    where = _WHERE.search(sentence)
    # "5, attained at x = 2" says 5; "when he drops three, 7 − 3 = 4" says 4.
    if where and not re.search(r"[\d)]\s*=", where.group()):
        before = re.sub(r",?\s*\b(?:so|and|then)$", "", sentence[: where.start()])
        sentence = before if re.search(r"\d|\\[a-z]", before) else sentence
    formulas = [f for f in FORMULA.finditer(sentence) if not _NAME.fullmatch(formula_content(f))]
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
        return joined_formulas(sentence[first.start() :])
    sentence = FORMULA.sub(lambda m: m.group() if "=" in m.group() else "", sentence)
    sentence = sentence.replace("**", "")
    assigned = _ASSIGNMENTS.search(sentence)
    if assigned:
        return assigned[1]
    _, equals, behind = sentence.rpartition("=")
    if equals:
        behind = behind.strip().rstrip(".")
        if is_bare_value(behind):
            return behind
        plain = _PLAIN_FORMULA.match(behind)
        if plain and _is_formula(plain.group()):
            return plain.group()
        leading = NUMBER.match(behind.lstrip("$€£ "))
        return leading.group().strip() if leading else None
    for several in (_RATIO, _POINT, _NUMBERS_LISTED):
        if values := several.search(sentence):
            return values[1]
    predicate = re.search(r"\b(?:is|are|equals|gives|get|obtain|be)\s+([^,;]+?)\.?$", sentence)
    if predicate and is_bare_value(predicate[1]):
        number = NUMBER.match(predicate[1])
        unit = _unit_behind(predicate[1], number.end()) if number else ""
        return number.group() + unit if number and unit else predicate[1]
    numbers = list(NUMBER.finditer(sentence[-MAX_SENTENCE:]))
    sentence = sentence[-MAX_SENTENCE:]
    if len(numbers) > 1:
        main = [
            n
            for n in numbers
            if not _is_circumstance(before := sentence[: n.start()].rstrip("$€£"))
            and not (before.endswith(", ") and _COMPARED.match(sentence, n.end()))
        ]
        numbers = main or numbers
    if not numbers:
        words = (
            *(_COUNTED.search(sentence), _PREDICATE.search(sentence)),
            re.search(r"(?:^|,\s*)([a-zA-Z]+(?:[- ][a-zA-Z]+)?)\.?$", sentence),
        )
        spelled = [n for word in words if word for n in [number_word(word[1])] if n is not None]
        return str(spelled[0]) if spelled and not WAVERING.search(sentence) else None
    if WAVERING.search(sentence[: numbers[-1].start()]):
        return None
    start = numbers[-1].start()
    if around := _formula_around(sentence, start):
        return around
    money = r"\$" if sentence[start - 1 : start] == "$" else ""
    return money + numbers[-1].group().strip() + _unit_behind(sentence, numbers[-1].end())


def _is_formula(text: str) -> bool:
    """Check that a text is more than numbers, and all its brackets are closed."""
    return is_balanced(text) and re.search(r"[a-zA-Zπ√∛^²³<>≤≥∞]", text) is not None


def _formula_around(sentence: str, position: int) -> str | None:
    """Return the plain formula that a number is part of, and what "or" joins to it."""
    formulas = [m for m in _PLAIN_FORMULA.finditer(sentence) if m.start() <= position + 1]
    if not formulas or formulas[-1].end() <= position or not _is_formula(formulas[-1].group()):
        return None
    first = last = formulas.pop()
    while formulas and re.fullmatch(
        r"\s*(?:,|,?\s*(?:and|or))\s*", sentence[formulas[-1].end() : first.start()]
    ):
        first = formulas.pop()
    if not all(re.search("[=<>≤≥]", m.group()) for m in (first, last)):
        first = last
    return sentence[first.start() : last.end()]


def _is_circumstance(before: str) -> bool:
    """Check whether what stands ahead of a number makes it a circumstance of the answer."""
    return _CIRCUMSTANCE.search(before) is not None and _MEASURE.search(before) is None


def _unit_behind(sentence: str, position: int) -> str:
    """Return the unit behind a number, as text; things that are counted are none."""
    words = _UNIT_WORDS.match(sentence, position)
    return rf" \text{{{words[1]}}}" if words and is_unit(words[1]) else ""


def _number_behind(sentence: str, position: int) -> str | None:
    """Return the number that a sentence gives for its formula: "$x + y$, which equals 21"."""
    match = re.compile(
        r"[^.=]{0,80}?\b(?:is|are|equals|be|was|measures)\s+(?:\w+\s+)?" + f"({NUMBER.pattern})"
    ).match(sentence, position)
    return match[1].strip() if match else None


def formula_content(match: re.Match[str]) -> str:
    """Return what stands between the delimiters of a formula."""
    return next(group for group in match.groups() if group is not None)
