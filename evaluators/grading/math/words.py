"""Words in answers: which letters are a word, and when two phrases are the same."""

from __future__ import annotations

import re

from deft.evaluators.grading.math.latex import split_texts
from deft.evaluators.grading.math.quantities import is_unit

_ARTICLES = re.compile(r"\b(?:the|an?|is|it|its|it's|there (?:is|are)|triangle|function|student)\b")
_ORDINAL = re.compile(r"(?<=\d)(?:st|nd|rd|th)\b")
_WORD_RUN = re.compile(r"(?<![a-zA-Z\\])[A-Za-z][a-zA-Z']*(?:[ -][A-Za-z][a-zA-Z']*)*")
_SHORT_WORDS_TEXT = (
    "or and to no is of by in at if not yes per am pm cm km mm kg mg ml ft mi hr hrs min sec "
    "mph lb lbs oz rad cent cents odd even day days deg kph kmh mol"
)
_SHORT_WORDS = frozenset(_SHORT_WORDS_TEXT.split())
_RATE = re.compile(r"\\text\{([a-zA-Z]+)\}/([a-zA-Z]+)(?![a-zA-Z(])")
"""``km/h``, of which only the first is long enough to be a word."""
MONTHS = "january|february|march|april|may|june|july|august|september|october|november|december"
DATE = re.compile(rf"(?:(\d{{1,2}}) (?:of )?)?({MONTHS})(?: (\d{{1,2}})(?!\d))?(?:,? (\d{{4}}))?")
NEGATIONS = re.compile(
    r"\b(?:not|no|never|none|except|unless|least|most|more|less|than|greater|neither|if|when|n't"
    r"|other|minus|negative|plus|times|divided|over|half|twice|double|below|above|between)\b|n't\b",
    re.IGNORECASE,
)
_NAME = re.compile(
    r"\|?(?:m?\\angle\s?)?(?:\\(?:overline|bar|mathcal|vec)\{[A-Za-z]+\}|\\?[A-Za-z]+'*"
    r"|\\Delta [a-z])(?:_\{[^{}]*\})?'*(?:\^\{-1\})?(?:\(-?[^()+*/-]*\))?\|?"
)
_CONSTANT_OR_FUNCTION = re.compile(
    r"\\(?:pi|infty|emptyset|mathbb|ln|log|exp|sin|cos|tan|arc[a-z]+)(?![a-zA-Z])"
)


def plain_words(text: str) -> str:
    """Remove case, markup, articles and punctuation: the form in which phrases are compared."""
    text = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text)
    text = re.sub(r"[\\${}*_`\".,;:!?]", " ", text.lower())
    words = " ".join(_ORDINAL.sub("", _ARTICLES.sub(" ", text)).split())
    return words or " ".join(text.split())


def mark_words(text: str) -> str:
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
            # cm behind a digit is a unit; at behind a brace is a product.
            joined = not loose and re.search(r"[{(^+*/-]$", piece[: match.start()]) is not None
            pieces.append(_mark_run(match.group(), loose=loose, joined=joined))
            position = match.end()
        pieces.append(piece[position:])
        return "".join(pieces)

    marked = "".join(p if p.startswith(r"\text{") else mark(p) for p in split_texts(text))
    marked = _RATE.sub(lambda m: rf"\text{{{m[1]}/{m[2]}}}" if is_unit(m[2]) else m[0], marked)
    # Neighboring texts are one.
    return re.sub(r"\}\s*\\text\{", " ", marked) if marked.count(r"\text{") > 1 else marked


def _mark_run(run: str, *, loose: bool, joined: bool) -> str:
    """Mark one run of words: ``or x`` is a word and a variable, ``red marbles`` is one text."""
    pieces: list[str] = []
    phrase: list[str] = []

    def close() -> None:
        letters: list[str] = []
        while phrase and len(phrase[-1]) == 1 and phrase[-1].islower():
            letters.insert(0, phrase.pop())
        if phrase:
            wordy = _is_wordy(phrase, loose=loose, joined=joined)
            pieces.append(rf"\text{{{' '.join(phrase)}}}" if wordy else " ".join(phrase))
            phrase.clear()
        pieces.extend(letters)

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


def _is_wordy(words: list[str], *, loose: bool, joined: bool) -> bool:
    words = [part for word in words for part in word.split("-")]
    if not joined and any(word.lower() in _SHORT_WORDS for word in words):
        return True
    longest = max(len(word.rstrip("'")) for word in words)  # y'' is a derivative
    return longest >= 3 if loose else longest >= 5


def is_name(text: str) -> bool:
    """Check whether the left side of an equation only names the right side."""
    if _CONSTANT_OR_FUNCTION.match(text):
        return False
    if re.fullmatch(
        r"\([a-zA-Z](?:,[a-zA-Z])*\)|\\frac\{d[a-z]?\}\{d[a-z]\}|[a-z],[a-z](?:,[a-z])*"
        r"|[A-Z](?:\\(?:cup|cap|setminus)[A-Z])+",
        text,
    ):
        return True
    return _NAME.fullmatch(text) is not None or bool(re.fullmatch(r"[A-Za-z ]{3,}", text))
