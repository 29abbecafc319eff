"""Values on a sweep's axes as a run file's fields read them: `1e-4` is 0.0001, `nll` `original`."""

from __future__ import annotations

from collections.abc import Container
from functools import cache
from typing import Any

from pydantic import ValidationError, create_model

from deft.objectives.spec import ObjectiveSpec
from deft.platform.config.loading import fields_at
from deft.platform.config.spec import ExperimentSpec
from deft.workers.common.settings import Settings


def parse_value(axis: str, value: Any, models: Container[str]) -> Any:
    """Read ``value`` as the setting at the dotted key ``axis`` of a run file.

    Args:
        axis: as in `training.learning_rate`.
        value: as in a sweep file.
        models: names of the sweep's own models, which the axis `model` takes besides others.

    Raises:
        ValueError: no run file can have this value there.
    """
    if axis == "model" and isinstance(value, str) and value in models:
        return value
    field = _field_model(axis)
    if field is None:  # an option of DeepSpeed, or a parameter of an objective
        return _number_in(value)
    try:
        return getattr(field.model_validate({"value": value}), "value")  # noqa: B009
    except ValidationError as error:
        details = error.errors()
        reasons = (str(detail.get("ctx", {}).get("error", detail["msg"])) for detail in details)
        raise ValueError("; ".join(reasons)) from None


def plain_value(parsed: Any, written: Any) -> Any:
    """Return a value for tables and files: as it is parsed if that is one word, else as written."""
    if isinstance(parsed, ObjectiveSpec):
        return str(parsed)
    return parsed if isinstance(parsed, str | int | float) else written


@cache
def _field_model(axis: str) -> type[Settings] | None:
    """Make a model whose one field is that at ``axis`` of a run file; None if it has none there."""
    *sections, name = axis.split(".")
    field = fields_at(ExperimentSpec, tuple(sections)).get(name)
    if field is None or field.annotation is None:
        return None
    return create_model("Axis", __base__=Settings, value=(field.annotation, field))


def _number_in(value: Any) -> Any:
    """Return the number that a text is, as DeepSpeed would read it; anything else as it is."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
