"""Compare objectives of supervised fine-tuning: `from deft import run, compare, load_results`.

This file is `deft/__init__.py` wherever the package is assembled. Nothing else of `deft` is loaded
before one of its functions is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deft.platform.api import compare, evaluate, load_results, run, sweep

__all__ = ["compare", "evaluate", "load_results", "run", "sweep"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'deft' has no attribute {name!r}")
    from deft.platform import api

    return getattr(api, name)
