"""The forms in which option texts are compared: words, stems, values, sets of numbers."""

from __future__ import annotations

import re
from functools import lru_cache

from deft.evaluators.grading.choice.vocabulary import tokens_of

_FRAC = re.compile(r"\\[dt]?frac[{\s]*(\d+)[}{\s]+(\d+)[}\s]*")
_FRACTION = re.compile(r"[\s$(\\]*(\d+\.?\d*|\.\d+)(?:\s*/\s*(\d+))?(\s*\\?%)?[\s$).\\]*")


@lru_cache(maxsize=1_000)
def plain_text(text: str) -> str:
    """Remove LaTeX and Markdown."""
    text = re.sub(
        r"\\(?:text(?:bf|it|rm)?|mathrm|mathbf|boldsymbol|mathit|mbox)(?![a-z])\s*", "", text
    )
    text = re.sub(r"\\(?:boxed|fbox)", "", text)
    text = re.sub(r"\\[()\[\],;! ]|[${}*_`\"“”]", " ", text)
    return " ".join(text.split())


@lru_cache(maxsize=1_000)
def folded(text: str) -> str:
    """Keep words and numbers only, in lower case: the form in which option texts are compared."""
    spelled = plain_text(text).lower().replace("ae", "e").replace("oe", "e")
    return " ".join(re.findall(r"[^\W_]+|[%+<>≥≤=/.](?=\d)|[%↑↓]", spelled))


@lru_cache(maxsize=1_000)
def value_of(text: str) -> float | None:
    """Return the number that a text is: 25 %, 0.25, 1/4, \\frac{1}{4}."""
    number = _FRACTION.fullmatch(_FRAC.sub(r"\1/\2", text))
    if number is None or not float(number[2] or 1):
        return None
    return float(number[1]) / float(number[2] or 1) / (100 if number[3] else 1)


@lru_cache(maxsize=1_000)
def stems_of(text: str) -> str:
    """Return the stems of the words of a text, without articles: decreased is decreases."""
    text = text.replace("↑", " increase ").replace("↓", " decrease ")
    words = [token.word for token in tokens_of(plain_text(text))]
    if any(character.isdigit() for character in text):
        return ""  # numbers are compared by value
    return " ".join(word for word in words if word not in ("the", "an", "it", "will", "be", "is"))


@lru_cache(maxsize=1_000)
def number_set(text: str) -> frozenset[str] | None:
    """Return the numbers of a text that lists several and says nothing else: ``1, 2 and 3``."""
    if not re.fullmatch(r"\W*\d(?:(?:[\s,;&+]|\band\b)+\d)+\W*(?:only\W*)?", text):
        return None
    return frozenset(re.findall(r"\d", text))
