"""From a sweep file to its cells, and to one helpful message where that cannot be done."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from deft.platform.config.loading import load_spec
from deft.platform.config.presets import PAPER_RUNS
from deft.platform.console import RunConsole
from deft.platform.errors import UserError
from deft.sweeps.cells import Plan, PlannedCell, load_sweep
from deft.sweeps.directory import SweepDirectory
from deft.sweeps.dry_run import MAX_SHOWN, plan_rows, show_sweep
from helpers import ROOT

BASE = {
    "dataset": {"name": "figfont", "size": 400},
    "model": "tiny",
    "training": {"num_workers": 1, "max_steps": 4, "batch_size": 8},
    "evaluation": {"benchmarks": [{"name": "figfont", "size": 4}]},
}


def load(tmp_path: Path, **sweep: Any) -> Plan:
    file = tmp_path / "grid.yaml"
    sweep = {"base": BASE, "grid": {"objective": ["original", "DEFT"], "seed": [0, 1]}, **sweep}
    file.write_text(yaml.safe_dump(sweep, sort_keys=False))
    return load_sweep(file, tmp_path / "runs")


def message(tmp_path: Path, **sweep: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(tmp_path, **sweep)
    return str(caught.value)


def test_cells_are_all_combinations_in_the_order_of_the_axes(tmp_path: Path) -> None:
    plan = load(tmp_path)
    assert plan.spec.name == "grid"
    assert [cell.settings for cell in plan.cells] == [
        {"objective": "original", "seed": 0},
        {"objective": "original", "seed": 1},
        {"objective": "DEFT", "seed": 0},
        {"objective": "DEFT", "seed": 1},
    ]
    assert [(str(c.spec.objective), c.spec.seed) for c in plan.cells[2:]] == [
        ("DEFT", 0),
        ("DEFT", 1),
    ]
    assert all(cell.spec.dataset.size == 400 for cell in plan.cells)


def test_a_cell_is_the_run_of_the_same_settings_in_any_sweep(tmp_path: Path) -> None:
    alone = tmp_path / "run.yaml"
    alone.write_text(yaml.safe_dump({**BASE, "objective": "deft", "seed": 1}))
    by_path = load(tmp_path, base="run.yaml")
    other_axes = load(tmp_path, grid={"seed": [1], "objective": ["DEFT"], "model": ["tiny"]})
    run = load_spec(alone).run_name
    assert load(tmp_path).cells[3].run == by_path.cells[3].run == other_axes.cells[0].run == run


def test_exclude_include_and_overrides(tmp_path: Path) -> None:
    plan = load(
        tmp_path,
        exclude=[{"objective": "DEFT", "seed": [1, 2]}],
        include=[{"objective": "p", "seed": 7, "training.max_steps": 9}],
        overrides=[
            {"match": {"objective": ["DEFT", "p"]}, "set": {"training.learning_rate": 1e-3}},
            {"match": {"objective": "p"}, "set": {"training.learning_rate": 2e-3}},
        ],
    )
    planned = [
        (
            str(cell.spec.objective),
            cell.spec.seed,
            cell.spec.training.learning_rate,
            cell.spec.training.max_steps,
        )
        for cell in plan.cells
    ]
    assert planned == [
        ("original", 0, 1e-3, 4),  # the preset of figfont and tiny
        ("original", 1, 1e-3, 4),
        ("DEFT", 0, 1e-3, 4),
        ("p", 7, 2e-3, 9),
    ]


@pytest.mark.parametrize(
    ("axis", "values", "rule"),
    [
        ("training.learning_rate", [1e-4, 5e-4], 1e-4),
        ("training.learning_rate", [1e-4, 5e-4], "1e-4"),
        ("training.learning_rate", ["1e-4", 5e-4], 0.0001),
        ("training.learning_rate", [1e-4, 5e-4], [0.1, "1.0e-4"]),
        ("training.batch_size", [8, 16], "8"),
        ("training.batch_size", [8.0, 16], 8),
        ("training.betas", [[0.9, 0.95], [0.9, 0.99]], ["0.9", 0.95]),
        ("training.packing", [True, False], "yes"),
        ("training.lora", [None, {"rank": 4}], None),
        ("training.lora", [{"rank": 4, "alpha": 32}, None], {"rank": "4"}),
        ("objective", ["original", "DEFT"], "nll"),
        ("objective", ["deft", "p"], "DEFT"),
        ("objective", ["GeneralFamily-0.5", "p"], {"name": "GeneralFamily", "alpha": "5e-1"}),
        ("dataset", ["figfont", "chain_sum"], {"name": "figfont"}),
        (
            "dataset",
            [{"name": "figfont", "noise": 0.3}, "figfont"],
            {"name": "figfont", "noise": "0.3"},
        ),
        ("model", ["tiny", "smollm2-135m"], {"name": "tiny"}),
        ("training.deepspeed.zero_optimization.reduce_bucket_size", [5e8, 5e7], "5e8"),
    ],
)
def test_rules_compare_settings_as_they_are_parsed(
    tmp_path: Path, axis: str, values: list[Any], rule: Any
) -> None:
    grid = {axis: values, **({} if axis == "objective" else {"objective": ["EAFT"]})}
    base = {**BASE, "training": {**BASE["training"], "batch_size": 16}}
    everything = load(tmp_path, base=base, grid=grid)
    first, second = everything.cells
    kept = load(tmp_path, base=base, grid=grid, exclude=[{axis: rule}])
    assert [cell.run for cell in kept.cells] == [second.run]
    override = {"match": {axis: rule}, "set": {"training.warmup_ratio": 0.2}}
    overridden = load(tmp_path, base=base, grid=grid, overrides=[override])
    ratios = [cell.spec.training.warmup_ratio for cell in overridden.cells]
    assert ratios == [0.2, first.spec.training.warmup_ratio]


def test_settings_of_cells_are_as_parsed(tmp_path: Path) -> None:
    grid = {
        "objective": ["nll", "deft"],
        "training.learning_rate": ["1e-4"],
        "dataset": ["figfont"],
    }
    assert [cell.settings for cell in load(tmp_path, grid=grid).cells] == [
        {"objective": name, "training.learning_rate": 1e-4, "dataset": "figfont"}
        for name in ("original", "DEFT")
    ]


@pytest.mark.parametrize(
    ("sweep", "expected"),
    [
        (
            {"exclude": [{"seed": 0, "objective": "DETF"}]},
            ":23: exclude.0.objective: no cell has DETF; cells have original, DEFT; did you",
        ),
        (
            {"exclude": [{"seed": 0}, {"seed": 4}]},
            ":23: exclude.1.seed: no cell has 4; cells have 0, 1; did you mean 1?",
        ),
        (
            {"exclude": [{"objective": ["DEFT", "orignal"]}]},
            "no cell has orignal; cells have original, DEFT; did you mean original?",
        ),
        (
            {"exclude": [{"objective": "CFT"}]},
            "no cell has CFT; cells have original, DEFT; unknown objective 'CFT'",
        ),
        (
            {"exclude": [{"objective": "p"}]},
            "exclude.0.objective: no cell has p; cells have original, DEFT; give one of them",
        ),
        (
            {"exclude": [{"seed": True}]},
            "exclude.0.seed: no cell has True; cells have 0, 1; expected a number, got true",
        ),
        (
            {
                "exclude": [{"objective": "nll", "seed": 1}],
                "overrides": [{"match": {"objective": "nll", "seed": "1"}, "set": {"seed": 2}}],
            },
            "overrides.0.match: no cell has objective nll and seed 1 together, though",
        ),
        (
            {
                "exclude": [{"objective": "nll"}],
                "overrides": [{"match": {"objective": "original"}, "set": {"seed": 2}}],
            },
            "overrides.0.match.objective: no cell has original; cells have DEFT; give one of them",
        ),
        (
            {
                "grid": {"model": ["strong", "tiny"], "objective": ["p"]},
                "models": {"strong": {"objective": "p"}},
                "exclude": [{"model": "strnog"}],
            },
            "exclude.0.model: no cell has strnog; cells have strong, tiny; did you mean strong?",
        ),
    ],
)
def test_a_rule_that_matches_no_cell_is_refused(
    tmp_path: Path, sweep: dict[str, Any], expected: str
) -> None:
    assert expected in message(tmp_path, **sweep)


def test_rules_may_overlap(tmp_path: Path) -> None:
    exclude = [{"objective": "DEFT"}, {"objective": "DEFT", "seed": 1}]
    assert len(load(tmp_path, exclude=exclude).cells) == 2


def test_a_rule_names_a_model_of_the_sweep(tmp_path: Path) -> None:
    plan = load(
        tmp_path,
        models={"strong": {"objective": "original"}},
        grid={"model": ["strong", "tiny"], "objective": ["DEFT"]},
        exclude=[{"model": "strong"}],
    )
    assert [cell.settings["model"] for cell in plan.cells] == ["tiny"]


def test_surprises_of_yaml_in_a_sweep_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(BASE))
    head = "base: base.yaml\n"
    for text, expected in [
        ("grid: {objective: [p], seed: [010]}", "2: grid.seed.0: 010 is octal"),
        ("grid: {objective: [p], seed: [1:30]}", "2: grid.seed.0: 1:30 is a number of base 60"),
        ("grid:\n  objective: [p]\n  seed: [0, yes]", "4: seed: expected a number, got true"),
        ("grid: {objective: [p], dataset.split: [on]}", "YAML 1.1 reads on as true"),
        ("name: no\ngrid: {objective: [p]}", "2: name: Input should be a valid string, got False"),
        ("grid: {objective: [p]}\nretries: on", "3: retries: expected a number, got true"),
    ]:
        file.write_text(head + text)
        with pytest.raises(UserError) as caught:
            load_sweep(file, tmp_path)
        assert expected in str(caught.value)


def test_a_dotted_axis_sets_part_of_a_thing_and_a_whole_one_replaces_it(tmp_path: Path) -> None:
    plan = load(tmp_path, grid={"dataset.size": [100], "objective": ["p"], "dataset": ["figfont"]})
    (cell,) = plan.cells
    assert cell.spec.dataset.size == 100
    assert cell.settings == {"dataset.size": 100, "objective": "p", "dataset": "figfont"}


def test_a_budget_takes_the_place_of_steps(tmp_path: Path) -> None:
    training = load(tmp_path, budget={"tokens": 5000}).cells[0].spec.training
    assert (training.tokens, training.max_steps) == (5000, None)
    # 10 examples of 50 tokens, 8 in a step: 13 steps are the first that reach 5,000 tokens.
    assert training.num_steps(num_examples=10, num_tokens=500) == 13


def test_models_of_the_sweep_come_first(tmp_path: Path) -> None:
    plan = load(
        tmp_path,
        models={"strong": {"objective": "original", "training": {"max_steps": 30}}},
        grid={"model": ["strong", "tiny"], "objective": ["DEFT"]},
    )
    strong, tiny = plan.cells
    first = plan.models["strong"]
    assert (first.spec.model.name, first.spec.training.max_steps) == ("tiny", 30)
    assert strong.spec.model.name == str(tmp_path / "runs" / first.run / "model")
    assert (strong.after, tiny.after) == (first.run, None)
    assert strong.spec.name == "figfont-strong-DEFT"


@pytest.mark.parametrize(
    ("sweep", "expected"),
    [
        (
            {"grid": {"objective": ["p"], "training.lerning_rate": [0.1]}},
            "grid.yaml:18: training.lerning_rate: unknown key; did you mean learning_rate?",
        ),
        (
            {"grid": {"objective": ["original", "DEFTT"]}},
            "grid.yaml:17: objective: unknown objective 'DEFTT'. Did you mean DEFT?",
        ),
        ({"grid": {"objective": []}}, "objective: give at least one value"),
        ({"grid": {"seed": [1, 1]}}, "seed: 1 is given twice"),
        ({"grid": {"objective": ["deft", "DEFT"]}}, "two cells are the same run: objective deft"),
        ({"exclude": [{"modle": "tiny"}]}, "exclude.0: modle is no axis; axes are objective, seed"),
        ({"exclude": [{"seed": [0, 1]}]}, "exclude: its rules leave no cell"),
        ({"include": [{"objective": "p"}]}, "include.0: gives no seed"),
        ({"select": {"over": "training.learning_rate"}}, "training.learning_rate is no axis"),
        (
            {"select": {"over": "seeds"}},
            "select.over: seeds is no axis; axes are objective, seed; did you mean seed?",
        ),
        ({"select": {"over": "seed"}}, "seed is what is compared"),
        ({"grid": {"evaluation.engine.dtype": ["float32"]}}, "all cells share their engines"),
        (
            {
                "overrides": [
                    {
                        "match": {"seed": 1},
                        "set": {"evaluation.engine": {"dtype": "float32"}},
                    }
                ]
            },
            "all cells share their engines",
        ),
        ({"gird": {}}, "grid.yaml:21: gird: unknown key; did you mean grid?"),
        ({"base": "nowhere.yaml"}, "nowhere.yaml: no such file"),
        (
            {"base": {**BASE, "training": {"num_workers": "two"}}},
            "grid.yaml:7: training.num_workers: Input should be a valid integer",
        ),
        (
            {"models": {"strong": {"objective": "p", "traning": {}}}},
            "traning: unknown key; did you mean training?",
        ),
    ],
)
def test_mistakes_are_named_with_their_line(
    tmp_path: Path, sweep: dict[str, Any], expected: str
) -> None:
    assert expected in message(tmp_path, **sweep)


def bytes_read() -> int:
    """Bytes that this process has read so far, from files or their cache."""
    counters = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in counters)["rchar"])


def test_a_cell_of_thousands_reads_its_own_line(tmp_path: Path) -> None:
    planned = load(tmp_path)
    spec = planned.cells[0].spec
    seeds = range(5000)
    cells = [PlannedCell(spec.model_copy(update={"seed": seed}), {"seed": seed}) for seed in seeds]
    plan = replace(planned, cells=tuple(cells))
    directory = SweepDirectory.of(plan, tmp_path / "runs")
    directory.create(plan)
    last = plan.cells[-1].run
    size = (directory.path / "cells.jsonl").stat().st_size
    before = bytes_read()
    for _ in range(3):
        assert directory.read_spec(last) == plan.cells[-1].spec
    assert 3 * size > 10 * (bytes_read() - before)
    assert directory.read_spec(plan.cells[2500].run).seed == 2500
    with pytest.raises(KeyError):
        directory.read_spec("unknown")


def test_the_papers_grid_is_its_tables(tmp_path: Path) -> None:
    file = ROOT / "sweeps" / "paper.yaml"
    plan = load_sweep(file, tmp_path)
    pairs = {(cell.spec.dataset.name, cell.spec.model.name) for cell in plan.cells}
    assert pairs == {(dataset, model) for dataset, model, _ in PAPER_RUNS}
    objectives = {str(cell.spec.objective) for cell in plan.cells}
    assert objectives == {"original", "p", "EAFT", "Cayley_Trans", "DEFT"}
    for cell in plan.cells:
        assert cell.spec.evaluation.protocol == "paper"


@pytest.mark.parametrize("name", ["quickstart", "continuum", "paper"])
def test_ready_grids_are_planned(tmp_path: Path, name: str) -> None:
    plan = load_sweep(ROOT / "sweeps" / f"{name}.yaml", tmp_path)
    console = RunConsole(Console(file=StringIO(), width=200))
    show_sweep(plan, tmp_path, console)
    file = console.console.file
    assert isinstance(file, StringIO)
    said = file.getvalue()
    assert f"cells of {name}-" in said
    assert "not counting" not in said
    assert f"{len(plan.cells) + len(plan.models)} cells, " in said


def test_a_plan_says_what_some_cells_alone_are_given(tmp_path: Path) -> None:
    rule = {"objective": ["original", "DEFT"], "seed": 1}
    given = {"training.max_steps": 9, "dataset.noise": 0.3}
    plan = load(tmp_path, overrides=[{"match": rule, "set": given}])
    rows = plan_rows(plan, SweepDirectory.of(plan, tmp_path), tmp_path)
    assert dict(rows)["override"] == (
        "training.max_steps 9, dataset.noise 0.3 where objective original or DEFT and seed 1"
    )


def test_a_plan_breaks_no_name_at_80_columns(tmp_path: Path) -> None:
    plan = load_sweep(ROOT / "sweeps" / "smollm2_rates.yaml", tmp_path)
    out = StringIO()
    screen = Console(file=out, force_terminal=True, color_system=None, width=80)
    show_sweep(plan, tmp_path, RunConsole(screen))
    rows = [line.split("│") for line in out.getvalue().splitlines() if line.startswith("│ ")]
    shown = {row[-2].strip() for row in rows if len(row) == 6}
    assert shown == {cell.run.rsplit("-", 1)[-1] for cell in plan.cells[:MAX_SHOWN]}
    assert plan.cells[0].run in out.getvalue()
