"""Compare objectives of supervised fine-tuning: `from deft import run, compare, load_results`.

This file is `deft/__init__.py` wherever the package is assembled. Nothing else of `deft` is loaded
before one of its functions is asked for.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deft.platform.api import compare, evaluate, load_results, run, sweep

__all__ = ["compare", "evaluate", "load_results", "run", "sweep"]

_folder = os.path.dirname(__file__)
if not os.path.isdir(os.path.join(_folder, "platform")):
    # An editable install reads this file where it lies in the checkout. Setuptools' import hook
    # finds no `platform` there, which has no `__init__.py`.
    __path__.append(os.path.dirname(os.path.dirname(_folder)))


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'deft' has no attribute {name!r}")
    from deft.platform import api

    return getattr(api, name)
