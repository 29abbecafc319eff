"""`deft sweep --dry-run`: the cells, what is finished of them, and what the rest would cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from deft.platform.commands.cost_model import (
    CARDS,
    FITS,
    MFU,
    fit,
    gpu_hours,
    trained_tokens,
    training_flops,
    worker_memory,
)
from deft.platform.commands.dry_run import (
    check_own_objectives,
    data_size,
    dimensions_of,
)
from deft.platform.config.loading import preset_note
from deft.platform.console import RunConsole
from deft.sweeps.cells import Plan, PlannedCell
from deft.sweeps.combinations import describe_rule
from deft.sweeps.directory import SweepDirectory
from deft.sweeps.spec import OverrideSpec, label
from deft.workers.common.text import plural

COLUMN_BORDER = 3
"""Columns of a terminal between two columns of a table."""
LEAST_HOURS = 0.01
"""GPU-hours below which nothing more precise is said."""
MAX_SHOWN = 40
"""Number of cells in the table: the first ones."""


def show_sweep(plan: Plan, root: Path, console: RunConsole) -> None:
    """Print the cells of a sweep and what is left to do.

    Raises:
        ValueError: a local file of data cannot be read, or an objective cannot be used.
    """
    check_own_objectives(dict.fromkeys(cell.spec.objective for cell in plan.cells))
    directory = SweepDirectory.of(plan, root)
    axes = list(plan.spec.grid)
    trained_from = models_trained_from(plan)
    fits = [cards_that_fit(cell, trained_from) for cell in plan.cells]
    runs, named_in_full = names_of_runs(plan, console)
    columns = [
        *((axis, [label(cell.settings[axis]) for cell in plan.cells]) for axis in axes),
        ("fits on", fits),
        ("", [state(directory, cell) for cell in plan.cells]),
        ("run", runs),
    ]
    # What is the same for all is said once, or is nothing to say.
    shown = [(name, texts) for name, texts in columns if name in axes or len(set(texts)) > 1]
    rows = list(zip(*(texts[:MAX_SHOWN] for _, texts in shown), strict=True))
    names = [name for name, _ in shown]
    console.table(f"cells of {directory.path.name}", names, rows, left=True)
    if len(plan.cells) > MAX_SHOWN:
        console.print(f"… and {len(plan.cells) - MAX_SHOWN:,} more")
    if not named_in_full:
        console.print(f"run: the end of its name, as in {plan.cells[0].run}")
    if len(set(fits)) == 1:
        console.print(f"each cell fits on: {fits[0]}")
    for note in dict.fromkeys(filter(None, (preset_note(cell.spec) for cell in plan.cells))):
        console.print(note)
    console.table("plan", ["", ""], plan_rows(plan, directory, root), left=True)


def names_of_runs(plan: Plan, console: RunConsole) -> tuple[list[str], bool]:
    """Return the names of the cells' runs, or their ends where a terminal would break names.

    Values on the axes stand beside them and tell the rest.
    """
    names = [cell.run for cell in plan.cells]
    console.widen_pipe()
    if not console.console.is_terminal:
        return names, True
    columns = [
        [axis, *(label(cell.settings[axis]) for cell in plan.cells)] for axis in plan.spec.grid
    ]
    beside = sum(max(map(len, texts)) + COLUMN_BORDER for texts in columns)
    fits = beside + max(map(len, names)) + COLUMN_BORDER < console.console.width
    return (names, True) if fits else ([name.rsplit("-", 1)[-1] for name in names], False)


def models_trained_from(plan: Plan) -> dict[str, str]:
    """Return, by run, what each of the sweep's own models is trained from: none need exist yet."""
    return {cell.run: cell.spec.model.name for cell in plan.models.values()}


def cards_that_fit(cell: PlannedCell, trained_from: Mapping[str, str]) -> str:
    """Name the cards whose memory holds a worker of ``cell``."""
    model = dimensions_of(trained_from[cell.after] if cell.after else cell.spec.model.name)
    if model is None:
        return "unknown sizes"
    needed = worker_memory(model, cell.spec.training, cell.spec.objective.name).total
    names = [card.name.split()[0] for card in CARDS if fit(needed, card) == FITS]
    return ", ".join(names) or "no card"


def state(directory: SweepDirectory, cell: PlannedCell) -> str:
    """Say what has become of a cell so far."""
    if directory.is_finished(cell.run):
        return "finished"
    return "failed" if directory.failure(cell.run) else ""


def plan_rows(plan: Plan, directory: SweepDirectory, root: Path) -> list[list[str]]:
    """Make a table of the numbers, tokens, cost and rules of a sweep."""
    runs = [*plan.models.values(), *plan.cells]
    left = [cell for cell in runs if not directory.is_finished(cell.run)]
    values = " × ".join(f"{len(settings)} {axis}" for axis, settings in plan.spec.grid.items())
    rows = [["cells", f"{len(plan.cells):,} ({values}{_changes(plan)})"]]
    if plan.models:
        rows.append(["models first", ", ".join(plan.models)])
    rows += [["override", _override(rule)] for rule in plan.spec.overrides]
    if len(left) < len(runs):
        rows.append(["finished already", f"{len(runs) - len(left):,}"])
    rows += cost_rows(left, models_trained_from(plan), root)
    if plan.spec.budget is not None:
        rows.append(["budget", f"{plan.spec.budget.tokens:,} training tokens for every cell"])
    if plan.spec.select is not None:
        rows.append(["chosen beforehand", f"{plan.spec.select.over} by {plan.spec.select.by}"])
    workers = max(cell.spec.training.num_workers for cell in runs)
    each = f"at most {plural(workers, 'training worker')}, a GPU or a CPU each"
    rows.append(["each cell", each])
    return rows


def cost_rows(
    cells: Sequence[PlannedCell], trained_from: Mapping[str, str], root: Path
) -> list[list[str]]:
    """Count training tokens and GPU-hours of ``cells``, as far as sizes are known without the hub.

    Args:
        cells: what is left to run.
        trained_from: by run, the model that each of the sweep's own models is trained from: they
            need not exist yet.
        root: run root.
    """
    tokens, hours, unknown = 0, [0.0 for _ in CARDS], 0
    costs: dict[str, tuple[int, list[float]] | None] = {}
    for cell in cells:
        spec = cell.spec
        # Objective and seed change nothing about the cost, and there are many of them.
        key = spec.model_dump_json(include={"dataset", "model", "training"})
        if key not in costs:
            name = trained_from[cell.after] if cell.after else spec.model.name
            data, model = data_size(spec, root), dimensions_of(name)
            costs[key] = None
            if data is not None and model is not None:
                count = trained_tokens(spec.training, data)
                flops = training_flops(model, spec.training, count)
                costs[key] = (count, [gpu_hours(flops, card) for card in CARDS])
        cost = costs[key]
        if cost is None:
            unknown += 1
            continue
        tokens += cost[0]
        hours = [sum(pair) for pair in zip(hours, cost[1], strict=True)]
    rows = [["to run", f"{len(cells):,} cells, {tokens:,} training tokens, prompts included"]]
    if unknown:
        rows.append(["", f"not counting {unknown:,} cells whose data or model is not known here"])
    times = (f"{h:,.2f}" if h >= LEAST_HOURS else f"under {LEAST_HOURS}" for h in hours)
    each = ", ".join(f"{card.name} {time}" for card, time in zip(CARDS, times, strict=True))
    return [*rows, ["GPU-hours to train", f"{each} (at an assumed {MFU:.0%} of the peak)"]]


def _override(rule: OverrideSpec) -> str:
    settings = ", ".join(f"{key} {label(value)}" for key, value in rule.set.items())
    return f"{settings} where {describe_rule(rule.match)}"


def _changes(plan: Plan) -> str:
    total = 1
    for values in plan.spec.grid.values():
        total *= len(values)
    left_out = total + len(plan.spec.include) - len(plan.cells)
    out = f", {left_out} excluded" if left_out else ""
    return out + (f", {len(plan.spec.include)} included" if plan.spec.include else "")
