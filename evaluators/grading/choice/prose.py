"""The option that a response concludes with in free prose.

Every place that speaks of an option is found, by the option's distinctive words or by its letter,
and weighed by how the sentence around it speaks: as a conclusion, as a plain statement, as one
possibility among others, or as something turned down. One option has to stand out; whatever is less
clear than that is no answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from rapidfuzz.distance import Levenshtein

from deft.evaluators.grading.choice.option_matching import OptionMatcher
from deft.evaluators.grading.choice.standing import (
    NAMES_ANSWER,
    ODD_FRAME,
    Mention,
    Standing,
    mentions_in,
)
from deft.evaluators.grading.choice.vocabulary import MIN_INEXACT, STOP_WORDS, main_words, tokens_of

MAX_SENTENCES = 200
"""Sentences from the end of a response that are looked at."""
MAX_SENTENCE = 2_000
"""Characters from the end of a sentence that are looked at."""
_ABBREVIATION = re.compile(
    r"\b(?:e\.g|i\.e|vs|etc|approx|cf|dr|no|fig)\.$|^\W*(?:option\s+)?\(?[A-Z]\)?\.$",
    re.IGNORECASE,
)
_MARKUP = re.compile(r"\*\*|__|[`\"“”$]|^#+\s*", re.MULTILINE)
_IN_BRACKETS = re.compile(r"\([^()]*\)\W*")
_PREFACE = re.compile(
    r"^[^;]*?\b(?:not (?:\w+ )?(?:sure|certain)|unsure|difficult|hard|cannot|can't)\b[^;]*?[,;]\s*"
    r"(?:but|however|yet|still)\b\W*|^\W*if I (?:had|have|were|am) (?:forced )?to \w+,\s*",
    re.IGNORECASE,
)
"""A doubt that is overcome in the same sentence."""
_REFUSAL = re.compile(
    r"\b(?:cannot|can't|unable to|not possible to|impossible to|could not|"
    r"difficult to)\s+(?:\w+\s+)?"
    r"(?:determine|say|tell|answer|choose|decide|calculate|provide|identify|conclude|make|give)",
    re.IGNORECASE,
)
_DECLINED = re.compile(
    r"\b(?:I|we)(?:'m| am| are|'re)?\s+(?:cannot|can't(?! be\b)|unable|not able|not sure"
    r"|not certain|do not know|don't know|could not|would need)\b"
    r"|\b(?:not enough|insufficient) information\b|\b(?:I|we) need more\b",
    re.IGNORECASE,
)
_DEPENDS = re.compile(
    r"\bdepend(?:s|ing)? (?:\w+ )?(?:up)?on\b|\bfor the (?:former|latter)\b|\b(?:weighed"
    r"|individuali[sz]ed|tailored)\b",
    re.IGNORECASE,
)


def abridged(said: str, options: Mapping[str, str]) -> str | None:
    """Return the letter of the one option (letter to text) of whose words ``said`` consists."""
    capitals = re.fullmatch(r"\W*(?:an?\s+|the\s+)?([A-Z]{2,6})\W*", said)
    if capitals:
        named = [c for c, text in options.items() if capitals[1] in _all_initials(text)]
        if len(named) == 1:
            return named[0]
    words = {t.word for t in tokens_of(said)} - STOP_WORDS
    matches = [c for c, text in options.items() if words and _within(words, text)]
    if len(matches) > 1:  # both are true
        every = {t.word for t in tokens_of(said)}
        matches = [c for c in matches if every <= {t.word for t in tokens_of(options[c])}]
    return matches[0] if len(matches) == 1 else None


def _all_initials(option: str) -> tuple[str, str]:
    """Return the initials of all words of an option, and of the main ones: MI."""
    words, main = main_words(option)
    return "".join(w[0].upper() for w in words), "".join(w[0].upper() for w in main)


def _within(words: Iterable[str], option: str) -> bool:
    """Check that an option has all the words; in long ones a letter may differ."""
    words_had = [t.word.rstrip("%") for t in tokens_of(option)]
    return all(
        word.rstrip("%") in words_had
        or (len(word) >= 3 and any(o.startswith(word) for o in words_had))
        or (
            len(word) >= MIN_INEXACT - 1
            and any(Levenshtein.distance(word, o) == 1 for o in words_had)
        )
        for word in words
    )


def concluded(text: str, options: Mapping[str, str]) -> str | None:
    """Return the letter of the one option (letter to text) that ``text`` settles on."""
    sentences = _sentences(text)
    if not sentences:
        return None
    matcher = OptionMatcher(options, text)
    mentions = [
        mention
        for index, sentence in enumerate(sentences)
        for mention in mentions_in(index, sentence, matcher)
    ]
    elsewhere = [
        index
        for index, sentence in enumerate(sentences)
        if NAMES_ANSWER.search(sentence)
        and not any(m.sentence == index and m.standing >= Standing.stated for m in mentions)
    ]
    if _REFUSAL.search(sentences[-1]) or any(map(_DECLINED.search, sentences)):
        return None
    strong = [m for m in mentions if m.standing == Standing.concluded]
    if strong:
        return _settled(strong, mentions, elsewhere, len(sentences) - 1)
    excepted = _exception(mentions, len(options))
    if excepted:
        return excepted
    if elsewhere or any(map(ODD_FRAME.search, sentences)):
        return None  # the answer it names is none of the options
    if any(map(_DEPENDS.search, sentences)):
        return None
    suggested = [m for m in mentions if m.standing == Standing.suggested]
    if suggested:
        first, last = suggested[0], suggested[-1]
        if first.letter != last.letter and first.start == last.start == 0:
            return None  # "X is the antidote for one, Y is the antidote for another"
        return _settled(suggested, mentions, elsewhere, len(sentences) - 1)
    return _only_subject(mentions, len(sentences)) or _left_over(mentions, len(sentences) - 1)


def _settled(
    strong: Sequence[Mention], mentions: Sequence[Mention], elsewhere: Sequence[int], end: int
) -> str | None:
    """Return the option that the ``strong`` mentions speak for.

    Where they differ, that of the last sentence (number ``end``), or else the first: an answer is
    given at the end, or at once and then explained.
    """
    differ = len({m.letter for m in strong}) > 1
    chosen = strong[0] if differ and strong[-1].sentence < end else strong[-1]
    repeated = [m for m in mentions if m.sentence > chosen.sentence and m.letter == chosen.letter]
    if any(m.standing == Standing.rejected for m in repeated) and not chosen.exception:
        return None
    if any(index > chosen.sentence for index in elsewhere):
        return None
    return chosen.letter


def _exception(mentions: Sequence[Mention], size: int) -> str | None:
    """Return the option that is said not to belong, if all the others do or are left out."""
    rejected = {m.letter for m in mentions if m.standing == Standing.rejected}
    granted = {m.letter for m in mentions} - rejected
    odd = {m.letter for m in mentions if m.exception}
    if len(rejected) == 1 and len(granted) >= 2 and len(granted) == size - 1:
        odd = rejected
    if len(odd) != 1:
        return None
    letter = odd.pop()
    others = [m for m in mentions if m.letter != letter and m.standing != Standing.rejected]
    times = sum(m.exception for m in mentions)
    if times == 1 and any(m.letter == letter and m.standing >= Standing.stated for m in mentions):
        return None
    if any(m.letter != letter and m.standing == Standing.rejected for m in mentions):
        return None
    return letter if len({m.letter for m in others}) != 1 else None


def _only_subject(mentions: Sequence[Mention], sentences: int) -> str | None:
    """Return the only option that is spoken of, if the text opens or ends with stating it."""
    letters = {m.letter for m in mentions}
    places = {m.sentence for m in mentions if m.standing == Standing.stated}
    if len(letters) != 1 or not places & {0, sentences - 2, sentences - 1}:
        return None
    if any(m.standing == Standing.rejected for m in mentions):
        return None
    return letters.pop()


def _left_over(mentions: Sequence[Mention], end: int) -> str | None:
    """Return the option that is stated where all others that are mentioned are turned down.

    That is said in the last sentence, or of two others at least.
    """
    letters = {m.letter for m in mentions}
    stated = {m.letter for m in mentions if m.standing >= Standing.stated}
    others = {m.letter for m in mentions if m.standing == Standing.rejected} - stated
    if len(letters - others) != 1:
        return None
    letter = (letters - others).pop()
    own = [m for m in mentions if m.letter == letter]
    apart = all(m.sentence < end or m.start > own[-1].start for m in mentions if m.letter in others)
    enough = len(others) > 1 or (len(others) == 1 and own[-1].sentence == end and apart)
    return letter if enough and all(m.standing >= Standing.stated for m in own) else None


def _sentences(text: str) -> list[str]:
    """Split into sentences; an item of a list keeps its mark."""
    sentences: list[str] = []
    for line in _MARKUP.sub("", text).split("\n"):
        start = 0
        for end in re.finditer(r"[.!?](?=\s+[A-Z(])", line):
            piece = line[start : end.end()]
            if _ABBREVIATION.search(piece) or re.fullmatch(r"\s*\d+\.", piece):
                continue
            sentences.append(piece.strip())
            start = end.end()
        sentences.append(line[start:].strip())
    worded = [sentence[-MAX_SENTENCE:] for sentence in sentences if re.search(r"\w", sentence)]
    worded = [s for s in worded if not _IN_BRACKETS.fullmatch(s)] or worded
    return [_PREFACE.sub("", sentence) for sentence in worded[-MAX_SENTENCES:]]
