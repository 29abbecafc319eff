"""Reading of a sweep from disk: the state of its cells, and the value chosen on an axis."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from deft.evaluators.spec import heldout_table
from deft.objectives.spec import ObjectiveSpec
from deft.platform.console import RunConsole
from deft.platform.errors import UserError, warn_once
from deft.platform.records.find import find_directory, find_newest_run
from deft.platform.records.manifests import (
    AnyManifest,
    EvaluateManifest,
    TrainManifest,
    read_manifest,
    require_manifest,
)
from deft.platform.records.run_directory import read_events
from deft.sweeps.directory import read_failure
from deft.sweeps.spec import HIGHER_IS_BETTER, label
from deft.workers.common.files import reading

CellState = Literal["finished", "failed", "not run yet"]

BY_SEEDS = ("objective", "seed")
"""Axes that a setting leaves open: objectives are compared in it, over seeds."""


@dataclass(frozen=True)
class Setting:
    """Values on every axis but objective, seed and the one to choose on."""

    dataset: str
    model: str
    others: tuple[tuple[str, str], ...] = ()
    """The other axes and their values."""

    @property
    def title(self) -> str:
        others = (f"{axis} = {value}" for axis, value in self.others)
        return " · ".join((self.dataset, self.model, *others))


@dataclass(frozen=True)
class CellResult:
    """One run of a sweep and its state."""

    directory: Path
    objective: str
    """Its canonical name."""
    seed: int
    setting: Setting
    choice: str
    """Value on the axis that is chosen on; empty if there is none."""
    spec: Mapping[str, Any]
    state: CellState
    cause: str = ""
    """Why it failed."""
    attempts: int = 0

    @property
    def run(self) -> str:
        return self.directory.name

    def manifest(self, kind: type[AnyManifest]) -> AnyManifest | None:
        """Read the manifest of a stage; None if it has not finished."""
        return read_manifest(self.directory, kind)

    def require_manifest(self, kind: type[AnyManifest]) -> AnyManifest:
        """Read the manifest of a stage of a cell that has finished."""
        return require_manifest(self.directory, kind)

    def series(self, names: Iterable[str]) -> dict[str, NDArray[np.float64]]:
        """Read steps and values of event metrics, float64 [2, T], by name; only those logged."""
        points: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
        step = 0
        for event in read_events(self.directory):
            step = max(step, event.step)
            for name in points.keys() & event.metrics.keys():
                points[name].append((event.step, event.metrics[name]))
        trained = self.manifest(TrainManifest)
        if trained is not None and step < trained.step:
            warn_once(
                f"{self.directory / 'events.jsonl'}: damaged, it ends at step {step} of "
                f"{trained.step}, and so do its curves"
            )
        return {name: np.array(values, float).T for name, values in points.items() if values}


@dataclass(frozen=True)
class Candidate:
    """One value on the axis that is chosen on, for one objective in one setting."""

    setting: Setting
    objective: str
    value: str
    score: float
    """Mean over the finished seeds; NaN where there is none."""
    num_finished: int
    num_cells: int
    chosen: bool


@dataclass(frozen=True)
class Sweep:
    """A sweep as it is on disk now."""

    directory: Path
    name: str
    file: str
    """The YAML as its author wrote it."""
    baseline: str
    """The objective that others are compared with, by its canonical name."""
    over: str | None
    """Axis on which a value is chosen for each objective."""
    by: str | None
    """Event metric that it is chosen by."""
    cells: Sequence[CellResult]
    candidates: Sequence[Candidate]

    @property
    def objectives(self) -> list[str]:
        """All objectives: the baseline first, then in the order of the cells."""
        names = dict.fromkeys(cell.objective for cell in self.cells)
        return [self.baseline, *(name for name in names if name != self.baseline)]

    @property
    def settings(self) -> list[Setting]:
        """All settings, in the order of the cells."""
        return list(dict.fromkeys(cell.setting for cell in self.cells))

    def chosen(self, setting: Setting, objective: str) -> list[CellResult]:
        """Return the finished cells that represent an objective in a setting, sorted by seed."""
        values = {
            candidate.value
            for candidate in self.candidates
            if (candidate.setting, candidate.objective) == (setting, objective) and candidate.chosen
        }
        cells = [
            cell
            for cell in self.cells
            if (cell.setting, cell.objective, cell.state) == (setting, objective, "finished")
            and (self.over is None or cell.choice in values)
        ]
        return sorted(cells, key=lambda cell: cell.seed)

    def count(self, state: CellState) -> int:
        """Count the cells in ``state``."""
        return sum(cell.state == state for cell in self.cells)


def find_sweep(name: str, root: Path) -> Path:
    """Find the directory of a sweep under ``root``, see `find_directory`."""
    return find_directory(name, root / "sweeps", "sweep.json", "sweep")


def find_compared(
    names: list[str], sweep: str | None, root: Path, console: RunConsole
) -> list[Path]:
    """Find runs by name, in a sweep if one is given, and all of its finished ones without names."""
    if sweep is None:
        return [find_newest_run(name, root, console.print) for name in names]
    cells = read_sweep(find_sweep(sweep, root), root).cells
    finished = [cell.run for cell in cells if cell.state == "finished"]
    if not finished:
        raise UserError(f"{sweep}: no cell has finished; `deft report` says why")
    return [
        find_newest_run(name, root, console.print, among=finished) for name in names or finished
    ]


def find_viewed(names: list[str], root: Path, console: RunConsole) -> tuple[list[Path], Path, str]:
    """Return the runs that are shown, the folder for the page, and its title."""
    if len(names) == 1 and [*root.glob("sweeps/*/sweep.json")]:
        sweep = None
        with suppress(UserError):
            sweep = find_sweep(names[0], root)
        if sweep is not None:
            runs = find_compared([], names[0], root, console)
            return runs, sweep, f"Responses of {sweep.name}"
    runs = find_compared(names, None, root, console)
    return runs, runs[0], f"Responses of {' and '.join(run.name for run in runs)}"


def read_sweep(directory: Path, root: Path) -> Sweep:
    """Read the sweep in ``directory`` and the state of its cells under ``root``.

    Raises:
        UserError: a file of the sweep is missing or damaged.
    """
    remedy = "run the command of this sweep again"
    try:
        with reading(directory / "sweep.json", remedy):
            about = json.loads((directory / "sweep.json").read_text())
            select = about["select"] or {"over": None, "by": None}
            over, by = select["over"], select["by"]
            name, file, baseline = about["name"], about["file"], _canonical(about["baseline"])
        with reading(directory / "cells.jsonl", remedy):
            lines = (directory / "cells.jsonl").read_text().splitlines()
            described = [_describe(json.loads(line), root, over) for line in lines]
    except FileNotFoundError as error:
        raise UserError(
            f"{error.filename}: no such file; is this the directory of a sweep?"
        ) from None
    if not described:
        raise UserError(f"{directory / 'cells.jsonl'}: the sweep has no cells; {remedy}")
    cells = _without_constant_axes([_with_state(cell, directory) for cell in described])
    if baseline not in {cell.objective for cell in cells}:
        baseline = cells[0].objective
    return Sweep(
        directory=directory,
        name=name,
        file=file,
        baseline=baseline,
        over=over,
        by=by,
        cells=cells,
        candidates=choose(cells, by) if by else (),
    )


def _describe(line: Mapping[str, Any], root: Path, over: str | None) -> CellResult:
    """Return the cell that a line describes, as if it had not been run."""
    spec, settings = line["spec"], line["settings"]
    named_apart = (*BY_SEEDS, over, "dataset", "model")
    return CellResult(
        directory=root / line["run"],
        objective=_canonical(spec["objective"]),
        seed=spec["seed"],
        setting=Setting(
            dataset=label(settings.get("dataset", spec["dataset"]["name"])),
            model=label(settings.get("model", spec["model"]["name"])),
            others=tuple(
                (axis, label(value)) for axis, value in settings.items() if axis not in named_apart
            ),
        ),
        choice=label(settings[over]) if over else "",
        spec=spec,
        state="not run yet",
    )


def _with_state(cell: CellResult, sweep: Path) -> CellResult:
    """Return ``cell`` of the sweep in directory ``sweep`` with its state."""
    manifest = cell.manifest(EvaluateManifest)
    if manifest is not None:
        lost_table = _lost_table(cell.directory, manifest)
        if lost_table is None:
            return replace(cell, state="finished")
        warn_once(
            f"{lost_table}: gone, so its run is left out; delete stages/evaluate.json and "
            "stages/record.json of the run, and run the sweep again"
        )
        return replace(cell, state="failed", cause=f"{lost_table} is gone")
    if failure := read_failure(sweep, cell.run):
        cause, attempts = failure["cause"], failure["attempts"]
        return replace(cell, state="failed", cause=cause, attempts=attempts)
    return cell


def _without_constant_axes(cells: Sequence[CellResult]) -> list[CellResult]:
    """Leave out of the settings the axes on which all cells have the same value."""
    values: dict[str, set[str]] = {}
    for cell in cells:
        for axis, value in cell.setting.others:
            values.setdefault(axis, set()).add(value)
    return [
        replace(
            cell,
            setting=replace(
                cell.setting,
                others=tuple(pair for pair in cell.setting.others if len(values[pair[0]]) > 1),
            ),
        )
        for cell in cells
    ]


def _lost_table(run: Path, manifest: EvaluateManifest) -> Path | None:
    """Return a table that the evaluation wrote and that is no longer there."""
    models = manifest.models
    paths = [result.predictions for m in models.values() for result in m.benchmarks.values()]
    paths += [heldout_table(label) for label, model in models.items() if model.heldout]
    return next((run / path for path in paths if not (run / path).is_file()), None)


def _canonical(objective: Any) -> str:
    """Return an objective's canonical name, or its label where its module cannot be imported."""
    try:
        return str(ObjectiveSpec.model_validate(objective))
    except ValidationError:
        return label(objective)


def choose(cells: Sequence[CellResult], by: str) -> list[Candidate]:
    """Choose for each objective and setting the value with the best mean of ``by`` over seeds.

    Only values with the most finished seeds are considered: a value that breaks down for some seeds
    must not be chosen by the others. The first of equals is taken.

    Args:
        cells: of the whole sweep.
        by: a metric of `HIGHER_IS_BETTER`.
    """
    groups: dict[tuple[Setting, str], dict[str, list[CellResult]]] = {}
    for cell in cells:
        values = groups.setdefault((cell.setting, cell.objective), {})
        values.setdefault(cell.choice, []).append(cell)
    sign = -1.0 if HIGHER_IS_BETTER[by] else 1.0
    candidates = []
    for (setting, objective), values in groups.items():
        scores = {value: _last_values(same, by) for value, same in values.items()}
        best = min(scores, key=_rank(scores, sign))
        candidates += [
            Candidate(
                setting=setting,
                objective=objective,
                value=value,
                score=float(np.mean(of_seeds)) if of_seeds else math.nan,
                num_finished=len(of_seeds),
                num_cells=len(values[value]),
                chosen=value == best and bool(of_seeds),
            )
            for value, of_seeds in scores.items()
        ]
    return candidates


def _last_values(cells: Iterable[CellResult], by: str) -> list[float]:
    """Return the last value of ``by`` of every finished cell."""
    curves = [cell.series([by]).get(by) for cell in cells if cell.state == "finished"]
    return [float(curve[1, -1]) for curve in curves if curve is not None]


def _rank(
    scores: Mapping[str, Sequence[float]], sign: float
) -> Callable[[str], tuple[float, float]]:
    def rank(value: str) -> tuple[float, float]:
        mean = sign * float(np.mean(scores[value])) if scores[value] else math.inf
        return -len(scores[value]), mean if math.isfinite(mean) else math.inf

    return rank
