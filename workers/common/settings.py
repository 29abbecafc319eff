"""Base class of everything that a run file may set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

NUMBERS = frozenset({int, float})
"""Types of settings that a truth value must not stand for."""


class Settings(BaseModel):
    """Frozen settings that refuse unknown keys, inf and NaN, and truth values for numbers."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def refuse_truth_value_for_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse what pydantic would take for 1 or 0: ``seed: yes`` is a mistake."""
        assert info.field_name is not None
        items = value if isinstance(value, list | tuple) else (value,)
        if any(isinstance(item, bool) for item in items):
            kinds = _scalar_types(cls.model_fields[info.field_name].annotation)
            if kinds & NUMBERS and bool not in kinds:
                raise ValueError(f"expected a number, got {str(value).lower()}; write the number")
        return value


def _scalar_types(annotation: Any) -> set[Any]:
    """Collect the types that an annotation is made of, but not those of a mapping's values."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return set(map(type, arguments))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return set()
    return set().union(*map(_scalar_types, arguments)) if arguments else {annotation}


def name_only(value: Any) -> Any:
    """Spell out what a bare name stands for."""
    return {"name": value} if isinstance(value, str) else value


def is_none(value: Any) -> bool:
    """Tell whether a setting is left out of a dump."""
    return value is None
