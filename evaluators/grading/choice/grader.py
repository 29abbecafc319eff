"""Grading multiple choice: which option does a response name as its final answer, if any?

The last explicit statement decides, else a line that is an option, else what free prose settles on
(`prose`). Where none of them names one option the verdict is ``no_answer``, never a guess.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from deft.evaluators.grading.brackets import read_group
from deft.evaluators.grading.choice.option_matching import LETTERED
from deft.evaluators.grading.choice.option_text import (
    folded,
    number_set,
    plain_text,
    stems_of,
    value_of,
)
from deft.evaluators.grading.choice.paper import choose_as_the_paper
from deft.evaluators.grading.choice.prose import abridged, concluded
from deft.evaluators.grading.choice.standing import LETTER_BEHIND
from deft.evaluators.grading.choice.statements import (
    BAD_AHEAD,
    BARE_LETTER,
    FURTHER_VERB,
    LEADS,
    NEGATED,
    REASON,
    SECOND,
    SHARED,
    SUPPOSED,
    TRAILS,
)
from deft.evaluators.grading.final_answer import announced
from deft.evaluators.grading.responses import (
    answer_part,
    before_next_problem,
    no_answer,
    without_marks,
)
from deft.evaluators.grading.verdicts import Grade, Verdict

MAX_VERBS = 3
"""Verbs that a question may have before "… is" leads to its answer."""
MAX_STATEMENTS = 50
"""Statements of one kind that are looked at, from the last one back."""
_QUESTION_AND_ANSWER = re.compile(r"\A(\W*Q(?:uestion)?\s*:[^\n]{1,600}?\s)A:", re.DOTALL)
_STYLE_TAG = re.compile(r"</?(?:b|strong|i|em|u|p|span)>", re.IGNORECASE)
_SNAKE = re.compile(r"(?<=[a-z])_(?=[a-z])")
_NUMBERED = re.compile(
    r"\b(?:(?P<noun>option|choice|answer)\s+(?:number\s+)?(?P<number>[1-9])(?![\d.,%]*\d|\s*%)"
    r"|the\s+(?P<ordinal>first|second|third|fourth|fifth|last)\s+(?:option|choice|answer|one))\b",
    re.IGNORECASE,
)
_ORDINALS = {"first": 1, "second": 2, "third": 3, "fourth": 4, "fifth": 5, "last": 0}
_ONLY_STATEMENT = re.compile(
    r"\b[Oo]nly (?:the )?(first|second|third)(?: one| statement)? is (?:correct|true|right)\b"
)
_BOX = re.compile(r"\\?(?:boxed|fbox|framebox)\s*\{")
_COMPARISON = re.compile(r"[A-Z]\s*(?:[<>]|\\(?:ll|gg|lt|gt|to|rightarrow|leq?|geq?)\b)\s*[A-Z]")
_EXPLAINED = re.compile(r"\s*(?:[=(≈]|\bi\.e\b|,?\s*\bthat\s+is\b)")
_ANSWER_WORDS = frozenset(("yes", "no", "maybe", "true", "false"))
_REMARK = re.compile(
    r"\s*(?!is (?:the )?(?:correct|right|best|most likely|answer))"
    r"(?:is|are|was|were|has|have|had|may|might|can|could|should|would|will|does|do|did|must|lacks?"
    r"|causes?|covers?|treats?|acts?|inhibits?|works?|increases?|decreases?|requires?)\b"
)
"""Behind an option's text: the line speaks about the option instead of choosing it."""
_TURNED_DOWN = re.compile(
    r"\b(?:not|no|never|wrong|incorrect|false|less|least|second|2nd|third|alternative|poor|unlikely"
    r"|contraindicated|reserved|avoid\w*|only if|ineffective|inappropriate|insufficient|ruled out"
    r"|excluded?|rejected|instead)\b"
)
_SET_ASIDE = re.compile(
    r"\W*(?:alternatives?|second\b[^:]{0,20}|2nd\b[^:]{0,20}|others?(?: options?)?|also possible"
    r"|(?:less|least) \w+|differential(?: diagnos[ie]s)?|runner-up|not|rule out|avoid)\s*:",
    re.IGNORECASE,
)
_OBSERVATION = re.compile(r"\W*(?:[A-Za-z]+ ){1,3}(?:falls|rises|drops|climbs)\W*")
"""A finding, not an option: "Cardiac output falls", where options speak of a decreased output."""
_CROSSED = re.compile("[❌✗✘]")
_RANKING = re.compile(
    r"\b(?:rank\w*|most to least|in order of|order of likelihood)\b", re.IGNORECASE
)
_CLOSING_LETTER = re.compile(r"(?:\*\*|__|\w\w[.!:]\s)\(?([A-Z])\)?\.?(?:\*\*|__)?[\s.]*$")
_SET_OFF = re.compile(r"(?:^|[,;:.?!]|\bso)\s*(yes|no|maybe|true|false)\s*[,.;:!—–]", re.MULTILINE)
_ANNOUNCED = re.compile(r"\b(?:is|are|be|answer)\W*:\W*$", re.IGNORECASE)
_BOUND = re.compile(r"(?:\d\S*(?: (?:to|and|or))?|than|over|under|between|least|at most) $")
"""Ahead of a number: it is the end of a range, or a bound."""
_MARK = re.compile(r"(?<!\S)[(*_]*([A-Z])[*_]*(?:[.):]|\s[-–—])[*_]*\s")
_ITEM_LETTER = re.compile(
    r"\W*(?:[Oo]ption\s+|[Cc]hoice\s+)?\(?([A-Z])(?:[.):]|\s[-–—]|\":|\s+is\b|\s*\|)"
)
_ITEMS_APART = re.compile(r"[;,.]\s{0,3}(?=\W{0,8}[A-Z](?:\s+is\b|\W{0,2}:))")
_VERDICT = re.compile(r"\W*(?:(?:in)?correct|right|wrong|true|false)\b", re.IGNORECASE)
_MARKED_CORRECT = re.compile(
    r"(?<!not )(?<!n't )\bcorrect(?:ly)?\s*(?:[.,!);:|–—-]|$|answer|choice|option)|"
    r"[✓✔✅←]|(?:\bis|:|\s[–—-])[\s*]*(?:yes|true)\b",
    re.IGNORECASE,
)
_NOT_BUT = re.compile(
    r"\W*not\s+[^.,;]{1,60}?\s*[,;]?\s+(?:but|it's|it\s+is|rather)\s+(?:rather\s+)?(.+)$",
    re.IGNORECASE | re.DOTALL,
)
_NONE_OF = re.compile(
    r"\W*(?:none|neither|no\s+(?:option|choice|answer))\b|\W*(?:can(?:not|'t)|unable)",
    re.IGNORECASE,
)
_LETTER = re.compile(
    r"\W{0,20}?(?P<label>(?:option|choice|letter"
    r"|answer)\s+(?:is\s+)?)?(?P<open>[(\[【]{1,3}\s{0,3})?(?P<letter>[A-Za-z])(?P<close>\s{0,3}[)\]"
    r"】>]{1,3})?(?P<stop>\s{0,3}[.:,;—–]|\s{1,3}-\s|\s*$)?(?![A-Za-z0-9-]|['’][a-z])",
    re.IGNORECASE,
)
_SEVERAL = re.compile(
    r"\W*(?:either\s+|both\s+|options?\s+)?\(?([A-Z])\)?\W*?\s*(?:and|or|/|,|&|"
    r"\+)\s*(?:option\s+)?\(?([A-Z])\)?(?![A-Za-z])"
)
_OTHERWISE = re.compile(
    r"[,;]\s*(?:and\s+|but\s+)?(?:if|otherwise)\b(?![^.]*\b(?:would|were"
    r"|had)\b)[^.]*?\b([A-Z])(?![^\W_])"
)
_OTHERS_HEADING = re.compile(
    r"\W*(?:why )?(?:the )?(?:other|remaining|incorrect|wrong) (?:options|choices|answers)\b[^.]*",
    re.IGNORECASE,
)
_UNFINISHED = re.compile(
    r"(?:\w,|\b(?:and|or|the|of|is|to|that|with|by|which|for|in|as|are|because|but|since|where"
    r"|when|has|have|would|be))$"
)
"""It was about to go on."""
_AFTER_LETTER_TEXT = (
    "because since as which for due given is and but that this in with based although while so "
    "here then now instead over rather not"
)
_AFTER_LETTER = frozenset(_AFTER_LETTER_TEXT.split())


@dataclass(frozen=True)
class Statement:
    """One place of a response that names its answer, or says that there is none."""

    position: int
    letter: str | None
    binding: bool = True
    """Whether it is a final answer even if it names no single option."""


def grade(record: Mapping[str, Any]) -> Grade:
    """Grade ``response`` against the letter ``gold`` of ``options`` (letter to text).

    ``extracted`` is the letter of the chosen option. A response that was cut off is graded if it
    had made its choice explicit by then, else it is ``truncated``. The score ``accuracy_paper`` is
    1 where the paper's rules choose ``gold``.
    """
    options = {letter.upper(): text for letter, text in record["options"].items()}
    finish_reason = record.get("finish_reason")
    chooser = Chooser(options)
    response = answer_part(record["response"], opens_thought=bool(record.get("opens_thought")))
    text = _STYLE_TAG.sub("", announced(response))
    text = _SNAKE.sub(" ", text).replace("=>", "→")
    text = _lettered(_QUESTION_AND_ANSWER.sub(r"\1Answer:", text), options)
    cut_off = finish_reason == "length" or _UNFINISHED.search(text) is not None
    letter = None
    for part in dict.fromkeys((chooser.before_options(before_next_problem(text)), text)):
        letter = letter or chooser.explicit(part)
        # What a next problem follows was complete, wherever that one was cut off.
        if letter is None and (not cut_off or part != text):
            letter = chooser.implied(part)
    if letter is None and cut_off:
        letter = chooser.opening(text)
    as_the_paper = choose_as_the_paper(without_marks(record["response"]), options)
    gold = record["gold"].strip().upper()
    scores = {"accuracy_paper": float(as_the_paper == gold)}
    if not letter:
        return replace(no_answer(finish_reason), scores=scores)
    correct = letter == gold
    return Grade(Verdict.correct if correct else Verdict.wrong, letter, scores)


def _lettered(text: str, options: Mapping[str, str]) -> str:
    """Replace "option 3" and "the third option" by the option's letter."""
    letters = sorted(options)

    def letter(match: re.Match[str]) -> str:
        number = int(match["number"] or _ORDINALS[match["ordinal"].lower()])
        return f"option {letters[number - 1]}" if number <= len(letters) else match.group()

    text = _ONLY_STATEMENT.sub(
        lambda m: f"The answer is: Only statement {_ORDINALS[m[1]]} is correct", text
    )
    return _NUMBERED.sub(letter, text)


class Chooser:
    """Find the option that a text names."""

    def __init__(self, options: Mapping[str, str]) -> None:
        self.options = dict(options)
        self.texts = {letter: folded(text) for letter, text in options.items()}

    def explicit(self, text: str) -> str | None:
        """Return the option that the last explicit statement names; "" for none or several.

        None if there is no explicit statement at all.
        """
        statements = sorted(
            (*self._boxes(text), *self._leading(text), *self._trailing(text)),
            key=lambda statement: statement.position,
        )
        for statement in reversed(statements):
            if statement.letter or statement.binding:
                return statement.letter or ""
        return None

    def before_options(self, text: str) -> str:
        """Cut a text where the options are repeated, or another question follows."""
        lines = text.split("\n")
        whole = [self._whole_line(line) for line in lines]
        items = [m[1] if (m := _ITEM_LETTER.match(line)) else None for line in lines]
        first = list(self.options)[:3]
        for at in range(1, len(lines)):
            if _OTHERS_HEADING.fullmatch(lines[at]):
                return "\n".join(lines[:at])
            if first not in (whole[at : at + 3], items[at : at + 3]):
                continue
            ahead = "\n".join(lines[:at])
            if whole[at : at + 3] == first or ahead.rstrip(" *\n").endswith("?"):
                return ahead
        return text

    def implied(self, text: str) -> str | None:
        """Return the option that a text without explicit statement consists of, or ends in."""
        lines = [line.strip() for line in text.split("\n") if line.strip(" *_#->`\t")]
        copy = folded(" ".join(f"{letter} {said}" for letter, said in self.options.items()))
        lines = [line for line in lines if folded(line) != copy]
        if not lines or (
            len(lines) == 1
            and (_OBSERVATION.fullmatch(lines[0]) or _SEVERAL.fullmatch(lines[0].rstrip(" .!")))
        ):
            return None
        marked = self._marked(lines)
        if marked:
            return marked
        lines = [line for line in lines if not _SET_ASIDE.match(line) and not _CROSSED.search(line)]
        if not lines:
            return None
        whole = [self._whole_line(line) for line in lines]
        if len(lines) > 1 and re.match(r"\W*[Oo]ption\s+[A-Z]\W*:", lines[-1]):
            whole[-1] = None  # it was about to discuss the options
        copied = len(lines) > 1 and None not in whole[-2:] and whole[-2] != whole[-1]
        if whole[-1] and (not copied or re.fullmatch(r"\W*[A-Za-z]\W*", lines[-1])):
            return whole[-1]
        closing = _CLOSING_LETTER.search(lines[-1])
        if closing and closing[1] in self.options:
            return closing[1]
        if whole[0] and not any(letter not in (None, whole[0]) for letter in whole):
            return whole[0]
        named = {
            letter
            for ahead, letter, behind in zip(lines, whole[1:], [*whole[2:], None], strict=False)
            if letter and _ANNOUNCED.search(ahead) and behind in (None, letter)
        }
        if len(named) == 1:
            return named.pop()
        if copied:
            return None  # the options, repeated
        if len(lines) == 1 and (option := abridged(lines[0], self.options)):
            return option
        return (
            self._set_off(lines)
            or self._ranked(lines)
            or self._result(lines[-1])
            or self._leading_mark(lines)
            or concluded(text, self.options)
            or self._by_elimination(text)
            or self._true_or_false(lines[-1])
            or self._all_statements(lines[-1])
        )

    def opening(self, text: str) -> str | None:
        """Return the option that the first line is, where others are neither listed nor named."""
        lines = [line.strip() for line in text.split("\n") if line.strip(" *_#->`\t")]
        whole = [self._whole_line(line) for line in lines]
        if len(lines) < 2 or _ITEM_LETTER.match(lines[1]) or len(set(whole) - {None}) != 1:
            return None
        return whole[0]

    def _ranked(self, lines: list[str]) -> str | None:
        """Return the first of options that are ranked: ``D > B > C``, or a numbered list."""
        chain = re.split(r"\s*(?:>|≫)\s*", re.sub(r"^\W*[Rr]ank\w*\s*:", "", lines[-1]))
        if len(chain) > (1 if _RANKING.search(lines[-1]) else 2):
            named = [self._whole_line(link.strip(" .")) for link in chain]
            return named[0] if None not in named else None
        for at, line in enumerate(lines[:-1]):
            if _RANKING.search(line) and (item := re.match(r"\W*1[.)]\s*(.*)", lines[at + 1])):
                return self._whole_line(item[1])
        return None

    def _result(self, line: str) -> str | None:
        """Return the option that a calculation ends in, or a value that is put in other words."""
        _, equals, result = line.rpartition("=")
        if equals and (option := self._exact(result)):
            return option
        value = re.sub(r"^\W*(?:about|approximately|roughly|around)\s+", "", line, flags=re.I)
        return self._exact(re.split(r",?\s*\bi\.e\b|\(", value)[0])

    def _all_statements(self, line: str) -> str | None:
        """Read ``all three statements are true`` where the options are lists of numbers."""
        if not re.search(r"\ball (?:\w+ )?statements are (?:true|correct)\b", line, re.IGNORECASE):
            return None
        numbers = {c: number_set(text) or frozenset() for c, text in self.options.items()}
        every = frozenset().union(*numbers.values())
        return next((c for c, listed in numbers.items() if listed == every and listed), None)

    def _true_or_false(self, line: str) -> str | None:
        """Read ``this is not true``, ``the data say yes`` where the options are such words."""
        words = re.search(
            r"\b(?:is|are)\s+(not\s+|in)?(?:true|correct)\W*$|\bsays?\s+(yes|no)\W*$",
            line,
            re.IGNORECASE,
        )
        if words is None:
            return None
        return self._exact(words[2] or ("false" if words[1] else "true"))

    def _by_elimination(self, text: str) -> str | None:
        """Return the option that is left where all others are turned down by their letters."""
        denied = set(re.findall(r"\b[Nn]ot\s+(?:option\s+)?\(?([A-Z])\b", text))
        left = [letter for letter in self.options if letter not in denied]
        return left[0] if len(left) == 1 and len(self.options) > 2 else None

    def _leading_mark(self, lines: list[str]) -> str | None:
        """Read ``B. It lowers the afterload``: one marked letter, which opens the text."""
        marks = {m[1] for line in lines for m in _MARK.finditer(line)} & set(self.options)
        first = _MARK.match(lines[0])
        if _TURNED_DOWN.search(re.split(r"[.;!?]\s", lines[0][3:].lower())[0]):
            return None
        return first[1] if first and marks == {first[1]} else None

    def _set_off(self, lines: list[str]) -> str | None:
        """Read a yes or no that commas set off: ``by these results, yes, the test is useful``."""
        if _ITEM_LETTER.match(lines[-1]) and re.search(r"\b(?:incorrect|wrong|not)\b", lines[-1]):
            return None
        ends = "\n".join(plain_text(line).lower() for line in (lines[0], lines[-1]))
        words = set(_SET_OFF.findall(ends))
        return self._exact(words.pop()) if len(words) == 1 else None

    def _marked(self, lines: list[str]) -> str | None:
        """Return the one option of a list of several that is marked as correct."""
        marks: dict[str, bool] = {}
        named = None
        for item in (part for line in lines for part in _ITEMS_APART.split(line)):
            mark = _ITEM_LETTER.match(item)
            option = mark[1] if mark else self._by_text(re.split(r":|\s[–—-]\s", item)[0])
            if option in self.options:
                named = option
            elif named is None or not _VERDICT.match(item):
                continue
            assert named is not None
            marks[named] = _MARKED_CORRECT.search(item) is not None
        correct = [mark for mark, right in marks.items() if right]
        return correct[0] if len(correct) == 1 and len(marks) > 1 else None

    def _boxes(self, text: str) -> Iterator[Statement]:
        for match in list(_BOX.finditer(text))[-MAX_STATEMENTS:]:
            content = _box_content(text, match.end() - 1)
            if content.strip() and not _COMPARISON.search(content):
                yield Statement(match.start(), self.resolve(content))

    def _leading(self, text: str) -> Iterator[Statement]:
        for match in list(LEADS.finditer(text))[-MAX_STATEMENTS:]:
            if BAD_AHEAD.search(text, max(0, match.start() - 40), match.start()):
                continue
            if SECOND.search(text, max(0, match.start() - 20), match.start()):
                continue
            if "would" in match.group().lower() and SUPPOSED.search(
                text, max(0, match.start() - 200), match.start()
            ):
                continue
            rest = text[match.end() : match.end() + 300].lstrip(" *_:\"'`")
            if rest.startswith("\n"):
                rest = rest.lstrip("\n *_:#")
            fragment = _sentence(rest)
            contrast = _NOT_BUT.match(fragment)
            fragment = contrast[1] if contrast else fragment
            exact = self._exact(fragment) or self._exact(LETTER_BEHIND.sub("", fragment))
            if exact:
                yield Statement(match.start(), exact)
                continue
            if not fragment or NEGATED.match(fragment):
                yield Statement(match.start(), None, binding=bool(_NONE_OF.match(fragment)))
                continue
            letter = self.resolve(fragment)
            # "The answer to whether X is Y is …": the question has a verb of its own.
            verbs = list(FURTHER_VERB.finditer(fragment))[:MAX_VERBS] if match["about"] else ()
            for verb in verbs:
                letter = letter or self.resolve(fragment[verb.end() :])
            yield Statement(match.start(), letter, binding=letter == "")
        for match in list(BARE_LETTER.finditer(text))[-MAX_STATEMENTS:]:
            if match[1] in self.options:
                yield Statement(match.start(), match[1])

    def _trailing(self, text: str) -> Iterator[Statement]:
        position = 0
        while match := TRAILS.search(text, position):
            position = match.start("letter") + 1
            letter, between = match["letter"].upper(), match["text"].strip(" .:,()*_-–—")
            # "B cells … so D is correct": what stands between must be the option's own text.
            if letter not in self.options or (between and self._by_text(between) != letter):
                continue
            if re.search(r"\b[A-Z]$", between):
                continue  # "D (its text) is tempting, but B is correct"
            position = match.end()
            before = text[max(0, match.start() - 30) : match.start()].rstrip("(*_ ")
            if BAD_AHEAD.search(before) or before.split(" ")[-1].lower() in LETTERED:
                continue
            shared = SHARED.search(before)
            yield Statement(match.start(), "" if shared else letter)

    def resolve(self, fragment: str) -> str | None:
        """Return the option that a fragment names; "" for several at once, None for none."""
        fragment = plain_text(fragment)
        if _NONE_OF.match(fragment) and not self._by_text(fragment):
            return None
        whole = self._exact(fragment) or self._exact(_EXPLAINED.split(fragment)[0])
        whole = whole or self._numbered(fragment)
        if whole:
            return whole
        otherwise = _OTHERWISE.search(fragment)
        if otherwise and otherwise[1] in self.options:
            return ""
        several = _SEVERAL.match(fragment)
        if several and {several[1], several[2]} <= set(self.options):
            return ""
        if re.match(r"(?:either|both)\b", fragment, re.IGNORECASE):
            return abridged(fragment, self.options) or ""
        letter = self._leading_letter(fragment)
        if letter is not None:
            return letter or None
        named = self._by_text(REASON.sub("", fragment))
        if named is None:
            named = abridged(fragment, self.options) or concluded(fragment, self.options)
        return named

    def _numbered(self, fragment: str) -> str | None:
        """Read ``3`` as the third option, where no option says a number of its own."""
        number = re.fullmatch(r"\W*([1-9])\W*", fragment)
        letters = sorted(self.options)
        if number is None or any(re.search(r"\d", text) for text in self.options.values()):
            return None
        return letters[int(number[1]) - 1] if int(number[1]) <= len(letters) else None

    def _exact(self, fragment: str) -> str | None:
        """Return the option that a fragment is, in its words or as a number."""
        for normal_form in (folded, value_of, stems_of, number_set):
            form = normal_form(fragment)
            matches = [c for c, text in self.options.items() if form and normal_form(text) == form]
            if len(matches) == 1:
                return matches[0]
        return None

    def _leading_letter(self, fragment: str) -> str | None:
        """Return the letter at the start; "" if no option has it, None if there is no letter."""
        match = _LETTER.match(fragment)
        if match is None:
            return None
        labeled, letter, rest = match["label"], match["letter"], fragment[match.end() :]
        bracketed = match["open"] and match["close"]
        if not letter.isupper() and not (labeled or bracketed or not rest.strip(" .)*")):
            return None
        if letter.upper() not in self.options:
            alone = labeled or bracketed or not rest.strip() or match["close"] or match["stop"]
            return "" if alone else None
        if labeled or bracketed or match["close"] or match["stop"] or not rest.strip():
            return letter.upper()
        follows = re.match(r"\s*([A-Za-z]+)?", rest)
        word = (follows[1] or "").lower() if follows else ""
        if word in _AFTER_LETTER or not word:
            return letter.upper()
        if self._starts_with_text(rest) == letter.upper():
            return letter.upper()
        return None

    def _starts_with_text(self, rest: str) -> str | None:
        start = folded(rest)
        matches = [c for c, text in self.texts.items() if text and start.startswith(text)]
        return max(matches, key=lambda c: len(self.texts[c])) if matches else None

    def _by_text(self, fragment: str) -> str | None:
        """Return the option whose text a fragment holds; "" for several, None for none."""
        folded_fragment = f" {folded(fragment)} "
        spans = []
        for letter, text in self.texts.items():
            if len(text) < 2 or text in ("all", "none", "both", "neither", "other", "any"):
                continue  # in a sentence these mean something else
            if text in _ANSWER_WORDS:
                if re.match(rf" {text}(?: |$)", folded_fragment):
                    spans.append((0, len(text), letter))
                continue
            start = folded_fragment.find(f" {text} ")
            if start >= 0 and not (
                text[0].isdigit() and _BOUND.search(folded_fragment[: start + 1])
            ):
                spans.append((start, start + len(text), letter))
        # An option text within another option's text is not meant when the longer one stands there.
        letters = {
            letter
            for start, end, letter in spans
            if not any(s <= start and end <= e and (s, e) != (start, end) for s, e, _ in spans)
        }
        if len(letters) == 1:
            return letters.pop()
        return "" if letters else None

    def _whole_line(self, line: str) -> str | None:
        plain = plain_text(line).strip("'‘’")
        whole = self._exact(plain)
        if whole:
            return whole
        match = _LETTER.match(plain)
        if match is None:
            return None
        letter, rest = match["letter"], plain[match.end() :].strip(" .*?!")
        marked = match["close"] or match["stop"] or match["label"]
        if letter.upper() not in self.options or not (letter.isupper() or marked or not rest):
            return None
        if not rest:
            return letter.upper()
        if (marked or letter.isupper()) and self._starts_with_text(rest) == letter.upper():
            first_sentence = re.split(r"[.;!?]\s", rest)[0]
            remark = folded(first_sentence).removeprefix(self.texts[letter.upper()])
            return None if _REMARK.match(remark) or _TURNED_DOWN.search(remark) else letter.upper()
        return None


def _sentence(text: str) -> str:
    """Return the first sentence or line; a full stop behind an option letter ends neither."""
    text = text.split("\n", 1)[0]
    for end in re.finditer(r"[.!?](?=\s|$)", text):
        if not re.fullmatch(r"\W*(?:[Oo]ption\s+)?\(?[A-Za-z]", text[: end.start()]):
            return text[: end.start()]
    return text


def _box_content(text: str, start: int) -> str:
    content, end = read_group(text, start, 2000)
    if end > start + 1 and text[end - 1] == "}":
        return content
    return content[:200].split("\n")[0]  # a box that never closes ends with its line
