"""Settings of a sweep file: a base run and a grid over it. Loads neither torch nor ray."""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from deft.platform.config.schema import (
    Schema,
    dotted_settings,
    partial_schema,
    run_schema,
    settings_schema,
)
from deft.workers.common.names import nearest_name
from deft.workers.common.settings import Settings

DottedSettings = dict[str, Any]
"""Values of settings by their dotted keys in a run file."""

HIGHER_IS_BETTER = {
    "validation/nll": False,
    "validation/bits_per_byte": False,
    "validation/token_accuracy": True,
}
"""Held-out metrics to choose by; benchmark scores are for the comparison, not for choosing."""


class OverrideSpec(Settings):
    """Settings of some cells only, such as a learning rate of one objective."""

    match: DottedSettings = Field(min_length=1)
    """Axes with the value, or a list of values, that a cell has. Values are compared as the fields
    of a run file read them; a rule that matches no cell is refused."""
    set: DottedSettings = Field(min_length=1)
    """Settings of the cells that match."""


class SelectSpec(Settings):
    """How one value of an axis is chosen, declared before anything has run."""

    over: str
    """Axis, as a rule `training.learning_rate`."""
    by: Literal["validation/nll", "validation/bits_per_byte", "validation/token_accuracy"] = (
        "validation/nll"
    )
    """Metric after the last step whose mean over seeds is best for the chosen value."""


class BudgetSpec(Settings):
    """What every cell may spend."""

    tokens: int = Field(ge=1)
    """Tokens to train on, prompts included; `training.tokens` of every cell."""


class AshaSpec(Settings):
    """Early stopping of hopeless cells by successive halving (ASHA, arXiv 1810.05934).

    Cells are compared by held-out NLL while they train. A stopped cell is not evaluated, so this is
    for searching settings, not for comparing objectives.
    """

    grace_steps: int = Field(ge=1)
    """Optimizer steps that every cell may take."""
    reduction_factor: int = Field(default=3, ge=2)
    """One of so many goes on at each rung."""


class SweepSpec(Settings):
    """A grid of runs and what is to be learnt from it."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,59}$")
    """What the sweep is called; the file's name if not given."""
    base: str | dict[str, Any] = Field(default_factory=dict)
    """Settings that all cells share: those of a run file, or the path of one."""
    models: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Runs that come first, by the name under which the axis `model` takes what they trained. Each
    is laid over `base`."""
    grid: dict[str, list[Any]] = Field(min_length=1)
    """Axes: a dotted key of a run file with its values. Cells are all combinations."""
    exclude: list[DottedSettings] = Field(default_factory=list)
    """Combinations to leave out: axes with a value, or a list of values, compared as in `match`."""
    include: list[DottedSettings] = Field(default_factory=list)
    """Cells beside the combinations: a value for each axis, and any other settings."""
    overrides: list[OverrideSpec] = Field(default_factory=list)
    """Settings of some cells only; later ones win."""
    budget: BudgetSpec | None = None
    """The same expense for every cell; without it each runs as its settings say."""
    select: SelectSpec | None = None
    """How the values of an axis are narrowed down to one before anything is compared."""
    asha: AshaSpec | None = None
    """Early stopping; without it every cell runs to its end."""
    retries: int = Field(default=1, ge=0)
    """Times that a failed cell is tried again; it goes on after its last finished stage."""
    max_concurrent: int | None = Field(default=None, ge=1)
    """Cells at the same time; as many as the cluster's devices hold if not given."""

    @field_validator("grid")
    @classmethod
    def require_values(cls, grid: dict[str, list[Any]]) -> dict[str, list[Any]]:
        for axis, values in grid.items():
            if not values:
                raise ValueError(f"{axis}: give at least one value")
            labels = Counter(label(value) for value in values)
            twice = next((text for text, count in labels.items() if count > 1), None)
            if twice is not None:
                raise ValueError(f"{axis}: {twice} is given twice; remove one")
            if axis.split(".")[0] == "name":
                raise ValueError("name: cells are named after their settings")
            if axis.startswith("evaluation.engine"):
                raise ValueError(f"{axis}: all cells share their engines, so it is no axis")
        return grid

    @model_validator(mode="after")
    def require_known_axes(self) -> SweepSpec:
        rules = [(f"exclude.{i}", rule) for i, rule in enumerate(self.exclude)]
        rules += [(f"overrides.{i}.match", rule.match) for i, rule in enumerate(self.overrides)]
        for where, rule in rules:
            for axis in rule:
                if axis not in self.grid:
                    raise ValueError(f"{where}: {self._no_axis(axis)}")
        for index, cell in enumerate(self.include):
            missing = [axis for axis in self.grid if axis not in cell]
            if missing:
                raise ValueError(f"include.{index}: gives no {', '.join(missing)}")
        if self.select is not None and self.select.over not in self.grid:
            raise ValueError(f"select.over: {self._no_axis(self.select.over)}")
        if self.select is not None and self.select.over in ("objective", "seed"):
            raise ValueError(
                f"select.over: {self.select.over} is what is compared; choose over another axis"
            )
        return self

    def _no_axis(self, axis: str) -> str:
        nearest = nearest_name(axis, self.grid)
        hint = f"; did you mean {nearest}?" if nearest else ""
        return f"{axis} is no axis; axes are {', '.join(self.grid)}{hint}"


def label(value: Any) -> str:
    """Shorten a setting to a text: ``{name: figfont, noise: 0.3}`` is "figfont noise=0.3"."""
    if isinstance(value, dict):
        parts = [str(value["name"])] if "name" in value else []
        rest = [f"{key}={label(item)}" for key, item in value.items() if key != "name"]
        return " ".join(parts + rest)
    if isinstance(value, list):
        return "+".join(map(label, value))
    return str(value)


def sweep_schema() -> Schema:
    """Return the JSON Schema of a sweep file; axes and overrides are settings of a run file."""
    run = run_schema()
    schema = settings_schema(
        SweepSpec, "Sweep file of deft", "A grid of experiments: deft sweep FILE."
    )
    schema["required"].remove("name")
    definitions, properties = schema["$defs"] | run["$defs"], schema["properties"]
    definitions["RunSettings"] = partial_schema(run)
    settings = dotted_settings(run)
    definitions["Settings"] = {
        "type": "object",
        "properties": {key: {"description": text} for key, text in settings.items()},
    }
    some_run, some_settings = ({"$ref": f"#/$defs/{name}"} for name in ("RunSettings", "Settings"))
    properties["base"]["anyOf"][1] = some_run
    properties["models"]["additionalProperties"] = some_run
    properties["grid"]["properties"] = {
        key: {"type": "array", "description": text} for key, text in settings.items()
    }
    for rules in ("exclude", "include"):
        properties[rules]["items"] = some_settings
    for part in ("match", "set"):
        field = definitions["OverrideSpec"]["properties"][part]
        definitions["OverrideSpec"]["properties"][part] = {
            "description": field["description"],
            **some_settings,
        }
    schema["$defs"] = definitions
    return schema
