"""Phrases that stand for a quantity or a set: times of day, compound units, sets in words."""

from __future__ import annotations

import re
from fractions import Fraction

from deft.evaluators.grading.math.nodes import Clock, Scalar
from deft.evaluators.grading.math.quantities import canonical_unit

CLOCK_HALF = re.compile(r"[ap]\.?m\.?", re.IGNORECASE)
_CLOCK = re.compile(r"(\d{1,2})\s?:\s?(\d\d)(?::00)?\s*(?:([ap])\.?\s?m\.?)?", re.IGNORECASE)
_COMPOUND_UNITS = {("h", "min"): 60, ("min", "s"): 60, ("ft", "in"): 12, ("dollar", "cent"): 100,
                   ("day", "h"): 24, ("lb", "oz"): 16, ("m", "cm"): 100}  # fmt: skip
_COMPOUND = re.compile(r"(\d+)\s*([a-zA-Z]+),?\s*(?:and\s*)?(\d+)\s*([a-zA-Z]+)")
_ARC_MINUTES = re.compile(r"(\d+)°\s*(\d+)'\s*(?:(\d+)(?:''|\"))?")
_SET_OF_REALS = re.compile(
    r"(?:the set of )?(?:all )?(?:(?P<sign>positive|negative|non-?\s?negative|non-?\s?positive) )?"
    r"(?:real )?(?:numbers|reals|values)(?: of [a-z]| [a-z])?"
    r"(?:,? (?:(?P<except>except(?: for)?|other than|not equal to)"
    r"|(?:that are )?(?P<bound>greater than or equal to|less than or equal to|at least|at most"
    r"|greater than|less than|larger than|smaller than)) (?:[a-z] ?= ?)?(?P<end>.+))?",
    re.IGNORECASE,
)
_BOUNDS = {"greater than": ">", "larger than": ">", "at least": ">=", "less than": "<",
           "greater than or equal to": ">=", "smaller than": "<", "at most": "<=",
           "less than or equal to": "<="}  # fmt: skip
_SIGNED = {"positive": r"(0,\infty)", "negative": r"(-\infty,0)", "nonnegative": r"[0,\infty)",
           "nonpositive": r"(-\infty,0]"}  # fmt: skip


def rational(value: Fraction, unit: str = "", *, degree: bool = False) -> Scalar:
    fraction = rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
    return Scalar(fraction if value.denominator > 1 else str(value.numerator), unit, degree=degree)


def _untexted(text: str) -> str:
    return " ".join(re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text).split())


def read_clock(text: str) -> Clock | None:
    match = _CLOCK.fullmatch(_untexted(text))
    if match is None or int(match[1]) > 24 or int(match[2]) > 59:
        return None
    return Clock(int(match[1]), int(match[2]), (match[3] or "").lower())


def read_compound(text: str) -> Scalar | None:
    """Read ``2 hours 20 minutes`` or ``37° 30'`` as one quantity."""
    bare = _untexted(text)
    arc = _ARC_MINUTES.fullmatch(bare)
    if arc:
        value = Fraction(int(arc[1])) + Fraction(int(arc[2]), 60) + Fraction(int(arc[3] or 0), 3600)
        return rational(value, degree=True)
    match = _COMPOUND.fullmatch(bare)
    if match is None:
        return None
    units = canonical_unit(match[2]), canonical_unit(match[4])
    per = _COMPOUND_UNITS.get(units)
    return rational(int(match[1]) + Fraction(int(match[3]), per), units[0]) if per else None


def described_set(text: str) -> str | None:
    """Write ``all real numbers except x = 2`` or ``all positive real numbers`` as a set."""
    if "real" not in text and "positive" not in text and "negative" not in text:
        return None
    match = _SET_OF_REALS.fullmatch(_untexted(text))
    if match is None or not (match["sign"] or match["end"]):
        return None
    if match["sign"]:
        return _SIGNED[re.sub("[- ]", "", match["sign"].lower())]
    if match["except"]:
        excluded = re.sub(r"\s*(?:,|\band\b|\bor\b)\s*", ",", match["end"])
        return rf"\mathbb{{R}}\setminus \{{{excluded}\}}"
    sign, end = _BOUNDS[match["bound"].lower()], match["end"]
    if sign[0] == ">":
        return rf"{'[' if sign == '>=' else '('}{end},\infty)"
    return rf"(-\infty,{end}{']' if sign == '<=' else ')'}"
