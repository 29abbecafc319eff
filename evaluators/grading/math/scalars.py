"""Equality of single values: units, percentages, angles, rounded decimals, expressions."""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction

import mpmath

from deft.evaluators.grading.math import expressions
from deft.evaluators.grading.math.expressions import NotParsedError
from deft.evaluators.grading.math.interpreter import NotComputedError
from deft.evaluators.grading.math.nodes import (
    Scalar,
)
from deft.evaluators.grading.math.quantities import (
    Number,
    compatible,
    conversion,
    number,
    without_unit_letter,
)

_MIXED = re.compile(r"(?<![\d.}])(\d+)\\frac\{(\d+)\}\{(\d+)\}")
BARE_LOG = re.compile(r"\\log(?![_a-zA-Z])")
_RATE_OF_CHANGE = re.compile(r"\\frac\{d ?(\\?[a-zA-Z]+) ?\}\{d ?([a-z])\}")
_DEGREES_IN_FUNCTION = re.compile(r"(\d+(?:\.\d+)?)°")


def same_scalars(gold: Scalar, answer: Scalar) -> bool:
    # Numerals are compared digit for digit: converting them would let 22 stand for 10110_2.
    if {gold.base, answer.base} - {"", "10"}:
        return gold.base == answer.base and gold.latex.lstrip("0") == answer.latex.lstrip("0")
    # Marks are looked at before values, so that equal values cannot hide 36 % against 36 cm.
    if _contradict(gold, answer):
        return False
    # Only metric units, imperial ones among themselves, time and money: their factors are exact.
    factor = conversion(answer.unit, gold.unit) if gold.unit and answer.unit else None
    if factor is not None:
        latex = answer.latex if factor == 1 else _times(answer.latex, factor)
        answer = replace(answer, unit=gold.unit, latex=latex)
    elif not compatible(gold.unit, answer.unit):
        return False
    if (
        gold.unit == "dozen"
        and not answer.unit
        and _same_latex(_times(gold.latex, Fraction(12)), answer.latex)
    ):
        return True
    if gold.percent != answer.percent:
        return _same_percentage(gold, answer)
    if gold.degree != answer.degree:
        return _same_angle(gold, answer)
    # A bare gold answer with a decimal point that is met by cents was meant in dollars.
    if answer.unit == "cent" and not gold.unit and "." in gold.latex:
        answer = Scalar(_times(answer.latex, Fraction(1, 100)))
    if _same_latex(gold.latex, answer.latex):
        return True
    read = without_unit_letter(answer)
    if read is not None and number(gold.latex) is not None:
        return same_scalars(gold, read)
    # In a gold answer of "6m" the letter is a variable, unless the answer comes with that unit.
    read = without_unit_letter(gold) if answer.unit else None
    return read is not None and number(answer.latex) is not None and same_scalars(read, answer)


def _contradict(gold: Scalar, answer: Scalar) -> bool:
    """Check for marks of different kinds, such as percent and degrees.

    A mark that is missing contradicts none, but for temperatures: 7 is not 7 °F.
    """
    kinds = [
        "percent" if side.percent else "degree" if side.degree else side.unit
        for side in (gold, answer)
    ]
    if not kinds[0]:
        return kinds[1] in ("celsius", "fahrenheit")
    marked = {"percent", "degree"} & set(kinds)
    return bool(kinds[1] and marked and kinds[0] != kinds[1]) and kinds[1] != "rad"


def _same_percentage(gold: Scalar, answer: Scalar) -> bool:
    """Compare a percentage with a bare number.

    Where percent are asked for, 50 says 50 %, and so does 1/2; where a number is, 50 % is 1/2 only.
    """
    percent = gold if gold.percent else answer
    share = _times(percent.latex, Fraction(1, 100))
    if gold.percent:
        return _same_latex(share, answer.latex) or _same_latex(gold.latex, answer.latex)
    return _same_latex(gold.latex, share)


def _times(latex: str, factor: Fraction) -> str:
    written = number(latex)
    if written is None:
        return rf"\frac{{({latex})\cdot {factor.numerator}}}{{{factor.denominator}}}"
    value = written.value * factor
    sign = "-" if value < 0 else ""
    return rf"{sign}\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"


def _same_angle(gold: Scalar, answer: Scalar) -> bool:
    degrees, bare = (gold, answer) if gold.degree else (answer, gold)
    if bare.unit == "rad" and r"\pi" not in bare.latex:
        return False
    if r"\pi" in bare.latex and r"\pi" not in degrees.latex:
        radians = rf"({degrees.latex})\cdot\frac{{\pi}}{{180}}"
        return _same_latex(*((radians, bare.latex) if gold.degree else (bare.latex, radians)))
    return _same_latex(gold.latex, answer.latex)


def _same_latex(gold: str, answer: str) -> bool:
    if latex_key(gold) == latex_key(answer):
        return bool(latex_key(gold))
    if re.fullmatch("[A-Z]{2,}", gold) and re.fullmatch("[A-Z]{2,}", answer):
        return False  # names, not products
    left, right = number(gold), number(answer)
    if left is not None and right is not None:
        return _same_numbers(left, right)
    # What is longer was compared as text by its key above; parsing it could take minutes.
    if max(len(gold), len(answer)) > expressions.MAX_LENGTH:
        return False
    try:
        parsed_answer = expressions.parse(expression_text(answer))
        # The grammar reads 22\frac13\pi as a product; people mean 22 1/3 times π, and some by
        # \log the common logarithm.
        spellings = [
            (gold, answer),
            (_MIXED.sub(_mixed_number, gold), _MIXED.sub(_mixed_number, answer)),
            (BARE_LOG.sub(r"\\log_{10}", gold), BARE_LOG.sub(r"\\log_{10}", answer)),
        ]
        for pair in dict.fromkeys(spellings):
            if expressions.equal(*(expressions.parse(expression_text(side)) for side in pair)):
                return True
        if gold.endswith("+C") and answer.endswith("+C"):  # another constant of integration
            bare = [expressions.parse(expression_text(side[:-2])) for side in (gold, answer)]
            return expressions.differ_by_constant(*bare)
    except NotParsedError:
        return False
    return left is not None and left.decimals is not None and _is_rounded_value(left, parsed_answer)


def latex_key(latex: str) -> str:
    return re.sub(r"[ ]|\\cdot", "", latex).replace(r"\infty", "∞").replace("+∞", "∞")


def _mixed_number(match: re.Match[str]) -> str:
    whole, top, bottom = map(int, match.groups())
    return rf"\frac{{{whole * bottom + top}}}{{{bottom}}}" if top < bottom else match.group()


def _same_numbers(gold: Number, answer: Number) -> bool:
    if gold.value == answer.value:
        return True
    if not _was_rounded(gold) or gold.value == 0:
        return False
    if answer.decimals is not None or answer.scientific:
        # A coarser decimal may be a wrong one that happens to round to the same digits.
        finer = answer.digits > gold.digits
    else:
        # An integer or a fraction: only a fraction can be what the decimal was rounded from.
        finer = answer.value.denominator > 1
    return finer and _rounds_to(gold, answer.value)


def _was_rounded(gold: Number) -> bool:
    if gold.scientific:
        return gold.digits >= 2
    return gold.decimals is not None and gold.decimals >= 2 and gold.digits >= 2


def _rounds_to(gold: Number, exact: Fraction) -> bool:
    return abs(exact - gold.value) <= gold.place / 2


def _is_rounded_value(gold: Number, answer: object) -> bool:
    if not _was_rounded(gold):
        return False
    try:
        computed = expressions.value(answer)
    except NotComputedError:
        return False
    if computed.imag or not mpmath.isfinite(computed.real):
        return False
    # Through text, since a binary float would move the value to the other side of a tie.
    exact = Fraction(mpmath.nstr(computed.real, 30, min_fixed=-5, max_fixed=25))
    return _rounds_to(gold, exact)


def expression_text(latex: str) -> str:
    """Rewrite what the grammar does not know: degrees, percent signs, primes, bars."""
    if re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", latex):
        latex = _DEGREES_IN_FUNCTION.sub(r"(\\frac{\1\\pi}{180})", latex)
    # A degree sign that is left stands for itself on both sides, and may go on both.
    latex = latex.replace("°", "").replace("%", r"\cdot\frac{1}{100}")
    latex = BARE_LOG.sub(r"\\ln", latex)
    latex = _RATE_OF_CHANGE.sub(lambda m: f"D_{{{m[1].strip(chr(92))}{m[2]}}}", latex)
    latex = re.sub(r"\\dot\s*\{?([a-z])\}?", r"D_{\1t}", latex)
    latex = re.sub(r"(?<![a-zA-Z\\])E_\{?(\w+)\}?", r"X_{E\1}", latex)  # no Euler's number
    latex = re.sub(r"'+", lambda m: f"_{{prime{len(m[0])}}}", latex)
    latex = re.sub(r"\\(?:overline|bar)\{([A-Za-z]+)\}", r"\1", latex)
    return re.sub(r"\\angle\s?", "", latex)
