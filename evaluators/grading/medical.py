"""Grading multiple choice: which option does a response name as its final answer, if any?

The last explicit statement decides: a box, "the answer is …", "**Answer: (B) …**", "option B is
correct", a correction ("wait, it is C"). Without one, a response whose last or first line is
nothing but an option, or whose last sentence concludes with one, has answered too; last of all,
one that settles on an option in free prose (`medical_prose`). A discussion of options is no answer,
nor are two options at once, a letter that is not among the options, or a refusal: the verdict is
then ``no_answer``, never a guess.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from deft.evaluators.grading.medical_prose import concluded
from deft.evaluators.grading.responses import answer_part, before_next_problem, no_answer
from deft.evaluators.grading.verdicts import Grade, Verdict

MAX_REMARK = 80
"""Characters of a closing remark that may stand behind the sentence that concludes."""

MAX_STATEMENTS = 50
"""Statements of one kind that are looked at, from the last one back."""


@dataclass(frozen=True)
class Statement:
    """What a response says at one place: an option, or nothing that is one of them."""

    position: int
    letter: str | None
    binding: bool = True
    """Whether it is a final answer even if it names no single option."""


def grade(record: Mapping[str, Any]) -> Grade:
    """Grade ``response`` against the letter ``gold`` of ``options`` (letter to text).

    ``extracted`` is the letter of the chosen option. A response that was cut off is graded if it
    had made its choice explicit by then, else it is ``truncated``.
    """
    options = {letter.upper(): text for letter, text in record["options"].items()}
    finish_reason = record.get("finish_reason")
    chooser = Chooser(options)
    text = final_section(answer_part(record["response"]))
    letter = chooser.explicit(before_next_problem(text)) or chooser.explicit(text)
    if letter is None and finish_reason != "length":
        letter = chooser.implied(text)
    if not letter:
        return no_answer(finish_reason)
    correct = letter == record["gold"].strip().upper()
    return Grade(Verdict.correct if correct else Verdict.wrong, letter)


_SECTION = re.compile(
    r"^[#*\s]*(?:final response|final answer|final choice|conclusion|answer)[*:\s]*$",
    re.IGNORECASE | re.MULTILINE,
)


def final_section(text: str) -> str:
    """What follows the last heading that announces the answer; all of it if there is none."""
    headings = [m for m in _SECTION.finditer(text) if text[m.end() :].strip()]
    return text[headings[-1].end() :].strip() if headings else text


_BOX = re.compile(r"\\?(?:boxed|fbox|framebox)\s*\{")
_IS = (
    r"\b(?:is|are|was|would\s+be|will\s+be|should\s+be|must\s+be|seems\s+to\s+be|appears\s+to\s+be"
    r"|remains|becomes)"
)
_KIND = (
    r"(?:final|correct|best|right|most\s+likely|most\s+appropriate|most\s+accurate|likely|single|"
    r"probable|appropriate|only|overall|proper|my|ideal|preferred)"
)
_NOUN = r"(?:answer|option|choice|response|selection|letter)"
_LEADS = re.compile(
    rf"""
    \b(?:{_KIND}\s+){{0,3}}(?:answer|{_KIND}\s+{_NOUN})(?:\s+choice|\s+option)?
        (?:\s+(?:to|for|among|here|in|from|of)\b(?!\s+{_IS})[^.:\n]{{0,80}}?)?
        \s*(?:\*\*|__|"|')?\s*(?:{_IS}\b\s*:?|[:：=]|→|->|\s[-–—]\s)
    | \b(?:i|we)\s*(?:would|will|'ll|'d|shall|must|have\s+to)?\s*(?:therefore\s+|thus\s+)?
        (?:choose|select|pick|go\s+with|opt\s+for|answer|chose|settle\s+on
           |conclude\s+(?:that\s+)?(?:it\s+is|it's))
        (?:\s+(?:with|for|that))?\s*:?
    | \b(?:wait|actually|rather|correction|no|instead|hmm|scratch\s+that|on\s+reflection
           |on\s+second\s+thought)\s*[,.:;—–-]*\s*
        (?:(?:actually|i\s+think|no|but|then|so)\s*[,.]?\s*)*
        (?:it\s+(?:{_IS}|has\s+to\s+be)|it's|that's|this\s+is|should\s+be|make\s+that|i\s+mean
           |the\s+\w+\s+{_IS})\s*:?
    | <answer>
    | \bthe\s+(?:\w+\s+){{0,3}}(?:choice|option)\s+{_IS}\s*:?
    | \b(?:so|thus|therefore|hence)\s*,?\s+
        (?:it\s+{_IS}|it's|the\s+(?:correct\s+|best\s+)?(?:choice|option)\s+{_IS})\s*:?
    """,
    re.IGNORECASE | re.VERBOSE,
)
_TRAILS = re.compile(
    r"""
    \b(?P<letter>[A-Z])\b[)*_]*(?P<text>[^.\n]{0,120}?|\.[^.\n]{1,120}?)
    \s*[,—–-]?\s+(?:is|would\s+be|remains|must\s+be|should\s+be|appears\s+to\s+be)\s+
    (?:(?:therefore|thus|clearly|indeed|definitely)\s+)*(?:the\s+)?(?:single\s+)?
    (?:(?:correct|best|right|most\s+(?:likely|appropriate|accurate|probable|suitable))\b
         (?!\s+(?:when|if|only|in\s+patients|for\s+patients|that|about|but))
       |only\s+(?:option|choice|answer|one|correct)\b)
    """,
    re.VERBOSE,
)
_BAD_AHEAD = re.compile(
    r"(?:\bnot\b|n't|\bnever\b|\bif\b|\bwhether\b|\bwhy\b|\bwould\s+have\s+been\b|\bunless\b|"
    r"\bcould\b|"
    r"\bmight\b|\bmay\b|\bcannot\b|\bsuppose\b|\bassum\w+|\bno\s+(?:single\s+)?\w*|\bask\w*|"
    r"\bwhich\b|\bneither\b)"
    r"\s*(?:\w+\s+){0,2}$",
    re.IGNORECASE,
)
_NEGATED = re.compile(
    r"^\W*(?:definitely\s+|clearly\s+|probably\s+|certainly\s+)?(?:not\b|n't\b|never\b|"
    r"neither\b|unlikely|"
    r"incorrect|wrong|un\w*clear|uncertain|unknown|none\b|impossible|difficult|hard\b|beyond|"
    r"dependent|depend)",
    re.IGNORECASE,
)
_CUT = re.compile(
    r"\s*(?:,?\s*\b(?:rather\s+than|and\s+not|not|instead\s+of|as\s+opposed\s+to|because|since|"
    r"unlike|but|due\s+to|given|while|whereas|although|though|over|as\s+(?:it|this|the)|so\s+that|"
    r"which(?!\s+(?:is|are|points?|suggests?|indicates?|means?|leads?|fits|matches))|based\s+on|"
    r"considering|in\s+contrast|compared|for\s+(?:this|the)|where)\b).*$",
    re.IGNORECASE | re.DOTALL,
)
_REFUSAL = re.compile(
    r"\b(?:cannot|can't|can not|could not|couldn't|unable|not able|impossible|don't know|"
    r"do not know|not sure|unsure|uncertain|unclear|insufficient|not enough|undetermined|"
    r"none of the (?:above|"
    r"options|given|listed|choices)|no correct|consult|sorry)\b",
    re.IGNORECASE,
)
_HEDGE = re.compile(
    r"\b(?:could|may|might|possible|possibly|also|consider|considered|perhaps|some|sometimes|"
    r"if|mimic\w*|depend\w*|look\w* for|screen\w*|such as|like|for example|reserved|weighed|"
    r"unlikely|"
    r"avoid\w*|contraindicated|"
    r"incorrect|wrong|not|less|instead|rule[sd]? out|excluded?|however|although|question|asks?|"
    r"options? (?:include|are)|differential|let's|let me)\b|n't\b|\?",
    re.IGNORECASE,
)
_CONCLUSIVE = re.compile(
    r"\b(?:so|thus|therefore|hence|correct|best|most|answer|choose|select|conclusion|"
    r"consistent with|"
    r"indicat\w+|confirm\w*|final|suggests?|points? to|treatment of choice|first[- ]line|is the|"
    r"must|"
    r"it is|it's|this is|that is|that's|has to be|match(?:es)?|fits?|corresponds? to|should|"
    r"needs?|requires?|classic\w*|"
    r"typical\w*|characteristic|diagnos\w+|due to|caused by|explain(?:s|ed)?|leaves|leaving)\b",
    re.IGNORECASE,
)
_BARE_CONCLUSION = re.compile(
    r"\W*(?i:so|thus|therefore|hence|it is|it's|that leaves|leaving|i say|which is|ergo|"
    r"(?:it )?(?:has to|must|should|would|can only) be)\W+"
    r"(?:(?i:it is|it's|option|choice)\W+)?([A-Z])\W*"
)
_SUBORDINATE = re.compile(
    r"^\W*(?:since|given|because|although|though|while|as|based on|considering|in contrast|due to|"
    r"for (?:this|the) [^,]*)\b[^,]*,\s*",
    re.IGNORECASE,
)
_TEXT_AND_LETTER = re.compile(r"(.+?)\s*[(\[]([A-Z])[)\]]\W*")


_ANSWER_WORDS = frozenset(("yes", "no", "maybe", "true", "false"))


class Chooser:
    """Finds the option that a text names."""

    def __init__(self, options: Mapping[str, str]) -> None:
        self.options = dict(options)
        self.texts = {letter: _folded(text) for letter, text in options.items()}

    def explicit(self, text: str) -> str | None:
        """The option that the last explicit statement names; "" if it names none, or several.

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

    def implied(self, text: str) -> str | None:
        """The option that a text without explicit statement consists of, or ends in."""
        lines = [line.strip() for line in text.split("\n") if line.strip(" *_#->`\t")]
        if not lines:
            return None
        whole = [self._whole_line(line) for line in lines]
        marked = self._marked(lines)
        if marked:
            return marked
        if len(lines) > 1 and re.match(r"\W*[Oo]ption\s+[A-Z]\W*:", lines[-1]):
            whole[-1] = None  # it was about to discuss the options
        copied = len(lines) > 1 and whole[-2] is not None and whole[-2] != whole[-1]
        if whole[-1] and (not copied or re.fullmatch(r"\W*[A-Za-z]\W*", lines[-1])):
            return whole[-1]
        bold = re.search(r"(?:\*\*|__)\(?([A-Z])\)?\.?(?:\*\*|__)\W*$", lines[-1])
        if bold and bold[1] in self.options:
            return bold[1]
        if whole[0] and not any(letter not in (None, whole[0]) for letter in whole):
            return whole[0]
        if copied:
            return None  # the options, repeated
        return (
            self._leading_word(lines[0])
            or self._interjection(lines[-1])
            or self._concluding_sentence("\n".join(lines[-2:]))
            or self._leading_mark(lines)
            or concluded(text, self.options)
            or self._only_mention(text)
        )

    def _only_mention(self, text: str) -> str | None:
        """The option that a text asserts something of, if it names no other anywhere."""
        if _REFUSAL.search(text) or _DISCUSSION.search(text):
            return None
        found: str | None = None
        for sentence in re.split(r"(?<=[.!?])\s+|\n+", text):
            letters = {m[1] or m[2] for m in _NAMED.finditer(sentence)} & set(self.options)
            named = letters
            if not named:
                continue
            if named - {found} and found is not None:
                return None
            if len(named) > 1 or _HEDGE.search(sentence):
                return None
            found = named.pop()
        return found or None

    def _leading_mark(self, lines: list[str]) -> str | None:
        """``B. It lowers the afterload``: a marked letter that opens one line and no other."""
        mark = re.compile(r"\W*([A-Z])(?:[.):]|\s[-–—])\s")
        marks = {m[1] for line in lines if (m := mark.match(line))}
        first = mark.match(lines[0])
        return first[1] if first and marks == {first[1]} and first[1] in self.options else None

    def _leading_word(self, line: str) -> str | None:
        """``No, there was no effect``: an option of one word that opens the response."""
        match = re.match(r"([A-Za-z]+)\s*[,.;:—–]", _plain(line))
        word = match[1].lower() if match else ""
        return self._exact(word) if word in _ANSWER_WORDS else None

    def _interjection(self, line: str) -> str | None:
        """``Based on these results, yes, the test is useful``."""
        said = re.findall(r"[,;:]\s*(yes|no|maybe)\s*[,.;!]", _plain(line).lower())
        return self._exact(said[-1]) if len(set(said)) == 1 else None

    def _marked(self, lines: list[str]) -> str | None:
        """The one option of a list of several that is marked as correct."""
        marks: dict[str, bool] = {}
        for line in lines:
            letter = _ITEM_LETTER.match(line)
            named = letter[1] if letter else self._by_text(line.partition(":")[0])
            if named in self.options:
                assert named is not None
                marks[named] = _MARKED_CORRECT.search(line) is not None
        correct = [letter for letter, right in marks.items() if right]
        return correct[0] if len(correct) == 1 and len(marks) > 1 else None

    def _boxes(self, text: str) -> Iterator[Statement]:
        for match in list(_BOX.finditer(text))[-MAX_STATEMENTS:]:
            content = _group(text, match.end() - 1)
            if content.strip():
                yield Statement(match.start(), self.resolve(content))

    def _leading(self, text: str) -> Iterator[Statement]:
        for match in list(_LEADS.finditer(text))[-MAX_STATEMENTS:]:
            if _BAD_AHEAD.search(text, max(0, match.start() - 40), match.start()):
                continue
            rest = text[match.end() : match.end() + 300].lstrip(" *_:\"'`")
            if rest.startswith("\n"):
                rest = rest.lstrip("\n *_:#")
            fragment = _sentence(rest)
            contrast = _NOT_BUT.match(fragment)
            fragment = contrast[1] if contrast else fragment
            exact = self._exact(fragment)
            if exact:
                yield Statement(match.start(), exact)
                continue
            if not fragment or _NEGATED.match(fragment):
                yield Statement(match.start(), None, binding=bool(_NONE_OF.match(fragment)))
                continue
            letter = self.resolve(fragment)
            yield Statement(match.start(), letter, binding=letter == "" or _is_foreign(fragment))

    def _trailing(self, text: str) -> Iterator[Statement]:
        position = 0
        while match := _TRAILS.search(text, position):
            position = match.start("letter") + 1
            letter, said = match["letter"], match["text"].strip(" .:,()*_-–—")
            # "B cells … so D is correct": what stands between must be the option's own text.
            if letter not in self.options or (said and self._by_text(said) != letter):
                continue
            position = match.end()
            before = text[max(0, match.start() - 30) : match.start()].rstrip("(*_ ")
            if _BAD_AHEAD.search(before):
                continue
            shared = re.search(r"\b(?:and|or|nor|both)\s*$|\b[A-Z],\s*$", before, re.IGNORECASE)
            yield Statement(match.start(), "" if shared else letter)
        for letter, folded in self.texts.items():
            if len(folded) < 4:
                continue
            pattern = re.compile(
                rf"\b{_flexible(folded)}\b\W{{0,6}}\s*(?:is|are|would\s+be|remains)\s+(?:therefore\s+|thus\s+|clearly\s+)?"
                r"(?:the\s+)?(?:single\s+)?(?:correct|best|right|most\s+(?:likely|appropriate|"
                r"accurate))\s*"
                r"(?:answer|option|choice|diagnosis|treatment|next\s+step|step|explanation|cause|"
                r"management)",
                re.IGNORECASE,
            )
            for match in pattern.finditer(text):
                if not _BAD_AHEAD.search(text, max(0, match.start() - 40), match.start()):
                    yield Statement(match.start(), self._by_text(match.group()) or letter)

    def resolve(self, fragment: str) -> str | None:
        """The option that a fragment names; "" for several at once, None for none."""
        fragment = _ADVERBS.sub("", _plain(fragment))
        if _NONE_OF.match(fragment) and not self._by_text(fragment):
            return None
        whole = self._exact(fragment)
        if whole:
            return whole
        several = _SEVERAL.match(fragment)
        if several and {several[1], several[2]} <= set(self.options):
            return ""
        if re.match(r"(?:either|both)\b", fragment, re.IGNORECASE):
            return ""
        letter = self._leading_letter(fragment)
        if letter is not None:
            return letter or None
        return self._by_text(_CUT.sub("", fragment))

    def _exact(self, fragment: str) -> str | None:
        folded = _folded(fragment)
        found = [letter for letter, text in self.texts.items() if text and text == folded]
        return found[0] if len(found) == 1 else None

    def _leading_letter(self, fragment: str) -> str | None:
        """The letter at the start; "" if it is no option's, None if there is no letter."""
        match = _LETTER.match(fragment)
        if match is None:
            return None
        labelled, letter, rest = match["label"], match["letter"], fragment[match.end() :]
        bracketed = match["open"] and match["close"]
        if not letter.isupper() and not (labelled or bracketed or not rest.strip(" .)*")):
            return None
        if letter.upper() not in self.options:
            alone = labelled or bracketed or not rest.strip() or match["close"] or match["stop"]
            return "" if alone else None
        if labelled or bracketed or match["close"] or match["stop"] or not rest.strip():
            return letter.upper()
        follows = re.match(r"\s*([A-Za-z]+)?", rest)
        word = (follows[1] or "").lower() if follows else ""
        if word in _AFTER_LETTER or not word:
            return letter.upper()
        if self._starts_with_text(rest) == letter.upper():
            return letter.upper()
        return None

    def _starts_with_text(self, rest: str) -> str | None:
        folded = _folded(rest)
        found = [c for c, text in self.texts.items() if text and folded.startswith(text)]
        return max(found, key=lambda c: len(self.texts[c])) if found else None

    def _by_text(self, fragment: str) -> str | None:
        """The option whose text a fragment holds; "" for several, None for none."""
        folded = f" {_folded(fragment)} "
        spans = []
        for letter, text in self.texts.items():
            if not text:
                continue
            if len(text) < 2 or text in ("all", "none", "both", "neither", "other", "any"):
                continue  # in a sentence these mean something else
            if text in _ANSWER_WORDS:
                if re.match(rf" {text}(?: |$)", folded):
                    spans.append((0, len(text), letter))
                continue
            start = folded.find(f" {text} ")
            if start >= 0 and not (text[0].isdigit() and _BOUND.search(folded[: start + 1])):
                spans.append((start, start + len(text), letter))
        # An option text within another option's text is not meant when the longer one stands there.
        kept = {
            letter
            for start, end, letter in spans
            if not any(s <= start and end <= e and (s, e) != (start, end) for s, e, _ in spans)
        }
        if len(kept) == 1:
            return kept.pop()
        return "" if kept else None

    def _whole_line(self, line: str) -> str | None:
        plain = _plain(line)
        whole = self._exact(plain)
        if whole:
            return whole
        both = _TEXT_AND_LETTER.fullmatch(plain)
        if both and self._exact(both[1]) == both[2]:
            return both[2]
        match = _LETTER.match(plain)
        if match is None:
            return None
        letter, rest = match["letter"], plain[match.end() :].strip(" .*")
        marked = match["close"] or match["stop"] or match["label"]
        if letter.upper() not in self.options or not (letter.isupper() or marked):
            return None
        if not rest:
            return letter.upper()
        if (marked or letter.isupper()) and self._starts_with_text(rest) == letter.upper():
            return letter.upper()
        return None

    def _concluding_sentence(self, text: str) -> str | None:
        """The one option that the last sentence to name any names, if it does so conclusively."""
        sentences = [s for s in re.split(r"(?<=[.!?])\s+|\n+", text) if s.strip(" *_#->")]
        for sentence in sentences[-1:-4:-1]:
            if _REFUSAL.search(sentence):
                return None
            bare = _BARE_CONCLUSION.fullmatch(sentence)
            if bare:
                return bare[1] if bare[1] in self.options else None
            kept = _CUT.sub("", _SUBORDINATE.sub("", sentence))
            ending = self._ending(kept) or self._ending(sentence)
            if ending:
                return ending
            letters = {m[1] or m[2] for m in _NAMED.finditer(kept)} & set(self.options)
            named = letters or set(filter(None, [self._by_text(kept)]))
            if len(named) == 1:
                conclusive = _CONCLUSIVE.search(kept) and not _HEDGE.search(kept)
                return named.pop() if conclusive else None
            if letters or self._by_text(kept) == "" or len(sentence) > MAX_REMARK:
                return None
        return None

    def _ending(self, sentence: str) -> str | None:
        """The option whose text ends a sentence: "the most likely cause is <text>"."""
        for letter, text in self.texts.items():
            said = rf"(?:\b(?:is|are|be|was)|['’]s)\s+(?:an?\s+|the\s+)?{_flexible(text)}"
            end = re.compile(rf"{said}(?:\W*$|\s*[,;])", re.IGNORECASE)
            match = end.search(sentence) if len(text) > 1 else None
            if match is None or _HEDGE.search(sentence[: match.start()].rpartition(",")[2]):
                continue
            if self._by_text(_CUT.sub("", sentence[match.end() :])) in (None, letter):
                return letter  # else it is the first of several
        return None


_BOUND = re.compile(r"(?:\d\S*(?: (?:to|and|or))?|than|over|under|between|least|at most) $")
"""Ahead of a number: it is the end of a range, or a bound."""
_ITEM_LETTER = re.compile(r"\W*(?:[Oo]ption\s+|[Cc]hoice\s+)?\(?([A-Z])(?:[.):]|\s[-–—])")
_MARKED_CORRECT = re.compile(
    r"(?<!not )(?<!n't )\bcorrect(?:ly)?\s*(?:[.,!);:–—-]|$|answer|choice|option)|"
    r"[✓✔✅]",
    re.IGNORECASE,
)
_DISCUSSION = re.compile(
    r"\b(?:(?:each|every|all)\s+(?:of\s+the\s+)?(?:options?|choices?)|let me|let's|let us|"
    r"step by step)\b",
    re.IGNORECASE,
)
_NAMED = re.compile(r"\(([A-Z])\)|\b(?:[Oo]ption|[Cc]hoice)\s+\(?([A-Z])\b")
_ADVERBS = re.compile(
    r"^\W*(?:(?:actually|indeed|therefore|thus|clearly|most likely|likely|probably|definitely|"
    r"really|"
    r"in fact|still|then|simply|certainly)\b\W*)+(?=[(A-Za-z\d])",
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
    r"\W*?(?P<label>(?:option|choice|letter|"
    r"answer)\s+(?:is\s+)?)?(?P<open>[(\[]\s*)?(?P<letter>[A-Za-z])"
    r"(?P<close>\s*[)\]])?(?P<stop>\s*[.:,;—–]|\s+-\s|\s*$)?(?![A-Za-z0-9'’-])",
    re.IGNORECASE,
)
_SEVERAL = re.compile(
    r"\W*(?:either\s+|both\s+|options?\s+)?\(?([A-Z])\)?\W*?\s*(?:and|or|/|,|&|"
    r"\+)\s*(?:option\s+)?\(?([A-Z])\)?(?![A-Za-z])"
)
_AFTER_LETTER_TEXT = (
    "because since as which for due given is and but that this in with based although while so"
)
_AFTER_LETTER = frozenset(_AFTER_LETTER_TEXT.split())


def _is_foreign(fragment: str) -> bool:
    """Whether a fragment names a letter that is no option, plainly as the answer."""
    return re.match(r"\W*(?:option\s+)?\(?[A-Z]\)?\s*(?:[.,;:)]|$)", _plain(fragment)) is not None


def _plain(text: str) -> str:
    """Without LaTeX and Markdown."""
    text = re.sub(
        r"\\(?:text(?:bf|it|rm)?|mathrm|mathbf|boldsymbol|mathit|mbox)(?![a-z])\s*", "", text
    )
    text = re.sub(r"\\(?:boxed|fbox)", "", text)
    text = re.sub(r"\\[()\[\],;! ]|[${}*_`\"“”]", " ", text)
    return " ".join(text.split())


def _folded(text: str) -> str:
    """Lower case, words and numbers only: how option texts are compared."""
    spelled = _plain(text).lower().replace("ae", "e").replace("oe", "e")
    return " ".join(re.findall(r"[^\W_]+|[%+<>≥≤=/.](?=\d)|[%↑↓]", spelled))


def _flexible(folded: str) -> str:
    return r"\W+".join(map(re.escape, folded.split()))


def _sentence(text: str) -> str:
    """Up to the end of the sentence or line; a full stop behind an option letter ends nothing."""
    text = text.split("\n", 1)[0]
    for end in re.finditer(r"[.!?](?=\s|$)", text):
        if not re.fullmatch(r"\W*(?:[Oo]ption\s+)?\(?[A-Za-z]", text[: end.start()]):
            return text[: end.start()]
    return text


def _group(text: str, start: int) -> str:
    depth = 0
    for position in range(start, min(len(text), start + 2000)):
        if text[position] == "{":
            depth += 1
        elif text[position] == "}":
            depth -= 1
            if depth == 0:
                return text[start + 1 : position]
    return text[start + 1 : start + 200].split("\n")[0]
