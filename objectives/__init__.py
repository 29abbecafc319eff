"""The mathematics: per-token statistics in, value and gate out, and the fused linear head."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deft.objectives.base import (
        Objective,
        ObjectiveOutput,
        Target,
        TokenStats,
        get_objective,
        objective,
    )
    from deft.objectives.catalog import CATALOG
    from deft.objectives.head.interface import ReferenceHead
    from deft.objectives.head.linear import (
        LinearObjectiveOutput,
        NonFiniteLogitsError,
        linear_objective,
    )
    from deft.objectives.spec import ObjectiveSpec

__all__ = [
    "CATALOG",
    "LinearObjectiveOutput",
    "NonFiniteLogitsError",
    "Objective",
    "ObjectiveOutput",
    "ObjectiveSpec",
    "ReferenceHead",
    "Target",
    "TokenStats",
    "get_objective",
    "linear_objective",
    "objective",
]

_HOME = {
    "CATALOG": "catalog",
    "LinearObjectiveOutput": "head.linear",
    "NonFiniteLogitsError": "head.linear",
    "Objective": "base",
    "ObjectiveOutput": "base",
    "ObjectiveSpec": "spec",
    "ReferenceHead": "head.interface",
    "Target": "base",
    "TokenStats": "base",
    "get_objective": "base",
    "linear_objective": "head.linear",
    "objective": "base",
}


def __getattr__(name: str) -> Any:
    # Importing this package must stay cheap: the driver validates specs without torch.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
