"""Formatting of numbers, the same in every part of a report."""

from __future__ import annotations

import math

from deft.evaluators.scores.statistics import Interval

NONE = "–"
ROUNDING = 1e-12
"""Largest rounding error of a sum of floats."""


def number(value: float, digits: int = 3) -> str:
    """Format as ``0.353``; a dash for what is not finite."""
    if not math.isfinite(value):
        return NONE
    text = f"{value:.{digits}f}"
    return (text if float(text) else f"{0:.{digits}f}").replace("-", "−")


def effect(value: float) -> str:
    """Format like `number`, but tiny values as ``2e-05``: only zero is shown as zero."""
    text = number(value)
    is_small = math.isfinite(value) and not float(text.replace("−", "-")) and abs(value) > ROUNDING
    return f"{value:.0e}".replace("-", "−") if is_small else text


def signed(value: float) -> str:
    """Format like `effect`, with the sign: ``+0.052``."""
    return f"+{effect(value)}" if value > ROUNDING else effect(value)


def interval(bounds: Interval) -> str:
    """Format as ``[0.301, 0.412]``."""
    return f"[{number(bounds.low)}, {number(bounds.high)}]"


def signed_interval(bounds: Interval) -> str:
    """Format as ``[−0.012, +0.052]``."""
    return f"[{signed(bounds.low)}, {signed(bounds.high)}]"


def p_value(value: float) -> str:
    """Format as ``0.0312`` or ``< 0.0001``."""
    if not math.isfinite(value):
        return NONE
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def significant(value: float) -> str:
    """Format with four significant digits, for metrics of any scale."""
    return f"{value:#.4g}".rstrip(".").replace("-", "−") if math.isfinite(value) else NONE


def duration(seconds: float) -> str:
    """Format in seconds, minutes or hours, whichever reads best."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def hours(value: float) -> str:
    """Format device-hours with three significant digits."""
    return f"{value:#.3g}".rstrip(".") if math.isfinite(value) else NONE
