"""Finding the places of a sentence that say an option, in its words or by its letter."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rapidfuzz.distance import Levenshtein

from deft.evaluators.grading.choice.vocabulary import (
    DIRECTED,
    FILLER,
    MIN_INEXACT,
    OPPOSITE,
    STOP_WORDS,
    Token,
    main_words,
    stem,
    tokens_of,
)

MIN_COVERAGE = 0.75
"""Share of an option's weight that must be said, between 0 and 1; for options of up to 4 words."""
MIN_COVERAGE_LONG = 0.66
"""The same for longer options, and where every word is said that no other option has."""
MAX_RANGE_GAP = 6
"""Characters between the ends of a range (``5 to 7``), or between a bound and its number."""
_LETTERED_TEXT = (
    "vitamin vit hepatitis hep type grade group factor stage class protein influenza strep phase "
    "category schedule hemophilia haemophilia hemoglobin haemoglobin immunoglobulin complement "
    "coenzyme cytochrome bipolar angiotensin"
)
LETTERED = frozenset(_LETTERED_TEXT.split())
"""What is itself told apart by letters: vitamin C is not option C."""
_ALL_OR_NONE = re.compile(r"\W*(all|none)(?:\s+of)?\s+(?:the\s+)?(?:above|these)\b", re.IGNORECASE)
_COLLECTIVE = {
    word: re.compile(
        rf"\b{word}\s+(?:of\s+)?(?:the\s+)?(?:above|these|them|three|four|options|listed)\b",
        re.IGNORECASE,
    )
    for word in ("all", "none")
}
"""How prose says "all of the above"."""
_BY_LETTER = re.compile(
    r"""
    \b(?:[Oo]ption|[Cc]hoice|[Ll]etter|[Aa]nswer)s?\s+\(?([A-Z])\b
    | \(([A-Z])\)
    | (?<!\S)((?!I\s+(?:was|would|must|should|can|could|may|might)\b)[A-Z])
      (?=\W*$|[.!?]\s+(?![a-z])|[,;:)]|\s+(?:is|was|are|would|must|should|seems?|appears?|remains|fits
          |matches|makes|stands|looks|sounds|explains|describes|corresponds|has|can|could|may|might
          |because|since|as|and|or|nor|but|over|rather|than|it|the)\b)
    """,
    re.VERBOSE,
)
"""An option named by its letter; not the article, a vitamin, a B cell or *E. coli*."""
_SPECIES = re.compile(r"[A-Z][a-z]{3,} [a-z]{4,}", re.ASCII)
_GENUS = re.compile(
    r"(?:^|(?<=[a-z,:(] ))([A-Z][a-z]{3,})(?! [a-z]+(?:us|um|ans|ens|ae|osa|ii?|is)\b)",
    re.MULTILINE,
)
_ANSWER_WORDS = frozenset(map(stem, ("yes", "no", "maybe", "true", "false", "not")))
_NEGATIVE = frozenset(("no", "not", "without", "never", "cannot"))
_CONTRASTS = frozenset(("rather", "not", "or", "but", "versus", "vs", "instead", "unlike"))
_BOUNDS = frozenset(("more", "increase", "decrease", "over", "under", "least"))


@dataclass(frozen=True)
class _Form:
    """One way of writing an option: its words with their weights."""

    letter: str
    words: tuple[str, ...]
    weights: dict[str, float]
    exact: bool
    """Whether the words must follow each other as they are: numbers, negations, single letters."""
    unique: frozenset[str]
    """Words that no other option has."""
    span: int
    """Words of text within which the option must be said."""


class OptionMatcher:
    """Find the options in a sentence."""

    def __init__(self, options: Mapping[str, str], text: str) -> None:
        aliases = dict(_initials(text, options.values()))
        text_words = [t.word for t in tokens_of(text)]
        genera = frozenset(stem(m[1]) for m in _GENUS.finditer(text))
        joined = {a + b: (a, b) for a, b in pairwise(text_words)}
        worded = {
            letter: [
                [w for w in form if w not in STOP_WORDS]
                for form in _variants(option, aliases, frozenset(text_words), joined, genera)
            ]
            for letter, option in options.items()
        }
        self.options = dict(options)
        self.forms: list[_Form] = []
        self.collective = {
            letter: _COLLECTIVE[match[1].lower()]
            for letter, option in options.items()
            if (match := _ALL_OR_NONE.match(option))
        }
        bags = {letter: {w for form in forms for w in form} for letter, forms in worded.items()}
        for letter, forms in worded.items():
            others = [bag for other, bag in bags.items() if other != letter]
            for form in forms:
                made = _form(letter, form, others)
                if made:
                    self.forms.append(made)

    def spans(self, sentence: str) -> list[tuple[str, int, int]]:
        """Return letter, first and last character of every place that says an option."""
        tokens = [t for t in tokens_of(sentence) if t.word not in STOP_WORDS]
        weighted = [
            (letter, a, b, weight)
            for form in self.forms
            for letter, a, b, weight in _found(form, tokens)
        ]
        # Of two options in one place the one of which more is said is meant.
        heaviest = [
            (letter, a, b)
            for letter, a, b, weight in weighted
            if not any(
                other != letter and c <= b and a <= d and more > weight + 0.05
                for other, c, d, more in weighted
            )
        ]
        unique = sorted(set(heaviest), key=lambda span: (span[1], -span[2]))
        result: list[tuple[str, int, int]] = []
        for letter, a, b in unique:
            option = self.options[letter]
            short = len(option.split()) <= 4 and not re.search("[,;:]", option)
            if short and re.search(r"[,;:]\s", sentence[tokens[a].start : tokens[b].end]):
                continue
            if not any(letter == other and a <= d and c <= b for other, c, d in result):
                result.append((letter, a, b))
        worded = [(letter, tokens[a].start, tokens[b].end) for letter, a, b in result]
        spans = [*worded, *self._named(sentence)]
        # What stands behind a closing bracket still speaks of what is in the brackets.
        return sorted(
            ((letter, a, _behind_bracket(sentence, b)) for letter, a, b in spans),
            key=lambda span: span[1],
        )

    def _named(self, sentence: str) -> Iterator[tuple[str, int, int]]:
        """Yield the places that name an option by its letter, or say "all of the above"."""
        for match in _BY_LETTER.finditer(sentence):
            group = match.lastindex or 0
            ahead = sentence[: match.start(group)].split()[-1:]
            if match[group] in self.options and not LETTERED & {w.lower() for w in ahead}:
                yield match[group], *match.span(group)
        for letter, pattern in self.collective.items():
            for match in pattern.finditer(sentence):
                yield letter, *match.span()


def _behind_bracket(sentence: str, end: int) -> int:
    closing = re.compile(r"[\w \t-]{0,40}\)").match(sentence, end)
    return closing.end() if closing else end


def _initials(text: str, options: Iterable[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the abbreviations that a text uses for options: ``an RCT``, ``the LAD``."""
    used = set(re.findall(r"\b[A-Z]{2,6}\b", text.replace("-", "")))
    if not used:
        return
    for option in options:
        words, main = main_words(option)
        parts = [words[a : a + n] for n in (3, 4, 5, 6) for a in range(len(words) - n + 1)]
        for short in used if 1 < len(main) < 5 else ():
            if len(short) > 2 and _shortens(short.lower(), " ".join(main).lower()):
                yield stem(short), tuple(map(stem, main))
        for spelt in (words, main, *parts, main[:-1] if len(main) > 3 else main):
            initials = "".join(w[0].upper() for w in spelt)
            if initials in used:
                yield stem(initials), tuple(stem(w) for w in spelt if w in main)


def _shortens(short: str, name: str) -> bool:
    """Check that ``short`` has letters of every word of a name, its first at least: DHFR."""
    if not name.startswith(short[0]) or short in name.split():
        return False
    letters = "".join(f"(?:[a-z]*?|[a-z]* ){letter}" for letter in short[1:])
    return re.fullmatch(rf"{short[0]}{letters}[a-z]*", name) is not None


def _variants(
    option: str,
    aliases: Mapping[str, tuple[str, ...]],
    text_words: frozenset[str],
    joined: Mapping[str, tuple[str, str]],
    genera: frozenset[str],
) -> Iterator[list[str]]:
    words = [t.word for t in tokens_of(option) if t.word not in STOP_WORDS]
    yield words
    if _SPECIES.fullmatch(option.strip()) and len(words) == 2:
        genus, species = words
        if genus[0] + species in joined:
            yield [genus[0], species]
        if genus[:5] in text_words:
            yield [genus[:5], species]  # Staph aureus
        if genus in genera:
            yield [genus]
    for at, word in enumerate(words):
        if at and words[at - 1] + word in text_words:
            yield [*words[: at - 1], words[at - 1] + word, *words[at + 1 :]]
    if any(w in aliases for w in words):
        yield [part for w in words for part in aliases.get(w, (w,))]
    for short, long in aliases.items():
        size = len(long)
        for at in range(len(words) - size + 1):
            if tuple(words[at : at + size]) == long:
                yield [*words[:at], short, *words[at + size :]]
    outside = re.sub(r"\([^)]*\)", " ", option)
    if outside != option and len(outside.strip()) >= 4:
        yield [t.word for t in tokens_of(outside)]


def _form(letter: str, words: Sequence[str], others: Sequence[set[str]]) -> _Form | None:
    if not words or "".join(words) in _ANSWER_WORDS:
        return None
    code = re.fullmatch(r"[a-z]+\d+|\d+%?", "".join(words))
    if len("".join(words)) < 3 and not code:
        return None
    exact = any(bag == set(words) for bag in others)
    weights = {}
    for word in set(words):
        shared = sum(word in bag for bag in others)
        weight = 0.0 if others and shared == len(others) else 1 / (1 + shared)
        weights[word] = weight * (0.3 if word in FILLER else 1.0)
    if exact and not any(weights.values()):
        weights = dict.fromkeys(words, 1.0)  # the same words in another order
    if not any(weights.values()):
        return None
    numeric = any(w[0].isdigit() or w in "<>≤≥" or len(w) == 1 or w == "letter-a" for w in words)
    negative = any(w in _NEGATIVE for w in words)
    directed = sum(w in DIRECTED for w in words) > 1
    exact = exact or negative or directed or (numeric and len(words) <= 3)
    core = list(words)
    while core and (core[-1] in FILLER or not weights[core[-1]]):
        core.pop()
    if exact and len(core) > 1 and not any(set(core) <= bag for bag in others):
        words = core
    unique = frozenset(w for w in words if not any(w in bag for bag in others))
    return _Form(letter, tuple(words), weights, exact, unique, 2 * len(words) + 4)


def _found(form: _Form, tokens: Sequence[Token]) -> Iterator[tuple[str, int, int, float]]:
    words = [t.word for t in tokens]
    size = len(form.words)
    total = sum(form.weights.values())
    if form.exact:
        for at in range(len(words) - size + 1):
            if tuple(words[at : at + size]) == form.words and not _in_range(tokens, at, size):
                yield form.letter, at, at + size - 1, total + 1
        return
    least = MIN_COVERAGE if size <= 4 else MIN_COVERAGE_LONG
    at = 0
    while at < len(words):
        window, next_window = _window(form, words, at), None
        if window is None:
            at += 1
            continue
        covered, end, missing = window
        for start in range(at + 1, end + 1):
            next_window = _window(form, words, start)
            if next_window and next_window[0] >= covered and next_window[1] - start <= end - at:
                break  # the option begins later
        else:
            start = at
        if start > at:
            at = start
        elif covered / total >= (
            MIN_COVERAGE_LONG if _is_telling(form, missing) else least
        ) and not _contradicted(form, words, at, end, missing):
            yield form.letter, at, end, covered
            at = end + 1
        else:
            at += 1


def _is_telling(form: _Form, missing: set[str]) -> bool:
    """Check for a long word that no other option has: circumflex, but not left."""
    return not missing & form.unique and any(
        len(word) >= MIN_INEXACT and word not in OPPOSITE for word in form.unique
    )


def _window(form: _Form, words: Sequence[str], at: int) -> tuple[float, int, set[str]] | None:
    """Measure how much of a form is said from word ``at`` on: weight, last word, words missing."""
    if form.weights.get(words[at], 0) < 0.3 * max(form.weights.values()):
        return None  # an option's place begins where something particular to it is said
    places: dict[str, int] = {}
    stop = min(len(words), at + form.span)
    for place in range(at, stop):
        if words[place] in _CONTRASTS and words[place] not in form.words:
            stop = place
            break
        if form.weights.get(words[place]):
            places.setdefault(words[place], place)
    for word in set(form.words) - set(places):
        near = [
            place
            for place in range(at, stop)
            if max(len(word), len(words[place])) >= MIN_INEXACT
            and words[place][:2] == word[:2]  # afferent is not efferent
            and Levenshtein.distance(words[place], word) == 1
        ]
        if near:
            places[word] = near[0]
    covered = sum(form.weights[word] for word in places)
    missing = {word for word, weight in form.weights.items() if weight} - set(places)
    return covered, max(places.values()), missing


def _contradicted(form: _Form, words: Sequence[str], at: int, end: int, missing: set[str]) -> bool:
    """Check whether a word that matters is missing, or its opposite is said."""
    if missing and not form.unique - missing:
        return True
    for word in form.words:
        opposite = OPPOSITE.get(word)
        if opposite and opposite not in form.words and opposite in words[max(0, at - 2) : end + 1]:
            return True
        directed = word in DIRECTED and len(form.words) > 1
        if directed and not any(
            other in form.weights and other != word
            for place in range(at, end + 1)
            if words[place] == word
            for other in words[max(0, place - 2) : place + 3]
        ):
            return True  # it is not said of the same thing
    return False


def _in_range(tokens: Sequence[Token], at: int, size: int) -> bool:
    """Check whether a number ends a range or is a bound: ``5 to 7 days``, ``more than 50%``."""
    first, last = tokens[at], tokens[at + size - 1]
    if at and first.start - tokens[at - 1].end <= MAX_RANGE_GAP:
        before = tokens[at - 1].word
        if before[0].isdigit() or (first.word[0].isdigit() and before in _BOUNDS):
            return True
    behind = tokens[at + size : at + size + 1]
    return bool(behind and last.word[0].isdigit() and behind[0].word[0].isdigit())
