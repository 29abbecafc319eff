"""Computing SymPy expressions with mpmath, within bounds of time and size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import mpmath
import sympy
from mpmath.libmp import NoConvergence

DIGITS = 40
"""Digits computed of anything smaller."""
_FAILURES = (ArithmeticError, ValueError, TypeError, RecursionError, NoConvergence)
MAX_TERMS = 300
"""Terms of a sum or product that are computed one by one."""
_CONSTANTS: dict[sympy.Basic, Callable[[], Any]] = {
    sympy.pi: lambda: +mpmath.pi,
    sympy.E: lambda: +mpmath.e,
    sympy.I: lambda: mpmath.mpc(0, 1),
    sympy.EulerGamma: lambda: +mpmath.euler,
    sympy.GoldenRatio: lambda: +mpmath.phi,
}


class NotComputedError(Exception):
    """The expression has no value that can be computed, or none of manageable size."""


class TooLargeError(NotComputedError):
    """The value could be computed, but not in reasonable time or space."""


class MpmathInterpreter:
    """Compute expressions with mpmath at its current precision, and refuse unwieldy ones."""

    def __init__(self, point: Mapping[str, mpmath.mpc]) -> None:
        self.point = {"i": mpmath.mpc(0, 1), **point}
        self.largest = mpmath.mpf(1)
        self.smallest = mpmath.mpf(1)
        """The extreme magnitudes of all intermediate values, zeros left out."""

    def value(self, expression: sympy.Basic) -> mpmath.mpc:
        """Compute the number that ``expression`` stands for.

        Raises:
            NotComputedError: it is infinite, undefined, too large or of an unknown kind.
        """
        try:
            number = self._value(expression)
        except _FAILURES as error:
            raise NotComputedError(str(expression.func)) from error
        if not mpmath.isfinite(number):
            raise NotComputedError("infinite")
        return number

    def _value(self, node: sympy.Basic) -> mpmath.mpc:
        number = self._compute(node)
        size = abs(number)
        if mpmath.isfinite(size) and size != 0:
            self.largest = max(self.largest, size)
            self.smallest = min(self.smallest, size)
        return number

    def _compute(self, node: sympy.Basic) -> mpmath.mpc:
        match node:
            case sympy.Rational():
                # Divided at the working precision: a float would fix it at 53 bits.
                return mpmath.mpc(mpmath.mpf(node.p) / mpmath.mpf(node.q))
            case sympy.Symbol():
                if node.name not in self.point:
                    raise NotComputedError(node.name)
                return self.point[node.name]
            case sympy.Add():
                return mpmath.fsum(self._value(term) for term in node.args)
            case sympy.Mul():
                return mpmath.fprod(self._value(factor) for factor in node.args)
            case sympy.Pow():
                return self._power(self._value(node.base), self._value(node.exp))
            case sympy.Sum() | sympy.Product():
                return self._series(node)
        if node in _CONSTANTS:
            return mpmath.mpc(_CONSTANTS[node]())
        if isinstance(node, sympy.UnevaluatedExpr):
            return self._value(node.args[0])
        function = _FUNCTIONS.get(type(node).__name__)
        if function is None:
            raise NotComputedError(type(node).__name__)
        return mpmath.mpc(function(*map(self._value, node.args)))

    def _power(self, base: mpmath.mpc, exponent: mpmath.mpc) -> mpmath.mpc:
        # 0^0 is 1 here, as in sums and polynomials; 0 to a negative power is undefined.
        if base == 0:
            if exponent.real <= 0 and exponent != 0:
                raise NotComputedError("division by zero")
            return mpmath.mpc(1 if exponent == 0 else 0)
        # Bounds the digits of the result before they are computed.
        if abs(exponent) * (abs(mpmath.log(abs(base))) + 4) > 1e5:
            raise TooLargeError("too large a power")
        root = _odd_root(exponent)
        if root is not None and base.imag == 0 and base.real < 0:
            # The real cube root of −8 is what an answer means.
            numerator, denominator = root
            return mpmath.mpc(mpmath.power(-mpmath.power(-base.real, 1 / denominator), numerator))
        return mpmath.mpc(mpmath.power(base, exponent))

    def _series(self, node: sympy.Sum | sympy.Product) -> mpmath.mpc:
        (variable, first, last), *others = node.limits
        if others:
            raise NotComputedError("nested series")
        low, high = self._value(first), self._value(last)
        if low.imag or high.imag or low.real % 1 or high.real % 1:
            raise NotComputedError("limits are no integers")
        # Longer sums are left to SymPy, which knows closed forms.
        if high.real - low.real > MAX_TERMS:
            raise TooLargeError("too many terms")
        terms = []
        for index in range(int(low.real), int(high.real) + 1):
            # The index shadows a variable of the same name outside of the sum.
            inner = MpmathInterpreter({**self.point, str(variable): mpmath.mpc(index)})
            terms.append(inner.value(node.function))
            self.largest = max(self.largest, inner.largest)
            self.smallest = min(self.smallest, inner.smallest)
        return mpmath.fsum(terms) if isinstance(node, sympy.Sum) else mpmath.fprod(terms)


def _odd_root(exponent: mpmath.mpc) -> tuple[int, mpmath.mpf] | None:
    """Return numerator and odd denominator of an exponent such as 2/3; None for others."""
    if exponent.imag:
        return None
    # Only small odd roots have a real value that anybody means.
    for denominator in (3, 5, 7):
        numerator = exponent.real * denominator
        if abs(numerator - mpmath.nint(numerator)) < mpmath.mpf(10) ** (-DIGITS + 8):
            if int(mpmath.nint(numerator)) % denominator == 0:
                return None
            return int(mpmath.nint(numerator)), mpmath.mpf(denominator)
    return None


def _factorial(argument: mpmath.mpc) -> mpmath.mpc:
    if abs(argument) > 3000:
        raise TooLargeError("too large a factorial")
    return mpmath.factorial(argument)


def _binomial(above: mpmath.mpc, below: mpmath.mpc) -> mpmath.mpc:
    if max(abs(above), abs(below)) > 3000:
        raise TooLargeError("too large a binomial")
    return mpmath.binomial(above, below)


def _log(argument: mpmath.mpc, base: mpmath.mpc | None = None) -> mpmath.mpc:
    return mpmath.log(argument) if base is None else mpmath.log(argument) / mpmath.log(base)


def _real(function: Callable[[Any], Any]) -> Callable[[mpmath.mpc], Any]:
    def of_real(argument: mpmath.mpc) -> Any:
        if argument.imag:
            raise NotComputedError("complex argument")
        return function(argument.real)

    return of_real


def _snapped(number: mpmath.mpf) -> mpmath.mpf:
    # log(8)/log(2) comes out as 2.999…, whose floor would be 2.
    nearest = mpmath.nint(number)
    tolerance = mpmath.mpf(10) ** (10 - mpmath.mp.dps) * max(abs(nearest), 1)
    return nearest if abs(number - nearest) <= tolerance else number


def _modulo(left: mpmath.mpc, right: mpmath.mpc) -> mpmath.mpf:
    if left.imag or right.imag:
        raise NotComputedError("complex argument")
    return left.real % right.real


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: getattr(mpmath, name) for name in ("sin", "cos", "tan", "sec", "csc", "cot")},
    **{name: getattr(mpmath, name) for name in ("asin", "acos", "atan", "asec", "acsc", "acot")},
    **{name: getattr(mpmath, name) for name in ("sinh", "cosh", "tanh", "asinh", "acosh", "atanh")},
    "exp": mpmath.exp,
    "log": _log,
    "Abs": abs,
    "factorial": _factorial,
    "binomial": _binomial,
    "floor": _real(lambda number: mpmath.floor(_snapped(number))),
    "ceiling": _real(lambda number: mpmath.ceil(_snapped(number))),
    "Mod": _modulo,
}
