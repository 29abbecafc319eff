"""The time that records carry."""

from __future__ import annotations

import time


def now_ms() -> int:
    """Return the time in milliseconds since the epoch, as MLflow counts it."""
    return time.time_ns() // 1_000_000
