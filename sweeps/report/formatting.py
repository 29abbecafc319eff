"""How numbers are written, in every part of a report alike."""

from __future__ import annotations

import math

from deft.evaluators.scores.statistics import Interval

NONE = "–"
ROUNDING = 1e-12
"""What sums of floats are off by, at most."""


def number(value: float, digits: int = 3) -> str:
    """``0.353``; a dash for what is not a number."""
    if not math.isfinite(value):
        return NONE
    text = f"{value:.{digits}f}"
    return (text if float(text) else f"{0:.{digits}f}").replace("-", "−")


def effect(value: float) -> str:
    """`number`, or one digit of what is too small for it: ``2e-05``. Zero is only what is zero."""
    text = number(value)
    is_small = math.isfinite(value) and not float(text.replace("−", "-")) and abs(value) > ROUNDING
    return f"{value:.0e}".replace("-", "−") if is_small else text


def signed(value: float) -> str:
    """`effect` with its sign: ``+0.052``."""
    return f"+{effect(value)}" if value > ROUNDING else effect(value)


def interval(found: Interval) -> str:
    return f"[{number(found.low)}, {number(found.high)}]"


def signed_interval(found: Interval) -> str:
    return f"[{signed(found.low)}, {signed(found.high)}]"


def p_value(value: float) -> str:
    """``0.0312``, ``< 0.0001``."""
    if not math.isfinite(value):
        return NONE
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def significant(value: float) -> str:
    """Four significant digits, for what has a scale of its own."""
    return f"{value:#.4g}".rstrip(".").replace("-", "−") if math.isfinite(value) else NONE


def duration(seconds: float) -> str:
    """In seconds, minutes or hours, whichever reads best."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def hours(value: float) -> str:
    """Device-hours, to three significant digits."""
    return f"{value:#.3g}".rstrip(".") if math.isfinite(value) else NONE


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
