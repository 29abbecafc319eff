"""Words of medical options: stems, spelling variants, opposites, numerals."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

MIN_INEXACT = 8
"""Letters of a word in which one letter may differ, beside another word that fits exactly."""
_STOP_WORDS_TEXT = (
    "a an the of in to and with for on by at from or this that is are be as its it their his her "
    "all none above both any these those due using into than only will"
)
STOP_WORDS = frozenset(_STOP_WORDS_TEXT.split())
_OPPOSITES = (
    "increase/decrease left/right upper/lower anterior/posterior medial/lateral superior/inferior "
    "proximal/distal acute/chronic primary/secondary systolic/diastolic afferent/efferent "
    "sensory/motor internal/external ascending/descending unilateral/bilateral positive/negative "
    "early/late central/peripheral before/after continue/discontinue maternal/paternal male/female "
    "direct/indirect active/passive competitive/noncompetitive reversible/irreversible "
    "dominant/recessive congenital/acquired benign/malignant sympathetic/parasympathetic "
    "series/parallel ventral/dorsal autosomal/linked presence/absence normal/abnormal "
    "inhibit/activate agonist/antagonist obstructive/restrictive open/closed dry/wet hot/cold "
    "arterial/venous metabolic/respiratory acidosis/alkalosis oral/intravenous"
)
_UP = "elevate raise raises rise rises rising high higher increase enhance greater"
_DOWN = "falls reduce low lower diminish fall decline decrease less"
_DIRECTIONS = dict.fromkeys(_UP.split(), "increase")
_DIRECTIONS |= dict.fromkeys(_DOWN.split(), "decrease")
_COUNTED = "zero one two three four five six seven eight nine ten eleven twelve"
_NUMERALS = {word: str(number) for number, word in enumerate(_COUNTED.split())}
_ROMAN = "i ii iii iv v vi vii viii ix x xi xii xiii"
_NUMERALS |= {numeral: str(number) for number, numeral in enumerate(_ROMAN.split(), 1)}
_GREEK = {"α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "κ": "kappa", "μ": "mu"}
_SUFFIX = re.compile(
    r"(?<=[a-z]{6})(?:e?al|ar|or|us|um|i?a|is|ic|iv|(?:at)?ion|ous|[ae]nc|c|tic|sis|ary|y)$"
    r"|(?<=[a-z]{5})gra(?:m|phy)$|(?<=block)ade?$|(?<=drain)ag$"
)
"""What tells a noun from its adjective behind a stem of 6 letters: meniscus, meniscal."""
_SYNONYMS_TEXT = (
    "renal/kidney hepatic/liver cardia/heart pulmon/lung cerebr/brain lymphocyt/cell "
    "correct/true incorrect/false qv/intraven"
)
_SYNONYMS = dict(pair.split("/") for pair in _SYNONYMS_TEXT.split())
"""Stems of Latin names, of verdicts and of ``IV`` (``qv``), with the plain word."""
_WORD = re.compile(r"\d+(?:[.,:/]\d+)*(?:%|\s?per\s?cent\b)?|(?<!['’])[^\W\d_]+\d*|[<>≤≥]")
_FILLER_TEXT = (
    "infection disease syndrome disorder therapy treatment administration test level serum injury "
    "condition use start perform obtain order begin administer give refer commence measurement "
    "examination evaluation initiate supplementation infusion exposure ingestion overdose patient "
    "acute chronic primary severe mild form simple mode phenomenon phase "
    "study cement position immediate immediately routine reaction process finding"
)
_INTRAVENOUS = re.compile(
    r"(?<!ype )(?<!tage )(?<!rade )(?<!ctor )(?<!lass )(?<!CN )(?<!erve )(?<!roup )(?<!hase )"
    r"(?:\bIV\b|\bi\.v\.)(?=\s+[a-z])"
)
"""``IV`` that is no numeral."""
_GOES = re.compile(r"\b(?:goes|go|went) (up|down)\b")
OPPOSITE: dict[str, str] = {}
DIRECTED = frozenset(("increase", "decrease"))


@dataclass(frozen=True)
class Token:
    """A word, normalized, with its place in the sentence (characters)."""

    word: str
    start: int
    end: int


def main_words(option: str) -> tuple[list[str], list[str]]:
    """Return all words of an option, and those that carry its meaning."""
    words = re.findall(r"[A-Za-z]+", option)
    return words, [w for w in words if w.lower() not in STOP_WORDS]


def _bare(word: str) -> str:
    bare = re.sub(r"(?<=[a-z]{4})(?:ing|ed|e)$", "", word)
    return re.sub(r"([bgmnpt])\1$", r"\1", bare) if bare != word else word  # stopped


_CANONICAL = {_bare(word): name for word, name in _DIRECTIONS.items()}


@lru_cache(maxsize=10_000)
def stem(word: str) -> str:
    """Remove inflection and spelling variants from a word; the result is no dictionary form."""
    word = re.sub(r"\s?per\s?cent$", "%", word)
    for greek, name in _GREEK.items():
        word = word.replace(greek, name)
    plain = unicodedata.normalize("NFKD", word.lower()).encode("ascii", "ignore").decode()
    if plain in _NUMERALS:
        return _NUMERALS[plain]
    if len(plain) > 4:  # questions of MedMCQA have lost every "rt": "hypeension", "aery"
        plain = plain.replace("rt", "")
    plain = plain.replace("ae", "e").replace("oe", "e").replace("our", "or")
    if plain in _DIRECTIONS:
        return _DIRECTIONS[plain]
    if len(plain) > 4 and plain.isalpha():
        plain = re.sub(r"ies$", "y", plain)
        plain = re.sub(r"(?<=[sxzh])es$|(?<![siu])s$", "", plain)
        plain = _bare(re.sub(r"(?<=[a-z]{5})ly$", "", plain))
        plain = _CANONICAL.get(plain) or _SUFFIX.sub("", plain)
    return _SYNONYMS.get(plain, plain) or word.lower()


FILLER = frozenset(map(stem, _FILLER_TEXT.split()))


def tokens_of(text: str) -> list[Token]:
    text = _INTRAVENOUS.sub(lambda m: "qv".ljust(len(m[0])), re.sub(r"[-‐‑](?=\w)", " ", text))
    text = _GOES.sub(lambda m: ("rises" if m[1] == "up" else "falls").ljust(len(m[0])), text)
    # The "A" of "vitamin A" is no article.
    return [
        Token("letter-a" if m.start() and m.group() == "A" else stem(m.group()), m.start(), m.end())
        for m in _WORD.finditer(text)
    ]


for _pair in _OPPOSITES.split():
    _one, _other = (
        stem(side) if side not in ("increase", "decrease") else side for side in _pair.split("/")
    )
    OPPOSITE |= {_one: _other, _other: _one}
