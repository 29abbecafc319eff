"""Mappings of settings laid over each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def deep_merge(
    below: Mapping[str, Any], above: Mapping[str, Any], *, bare_names: bool = False
) -> dict[str, Any]:
    """Lay ``above`` over ``below``, mapping by mapping.

    Args:
        below: values that hold where ``above`` is silent.
        above: values that win.
        bare_names: whether a string over a mapping means ``{name: …}``, as in a run file.
    """
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        if isinstance(under, Mapping):
            if bare_names and isinstance(value, str):
                value = {"name": value}
            if isinstance(value, Mapping):
                value = deep_merge(under, value, bare_names=bare_names)
        merged[key] = value
    return merged
