"""From a sweep file to its cells: each a complete run, known by its content hash."""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from deft.platform.config.loading import apply_settings, set_value, to_experiment, validate
from deft.platform.config.spec import ExperimentSpec, name_of_parts
from deft.platform.config.yaml_file import KeyPath, read_yaml
from deft.platform.errors import UserError
from deft.sweeps.spec import DottedSettings, SweepSpec, label
from deft.workers.common.mappings import deep_merge
from deft.workers.spec import ModelSpec


@dataclass(frozen=True)
class PlannedCell:
    """One run of a sweep."""

    spec: ExperimentSpec
    settings: dict[str, Any]
    """Its value on each axis."""
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


def load_sweep(file: Path, root: Path, settings: Iterable[str] = ()) -> Plan:
    """Read a sweep file and lay out its cells, every one of them validated as a run.

    Args:
        file: YAML, see `SweepSpec`.
        root: run root, under which models of the sweep's own are trained.
        settings: ``key=value`` laid over the base run.

    Raises:
        UserError: naming file, line, key, expectation and nearest valid name.
    """
    data, origins = read_yaml(file)
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", file.stem).strip(".-_")[:60]
    data = {"name": stem or "sweep", **data}
    spec = validate(SweepSpec, data, str(file), origins)
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
    for places, values, extra in combinations(spec):
        cell = _cell(spec, values, extra, places, base, models, root, origins, str(file))
        if cell.run in cells:
            first = ", ".join(f"{axis} {label(v)}" for axis, v in cells[cell.run].settings.items())
            again = ", ".join(f"{axis} {label(v)}" for axis, v in values.items())
            raise UserError(f"{file}: two cells are the same run: {first}; and {again}")
        cells[cell.run] = cell
    if not cells:
        raise UserError(f"{file}: exclude leaves no cell")
    engines = [cell.spec.evaluation.engine for cell in (*cells.values(), *models.values())]
    if any(engine != engines[0] for engine in engines):
        raise UserError(f"{file}: all cells share their engines, so evaluation.engine is the same")
    return Plan(spec, file.read_text(encoding="utf-8"), models, tuple(cells.values()))


MAX_COMBINATIONS = 100_000
"""Of a grid; one value more on each axis of a few is soon millions."""


def combinations(
    spec: SweepSpec,
) -> Iterator[tuple[dict[str, KeyPath], DottedSettings, DottedSettings]]:
    """Every cell: where the value of each axis stands in the file, the values, further settings.

    Raises:
        UserError: the grid is out of all proportion.
    """
    number = math.prod(map(len, spec.grid.values()))
    if number > MAX_COMBINATIONS:
        raise UserError(f"grid: {number:,} combinations; {MAX_COMBINATIONS:,} are allowed")
    for chosen in itertools.product(*(range(len(values)) for values in spec.grid.values())):
        places: dict[str, KeyPath] = {
            axis: ("grid", axis, index) for axis, index in zip(spec.grid, chosen, strict=True)
        }
        values = {axis: spec.grid[axis][int(place[-1])] for axis, place in places.items()}
        if not any(matches(rule, values) for rule in spec.exclude):
            yield places, values, {}
    for index, given in enumerate(spec.include):
        places = {key: ("include", index, key) for key in given}
        values = {axis: given[axis] for axis in spec.grid}
        yield places, values, {key: given[key] for key in given if key not in spec.grid}


def matches(rule: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    """Whether a cell has the value, or one of the values, that ``rule`` gives for each axis."""
    return all(
        values[axis] == wanted or (isinstance(wanted, list) and values[axis] in wanted)
        for axis, wanted in rule.items()
    )


class _Layer:
    """Settings of a run that grow by layers, and where each of them stands."""

    def __init__(self, data: dict[str, Any], origins: dict[KeyPath, str]) -> None:
        self.data = data
        self.origins = origins

    def copy(self) -> _Layer:
        return _Layer(copy.deepcopy(self.data), dict(self.origins))

    def lay(
        self, settings: Mapping[str, Any], origins: Mapping[KeyPath, str], under: KeyPath
    ) -> None:
        """Lay a mapping that stands at ``under`` in the sweep file over what is there."""
        self.data = deep_merge(self.data, settings, bare_names=True)
        size = len(under)
        self.origins |= {
            k[size:]: at for k, at in origins.items() if k[:size] == under and k[size:]
        }

    def set(self, key: str, value: Any, origin: str) -> None:
        set_value(self.data, self.origins, tuple(key.split(".")), value, origin)

    def run(self, file: str) -> ExperimentSpec:
        return to_experiment(self.data, file, self.origins)


def _model_cell(
    name: str, run: Mapping[str, Any], base: _Layer, origins: Mapping[KeyPath, str], file: str
) -> PlannedCell:
    layer = base.copy()
    layer.lay(run, origins, ("models", name))
    layer.set("name", name, f"{file}: models.{name}")
    return PlannedCell(layer.run(file), {})


def _cell(
    spec: SweepSpec,
    values: DottedSettings,
    extra: DottedSettings,
    places: Mapping[str, KeyPath],
    base: _Layer,
    models: Mapping[str, PlannedCell],
    root: Path,
    origins: Mapping[KeyPath, str],
    file: str,
) -> PlannedCell:
    layer = base.copy()
    given = {**values, **extra}
    # The whole of a thing before its parts: dataset before dataset.size.
    for key in sorted(given, key=lambda key: key.count(".")):
        layer.set(key, given[key], origins.get(places[key], file))
    for index, override in enumerate(spec.overrides):
        if matches(override.match, values):
            for key, value in override.set.items():
                place: KeyPath = ("overrides", index, "set", key)
                layer.set(key, value, origins.get(place, file))
    if spec.budget is not None:
        where = origins.get(("budget", "tokens"), file)
        layer.set("training.tokens", spec.budget.tokens, where)
        layer.set("training.max_steps", None, where)
    first = models.get(label(values.get("model")))
    if first is not None:
        # It is not there yet, so the settings are checked with the model that it is trained from.
        layer.set("model", first.spec.model.name, file)
    run = layer.run(file)
    if first is None:
        return PlannedCell(run, values)
    name = name_of_parts(run.dataset.name, first.spec.name, str(run.objective))
    model = ModelSpec.model_construct(name=str(root.absolute() / first.run / "model"))
    return PlannedCell(
        run.model_copy(update={"model": model, "name": name}), values, after=first.run
    )
