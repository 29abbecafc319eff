"""Scalar expressions: from LaTeX to SymPy without evaluating text, and equality of two of them.

The grammar is latex2sympy's, the one math-verify rests on. Its converter hands digit strings to
``sympify``, which evaluates Python; `_ExactConverter` builds numbers itself, so that no text
reaches an evaluator, and builds them as exact rationals: no answer is decided by a float.

Two expressions are equal if they agree to 40 digits at several points, which is quicker than
simplifying their difference and finds more; what cannot be computed numerically (integrals,
limits, unknown functions) is left to math-verify's symbolic comparison.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Mapping
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

import mpmath
import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, _Latex2Sympy
from math_verify.grader import sympy_expr_eq

from deft.evaluators.grading.math.interpreter import (
    DIGITS,
    MpmathInterpreter,
    NotComputedError,
    TooLargeError,
)

MAX_LENGTH = 600
"""Characters of an expression that is parsed; longer ones are compared as text alone."""
MAX_DEPTH = 12
"""Brackets within brackets; the parser's time grows exponentially with them."""
MAX_BARS = 6
"""Vertical bars, whose pairing the parser has to guess."""
MAX_DIGITS = 1200
"""Decimal digits of the largest number that is compared digit for digit."""
POINTS = 3
"""Points at which two expressions with variables must agree."""
INTEGER_POINTS = 40
"""The same for floors, ceilings and remainders."""
_CONFIG = ConversionConfig(lowercase_symbols=False)
_OPENING, _CLOSING = "{([", "})]"
_STEPPED = (sympy.floor, sympy.ceiling, sympy.Mod)
_SAMPLES = (
    r"\frac{1}{2}",
    r"3\sqrt{2}+\frac{5}{7}",
    r"2x^{2}+3x-5",
    r"\frac{-b+\sqrt{b^{2}-4ac}}{2a}",
    r"\sin(x)^{2}\cos\theta",
    r"\pi r^{2}(h+1)",
    r"e^{i\pi x}",
    r"\log_{2}(8)+\ln x",
    r"\binom{5}{2}n!",
    r"4\cdot 10^{33}",
    r"\sqrt[3]{5}",
    r"a_{1}+a_{n}",
    r"x(x+1)(x-1)/2",
    r"\arcsin(\frac{10}{13})",
    r"\tan^{-1}(2)",
    r"|x-1|",
    r"2^{n+1}",
)


class NotParsedError(ValueError):
    """The text is no expression of the grammar, or too large to look at."""


class _ExactConverter(_Latex2Sympy):  # type: ignore[misc]
    def parse_number(self, text: str) -> sympy.Expr:
        return sympy.Rational(text.replace(",", ""))

    def convert_binom(self, binom: Any) -> sympy.Expr:
        upper, lower = self.convert_expr(binom.upper), self.convert_expr(binom.lower)
        return sympy.binomial(upper, lower, evaluate=False)


@lru_cache(maxsize=4096)
def parse(latex: str) -> sympy.Expr:
    """Parse normalized LaTeX into an unevaluated expression.

    Raises:
        NotParsedError: it is none, or longer or deeper than anyone's answer.
    """
    _refuse_the_unreasonable(latex)
    try:
        expression = _ExactConverter(config=_CONFIG).parse(latex)
    except MemoryError:
        raise
    except Exception as error:
        raise NotParsedError(latex) from error
    if not isinstance(expression, sympy.Expr):
        raise NotParsedError(latex)
    return expression


def _refuse_the_unreasonable(latex: str) -> None:
    if not latex or len(latex) > MAX_LENGTH:
        raise NotParsedError("length")
    depths = list(accumulate((c in _OPENING) - (c in _CLOSING) for c in latex))
    # Brackets cost the parser exponential time, and bars have to be paired by guessing.
    if min(depths) < 0 or depths[-1] or max(depths) > MAX_DEPTH or latex.count("|") > MAX_BARS:
        raise NotParsedError("unbalanced or too deep")
    if re.search(r"\\(?:gcd|lcm|operatorname|det|Gamma|gamma\s*\()", latex):
        raise NotParsedError("a function that the parser would compute")
    # Everything after a comma would be dropped or become a set: lists are split before.
    if "," in latex and not re.search(r"\\(?:max|min)|[fgh]\(", latex):
        raise NotParsedError("a list")


def symbols_of(expression: sympy.Expr) -> frozenset[str]:
    """Return the names of the variables in an expression, without the imaginary unit."""
    names = {str(symbol) for symbol in expression.free_symbols}
    return frozenset(names - {"i"})


def equal(gold: sympy.Expr, answer: sympy.Expr) -> bool:
    """Check whether two expressions have the same value, for all values of their variables."""
    if gold.has(sympy.zoo, sympy.nan) or answer.has(sympy.zoo, sympy.nan):
        return False  # undefined is equal to nothing, not even to itself
    # Structural equality comes after definedness: SymPy says that zoo equals zoo.
    if gold == answer:
        return True
    aliases = _imaginary_aliases(gold, answer)
    try:
        return _agree(gold, answer, aliases)
    except TooLargeError:
        return False
    except NotComputedError:
        return _symbolically_equal(gold, answer)


def proportional(gold: sympy.Expr, answer: sympy.Expr) -> complex | None:
    """Return the constant factor between two expressions; None if there is none."""
    # A factor between expressions in different variables would depend on the point.
    names = symbols_of(gold) | symbols_of(answer)
    # Without variables any two numbers are multiples of each other.
    if symbols_of(gold) != symbols_of(answer) or not names:
        return None
    ratios = []
    try:
        with mpmath.workdps(DIGITS):
            for trial in range(POINTS):
                point = _point(names, trial)
                below = MpmathInterpreter(point).value(gold)
                above = MpmathInterpreter(point).value(answer)
                # Where one side vanishes identically there is no factor to speak of.
                if abs(below) < 1e-25 or abs(above) < 1e-25:
                    return None
                ratios.append(above / below)
            if any(abs(ratio - ratios[0]) > 1e-25 * abs(ratios[0]) for ratio in ratios):
                return None
            return complex(ratios[0])
    except NotComputedError:
        return None


def differ_by_constant(gold: sympy.Expr, answer: sympy.Expr) -> bool:
    """Check whether two expressions with variables have the same difference everywhere."""
    names = symbols_of(gold) | symbols_of(answer)
    try:
        with mpmath.workdps(DIGITS):
            points = [MpmathInterpreter(_point(names, trial)) for trial in range(POINTS)]
            differences = [point.value(gold) - point.value(answer) for point in points]
    except NotComputedError:
        return False
    return bool(names) and all(_close(d, differences[0], DIGITS // 2) for d in differences)


def value(expression: sympy.Expr) -> mpmath.mpc:
    """Compute an expression without variables to `DIGITS` digits.

    Raises:
        NotComputedError: it has variables, or no manageable value.
    """
    if symbols_of(expression):
        raise NotComputedError("variables")
    with mpmath.workdps(DIGITS):
        return MpmathInterpreter({}).value(expression)


def _imaginary_aliases(gold: sympy.Expr, answer: sympy.Expr) -> dict[str, mpmath.mpc]:
    names = [{str(symbol) for symbol in side.free_symbols} for side in (gold, answer)]
    if "i" in names[0] and "j" in names[1] - names[0]:  # engineers write j
        return {"j": mpmath.mpc(0, 1)}
    return {}


def _agree(gold: sympy.Expr, answer: sympy.Expr, aliases: Mapping[str, mpmath.mpc]) -> bool:
    names = (symbols_of(gold) | symbols_of(answer)) - set(aliases)
    if not names:
        return _same_at(aliases, gold, answer)
    # |x| and x agree at all positive points.
    signed = gold.has(sympy.Abs) or answer.has(sympy.Abs)
    # Factorials and binomials of fractions may have no value: integers are the second try.
    tries = [[_point(names, trial, whole, signed) for trial in range(POINTS)] for whole in (0, 1)]
    if gold.has(*_STEPPED) or answer.has(*_STEPPED):
        tries = [_points_of_steps(names)]
    for points in tries:
        computed = 0
        for point in points:
            try:
                if not _same_at({**aliases, **point}, gold, answer):
                    return False
                computed += 1
            except TooLargeError:
                raise
            except NotComputedError:
                continue  # a pole
        if computed >= POINTS:
            return True
    raise NotComputedError("hardly anywhere defined")


def _points_of_steps(names: frozenset[str]) -> list[dict[str, mpmath.mpc]]:
    """Return points at which floors, ceilings and remainders are compared.

    Two of them may agree at most integers and differ at one in ten, so that many are tried:
    all the first ones, of both parities, and large ones. Letters that usually stand for real
    numbers are tried in between as well.
    """
    points = []
    for trial in range(INTEGER_POINTS):
        source = random.Random(trial)
        top = 60 if trial % 3 else 100_000
        whole = {
            name: trial + 1 if len(names) == 1 and trial < 30 else source.randint(1, top)
            for name in sorted(names)
        }
        points.append({name: mpmath.mpc(number) for name, number in whole.items()})
    if not names <= set("abcdijklmnpqrsuvwMNK"):
        points += [_point(names, trial) for trial in range(POINTS)]
    return points


def _point(
    names: frozenset[str], trial: int, whole: int = 0, signed: bool = False
) -> dict[str, mpmath.mpc]:
    # Positive, so that √(x²) is x, as everybody means it; negative too where |x| stands.
    point = {}
    for name in sorted(names):
        # A point depends on names alone, so that a verdict never depends on what was graded
        # before.
        source = random.Random(zlib.crc32(f"{name}/{trial}".encode()))
        number = source.randint(2, 9) if whole else mpmath.mpf(source.randint(3001, 27999)) / 10007
        point[name] = mpmath.mpc(-number if signed and trial % 2 else number)
    return point


def _same_at(point: Mapping[str, mpmath.mpc], gold: sympy.Expr, answer: sympy.Expr) -> bool:
    """Compare two values to at least `DIGITS` digits behind everything that cancels.

    The first pass measures how many digits cancellation can cost; the second has that many more,
    and demands agreement beyond the smallest number that occurs in either expression. So 1 - 10^-60
    is not 1, and a large term that is added and subtracted again hides nothing.
    """
    left, right = _look(gold, point), _look(answer, point)
    above, below = max(left.above, right.above), max(left.below, right.below)
    with mpmath.workdps(DIGITS):
        if above + below < DIGITS // 2 and not _close(left.value, right.value, DIGITS // 4):
            return False
    # Twice, since a quotient by something small loses as many digits again.
    needed = DIGITS + above + 2 * below
    if needed > MAX_DIGITS:
        raise TooLargeError("too many digits to compare")
    with mpmath.workdps(needed + 20):
        values = [MpmathInterpreter(point).value(side) for side in (gold, answer)]
        return _close(values[0], values[1], DIGITS + below)


class _Look(NamedTuple):
    """A value to `DIGITS` digits, and the extent of all that it was computed from."""

    value: mpmath.mpc
    above: int
    below: int


def _look(expression: sympy.Expr, point: Mapping[str, mpmath.mpc]) -> _Look:
    names = sorted({str(symbol) for symbol in expression.free_symbols} & set(point))
    return _cached_look(expression, tuple((name, point[name]) for name in names))


@lru_cache(maxsize=8192)
def _cached_look(expression: sympy.Expr, point: tuple[tuple[str, mpmath.mpc], ...]) -> _Look:
    interpreter = MpmathInterpreter(dict(point))
    with mpmath.workdps(DIGITS):
        value = interpreter.value(expression)
        above, below = mpmath.log10(interpreter.largest), -mpmath.log10(interpreter.smallest)
        return _Look(value, int(above) + 1, int(below))


def _close(left: mpmath.mpc, right: mpmath.mpc, digits: int) -> bool:
    return bool(abs(left - right) <= mpmath.mpf(10) ** -digits)


def _symbolically_equal(gold: sympy.Expr, answer: sympy.Expr) -> bool:
    # A float was never written by the parser: it would come from a library that rounds.
    if gold.has(sympy.Float) or answer.has(sympy.Float):
        return False
    kinds = (sympy.Integral, sympy.Limit, sympy.Derivative, sympy.Sum, sympy.Product)
    unknown = gold.has(sympy.core.function.AppliedUndef) or answer.has(
        sympy.core.function.AppliedUndef
    )
    if not unknown and not gold.has(*kinds) and not answer.has(*kinds):
        return False
    try:
        return bool(sympy_expr_eq(gold, answer, float_rounding=12, numeric_precision=30))
    except MemoryError:
        raise
    except Exception:
        return False


def warm_up() -> None:
    """Parse a few expressions, so that the parser's tables are built before the clock runs."""
    for latex in _SAMPLES:
        equal(parse(latex), parse(f"-({latex})+x"))
