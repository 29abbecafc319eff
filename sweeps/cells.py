"""From a sweep file to its cells: each a complete run, identified by its content hash."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from deft.platform.config.loading import (
    ManySettings,
    apply_settings,
    place_of,
    read_settings,
    set_value,
    to_experiment,
    validate_spec,
)
from deft.platform.config.spec import ExperimentSpec, name_of_parts
from deft.platform.config.yaml_file import KeyPath, Origin, read_yaml
from deft.platform.errors import UserError
from deft.sweeps.axes import plain_value
from deft.sweeps.combinations import (
    Combination,
    RuleError,
    grid_combinations,
    included_combinations,
    matches,
)
from deft.sweeps.spec import SweepSpec, label
from deft.workers.common.mappings import deep_merge
from deft.workers.spec import ModelSpec


@dataclass(frozen=True)
class PlannedCell:
    """One run of a sweep."""

    spec: ExperimentSpec
    settings: dict[str, Any]
    """Its value on each axis, as the run file's field reads it."""
    after: str | None = None
    """Name of the run that trains the model it starts from."""

    @cached_property
    def run(self) -> str:
        """Name of its directory under the run root, which ends in the content hash."""
        return self.spec.run_name


@dataclass(frozen=True)
class Plan:
    """All runs of a sweep."""

    spec: SweepSpec
    file: str
    """The sweep file as it was written."""
    models: dict[str, PlannedCell]
    """Runs that come first, by the name of what they train."""
    cells: tuple[PlannedCell, ...]
    """The grid."""


def load_sweep(source: Path | Mapping[str, Any], root: Path, settings: ManySettings = ()) -> Plan:
    """Read a sweep file and lay out its cells, every one of them validated as a run.

    Args:
        source: YAML file, see `SweepSpec`, or what such a file holds.
        root: run root, under which models of the sweep's own are trained.
        settings: laid over the base run, see `apply_settings`.

    Raises:
        UserError: naming file, line, key, expectation and nearest valid name.
    """
    data, origins = read_settings(source)
    if isinstance(source, Mapping):
        file, text = Path("sweep"), yaml.safe_dump(data, sort_keys=False)
    else:
        file, text = source, source.read_text(encoding="utf-8")
    if "grid" not in data and data.keys() & ExperimentSpec.model_fields.keys() - {"name"}:
        raise UserError(
            f"{file}: a run file, not a sweep; run it by `deft run {file}`, or make it the base of "
            "a sweep file with a grid"
        )
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", file.stem).strip(".-_")[:60]
    data = {"name": stem or "sweep", **data}
    spec = validate_spec(SweepSpec, data, str(file), origins)
    base = _Layer({}, {})
    if isinstance(spec.base, str):
        base = _Layer(*read_yaml(file.parent / spec.base))
    else:
        base.lay(spec.base, origins, ("base",))
    apply_settings(base.data, base.origins, settings)
    models = {
        name: _model_cell(name, run, base, origins, str(file)) for name, run in spec.models.items()
    }
    cells: dict[str, PlannedCell] = {}
    first: dict[str, Combination] = {}
    for combination, overrides in _pick(spec, str(file), origins):
        cell = _cell(spec, combination, overrides, base, models, root, origins, str(file))
        if cell.run in cells:
            twice = "; and ".join(map(_describe, (first[cell.run], combination)))
            raise UserError(f"{file}: two cells are the same run: {twice}; leave one out")
        cells[cell.run], first[cell.run] = cell, combination
    if not cells:
        raise UserError(f"{file}: exclude: its rules leave no cell; remove one")
    engines = [cell.spec.evaluation.engine for cell in (*cells.values(), *models.values())]
    if any(engine != engines[0] for engine in engines):
        raise UserError(
            f"{file}: evaluation.engine: all cells share their engines; give each the same"
        )
    return Plan(spec, text, models, tuple(cells.values()))


def _pick(
    spec: SweepSpec, file: str, origins: Mapping[KeyPath, Origin]
) -> list[tuple[Combination, list[int]]]:
    """Apply the rules: the combinations that are cells, each with the overrides that it gets.

    Raises:
        UserError: a rule matches none.
    """
    try:
        grid = grid_combinations(spec)
        # Every rule is looked at, also for what an earlier one excludes: none may be in vain.
        excluded = [
            matches(rule, ("exclude", index), grid, spec.models)
            for index, rule in enumerate(spec.exclude)
        ]
        left_out = [any(by_rule) for by_rule in zip(*excluded, strict=True)] or [False] * len(grid)
        cells = [cell for cell, out in zip(grid, left_out, strict=True) if not out]
        cells += included_combinations(spec)
        if not cells:
            return []
        overridden = [
            matches(override.match, ("overrides", index, "match"), cells, spec.models)
            for index, override in enumerate(spec.overrides)
        ]
    except RuleError as error:
        dotted = ".".join(map(str, error.key))
        raise UserError(f"{place_of(error.key, origins, file)}: {dotted}: {error}") from None
    return [
        (cell, [index for index, by_rule in enumerate(overridden) if by_rule[number]])
        for number, cell in enumerate(cells)
    ]


def _describe(combination: Combination) -> str:
    return ", ".join(f"{axis} {label(value)}" for axis, value in combination.written.items())


class _Layer:
    """Settings of a run that grow by layers, and where each of them stands."""

    def __init__(self, data: dict[str, Any], origins: dict[KeyPath, Origin]) -> None:
        self.data = data
        self.origins = origins

    def copy(self) -> _Layer:
        return _Layer(copy.deepcopy(self.data), dict(self.origins))

    def lay(
        self, settings: Mapping[str, Any], origins: Mapping[KeyPath, Origin], under: KeyPath
    ) -> None:
        """Lay a mapping that stands at ``under`` in the sweep file over what is there."""
        self.data = deep_merge(self.data, settings, bare_names=True)
        size = len(under)
        self.origins |= {
            k[size:]: at for k, at in origins.items() if k[:size] == under and k[size:]
        }

    def set(self, key: str, value: Any, origin: Origin) -> None:
        set_value(self.data, self.origins, tuple(key.split(".")), value, origin)

    def run(self, file: str) -> ExperimentSpec:
        return to_experiment(self.data, file, self.origins)


def _model_cell(
    name: str, run: Mapping[str, Any], base: _Layer, origins: Mapping[KeyPath, Origin], file: str
) -> PlannedCell:
    layer = base.copy()
    layer.lay(run, origins, ("models", name))
    layer.set("name", name, Origin(f"{file}: models.{name}"))
    return PlannedCell(layer.run(file), {})


def _cell(
    spec: SweepSpec,
    combination: Combination,
    overrides: Iterable[int],
    base: _Layer,
    models: Mapping[str, PlannedCell],
    root: Path,
    origins: Mapping[KeyPath, Origin],
    file: str,
) -> PlannedCell:
    layer = base.copy()
    nowhere = Origin(file)
    axes = {axis: (value.written, value.key) for axis, value in combination.values.items()}
    # The whole of a thing before its parts: dataset before dataset.size.
    settings = sorted({**axes, **combination.extra}.items(), key=lambda item: item[0].count("."))
    for key, (value, place) in settings:
        layer.set(key, value, origins.get(place, nowhere))
    for index in overrides:
        for key, value in spec.overrides[index].set.items():
            layer.set(key, value, origins.get(("overrides", index, "set", key), nowhere))
    if spec.budget is not None:
        origin = origins.get(("budget", "tokens"), nowhere)
        layer.set("training.tokens", spec.budget.tokens, origin)
        layer.set("training.max_steps", None, origin)
    first = models.get(label(axes["model"][0])) if "model" in axes else None
    if first is not None:
        # It is not there yet, so the settings are checked with the model that it is trained from.
        layer.set("model", first.spec.model.name, nowhere)
    run = layer.run(file)
    values = {
        axis: plain_value(value.parsed, value.written) for axis, value in combination.values.items()
    }
    if first is None:
        return PlannedCell(run, values)
    name = name_of_parts(run.dataset.name, first.spec.name, str(run.objective))
    model = ModelSpec.model_construct(name=str(root.absolute() / first.run / "model"))
    run = run.model_copy(update={"model": model, "name": name})
    return PlannedCell(run, values, after=first.run)
