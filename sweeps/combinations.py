"""Combinations of a grid's values, and the rules by which some of them are picked."""

from __future__ import annotations

import itertools
import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deft.platform.config.yaml_file import KeyPath
from deft.sweeps.axes import parse_value
from deft.sweeps.spec import DottedSettings, SweepSpec, label
from deft.workers.common.names import nearest_name

MAX_COMBINATIONS = 100_000
"""Combinations of the largest grid; one value more on each axis of a few is soon millions."""
MAX_LISTED = 20
"""Values of an axis that a message lists."""


@dataclass(frozen=True, eq=False)
class AxisValue:
    """A value of an axis: one object, which all combinations that have it share."""

    written: Any
    parsed: Any
    """As the field of a run file reads it."""
    key: KeyPath
    """Where it stands in the sweep file."""


@dataclass(frozen=True)
class Combination:
    """A value on every axis."""

    values: Mapping[str, AxisValue]
    extra: Mapping[str, tuple[Any, KeyPath]]
    """Further settings of an included cell, and where they stand."""

    @property
    def written(self) -> DottedSettings:
        """Values as the sweep file has them."""
        return {axis: value.written for axis, value in self.values.items()}


class RuleError(Exception):
    """A rule of the sweep file at ``key`` is wrong."""

    def __init__(self, key: KeyPath, message: str) -> None:
        super().__init__(message)
        self.key = key


def grid_combinations(spec: SweepSpec) -> list[Combination]:
    """Combine the values of all axes, the last axis fastest.

    Raises:
        RuleError: there are too many.
    """
    number = math.prod(map(len, spec.grid.values()))
    if number > MAX_COMBINATIONS:
        raise RuleError(
            ("grid",), f"{number:,} combinations; at most {MAX_COMBINATIONS:,} are allowed"
        )
    axes = [
        [_axis_value(axis, value, ("grid", axis, i), spec.models) for i, value in enumerate(values)]
        for axis, values in spec.grid.items()
    ]
    return [
        Combination(dict(zip(spec.grid, values, strict=True)), {})
        for values in itertools.product(*axes)
    ]


def included_combinations(spec: SweepSpec) -> list[Combination]:
    """List the cells beside the grid."""
    return [
        Combination(
            {
                axis: _axis_value(axis, cell[axis], ("include", index, axis), spec.models)
                for axis in spec.grid
            },
            {
                key: (value, ("include", index, key))
                for key, value in cell.items()
                if key not in spec.grid
            },
        )
        for index, cell in enumerate(spec.include)
    ]


def _axis_value(axis: str, value: Any, key: KeyPath, models: Container[str]) -> AxisValue:
    try:
        return AxisValue(value, parse_value(axis, value, models), key)
    except ValueError:  # reported when the cell is validated as a run
        return AxisValue(value, value, key)


def matches(
    rule: DottedSettings,
    key: KeyPath,
    combinations: Sequence[Combination],
    models: Container[str],
) -> list[bool]:
    """Tell for each combination whether it has the value, or one of the values, on each axis.

    Args:
        rule: axes, each with a value or a list of values.
        key: where the rule stands in the sweep file.
        combinations: what it picks from.
        models: names of the sweep's own models.

    Raises:
        RuleError: it picks nothing, or names a value that no cell can have.
    """
    picked: dict[str, set[AxisValue]] = {}
    for axis, wanted in rule.items():
        values = list(dict.fromkeys(combination.values[axis] for combination in combinations))
        picked[axis] = _equal_values(axis, wanted, (*key, axis), values, models)
    matching = [
        all(combination.values[axis] in values for axis, values in picked.items())
        for combination in combinations
    ]
    if not any(matching):
        raise RuleError(
            key,
            f"no cell has {describe_rule(rule)} together, though some have each; change a value",
        )
    return matching


def describe_rule(rule: DottedSettings) -> str:
    """Name the axes of a rule with their values, of which a list has alternatives."""
    return " and ".join(
        f"{axis} {' or '.join(map(label, wanted if isinstance(wanted, list) else [wanted]))}"
        for axis, wanted in rule.items()
    )


def _equal_values(
    axis: str,
    wanted: Any,
    key: KeyPath,
    values: Sequence[AxisValue],
    models: Container[str],
) -> set[AxisValue]:
    """Find the values of an axis that equal ``wanted``, or one of it where it is a list."""
    if whole := _equal_to(axis, wanted, values, models):
        return whole
    alternatives = wanted if isinstance(wanted, list) else [wanted]
    picked: set[AxisValue] = set()
    for alternative in alternatives:
        equal = _equal_to(axis, alternative, values, models)
        if equal is None:
            raise RuleError(key, _no_such_value(axis, alternative, values, models))
        picked |= equal
    if not picked:
        raise RuleError(key, _no_such_value(axis, alternatives[0], values, models))
    return picked


def _equal_to(
    axis: str, wanted: Any, values: Iterable[AxisValue], models: Container[str]
) -> set[AxisValue] | None:
    """Find the values that equal ``wanted``; None if no run file can have it at all."""
    try:
        parsed = parse_value(axis, wanted, models)
    except ValueError:
        # The same text on the axis is reported when its cells are validated as runs.
        unread = (value for value in values if type(value.written) is type(wanted))
        return {value for value in unread if value.written == wanted} or None
    return {value for value in values if value.parsed == parsed}


def _no_such_value(
    axis: str, wanted: Any, values: Sequence[AxisValue], models: Container[str]
) -> str:
    """Say that no cell has ``wanted``, what there is, and what was probably meant."""
    labels = list(dict.fromkeys(label(value.written) for value in values))
    more = f" and {len(labels) - MAX_LISTED:,} more" if len(labels) > MAX_LISTED else ""
    listed = ", ".join(labels[:MAX_LISTED]) + more
    hint = "give one of them"
    if (nearest := _nearest_value(wanted, values)) is not None:
        hint = f"did you mean {nearest}?"
    else:
        try:
            parse_value(axis, wanted, models)
        except ValueError as error:
            hint = str(error)
    return f"no cell has {label(wanted)}; cells have {listed}; {hint}"


def _nearest_value(wanted: Any, values: Sequence[AxisValue]) -> str | None:
    """Find the value nearest to a number, or most like a name."""
    numbers = [value for value in values if _is_number(value.parsed)]
    if _is_number(wanted) and numbers:
        return label(min(numbers, key=lambda value: abs(value.parsed - wanted)).written)
    return nearest_name(label(wanted), [label(value.written) for value in values])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
