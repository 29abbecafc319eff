"""Rational numbers as they are written: integers, decimals, fractions, scientific notation."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

from deft.evaluators.grading.brackets import is_balanced
from deft.evaluators.grading.math.nodes import Scalar
from deft.evaluators.grading.math.units import UNIT_LETTERS, canonical_unit


@dataclass(frozen=True)
class Number:
    """A rational number as it was written."""

    value: Fraction
    decimals: int | None = None
    """Digits behind the decimal point, trailing zeros included; None if there is no point."""
    digits: int = 0
    """Significant digits, of decimals only."""
    scientific: bool = False


POWER = r"(?:\^\{?-?\d\}?)?"
NUMERIC = r"-?(?:\d|\\frac|\\sqrt|\\pi|\\cdot|[{}.^()+/\s-])+"
_DECIMAL = re.compile(r"(-?)(\d*)(?:\.(\d*))?")
_SCIENTIFIC = re.compile(r"(-?(?:\d+(?:\.\d+)?\\cdot ?)?)10\^\{?\(?(-?\d{1,4})\)?\}?")
_FRACTION = re.compile(r"(-?)(\d*)(?:\\frac\{(-?)(\d+)\}\{(-?)(\d+)\}|(?<=\d)/(-?)(\d+))")


@lru_cache(maxsize=8192)
def number(latex: str) -> Number | None:
    """Read a rational number that ``latex`` writes directly; None for any other expression."""
    latex = latex.strip()
    if latex.startswith("(") and latex.endswith(")") and is_balanced(latex[1:-1]):
        latex = latex[1:-1]
    if not latex or len(latex) > 3000:
        return None
    decimal = _DECIMAL.fullmatch(latex)
    if decimal and (decimal[2] or decimal[3]):
        return _decimal(*decimal.groups(default=""), pointed=decimal[3] is not None)
    scientific = _SCIENTIFIC.fullmatch(latex)
    if scientific:
        front = re.sub(r"\\cdot ?", "", scientific[1])
        base = number(front) if front not in ("", "-") else Number(Fraction(-1 if front else 1))
        assert base is not None
        value = base.value * Fraction(10) ** int(scientific[2])
        return replace(base, value=value, scientific=True, decimals=base.decimals)
    fraction = _FRACTION.fullmatch(latex)
    return _fraction(fraction) if fraction else None


def _decimal(sign: str, whole: str, behind: str, *, pointed: bool) -> Number:
    value = _fraction_of(whole + behind) / Fraction(10) ** len(behind)
    digits = len((whole + behind).lstrip("0"))
    value = -value if sign else value
    if not pointed or not behind.strip("0"):
        return Number(value, digits=digits)  # 27.0 is the integer 27
    return Number(value, len(behind), digits)


def _fraction_of(digits: str) -> Fraction:
    # Python refuses to read more than 4300 digits, by design; so do we, below that.
    return Fraction(int(digits or "0"))


def _fraction(match: re.Match[str]) -> Number | None:
    sign, whole, top_sign, top, bottom_sign, bottom, slash_sign, slash = match.groups()
    if slash is not None:
        numerator, denominator = int(whole), int(slash)
        negative = bool(sign) != bool(slash_sign)
        mixed = 0
    else:
        numerator, denominator = int(top), int(bottom)
        negative = bool(sign) ^ bool(top_sign) ^ bool(bottom_sign)
        mixed = int(whole) if whole else 0
        if whole and (top_sign or bottom_sign):
            return None
    if denominator == 0:
        return None
    value = mixed + Fraction(numerator, denominator)
    return Number(-value if negative else value)


def without_unit_letter(scalar: Scalar) -> Scalar | None:
    """Read ``5m`` as five meters, where nothing else in it is a variable."""
    match = re.fullmatch(rf"(-?\d+(?:\.\d+)?)\s?([{UNIT_LETTERS}])({POWER})", scalar.latex)
    if match is None or scalar.unit:
        return None
    return replace(scalar, latex=match[1].strip(), unit=canonical_unit(match[2] + match[3]))
