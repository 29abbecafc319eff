"""`from deft import …` on runs that are on disk as `deft run` leaves them, and on one real run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import deft
from deft import compare, evaluate, load_results, run, sweep
from deft.platform.cli import app
from deft.platform.config.loading import load_spec
from deft.platform.console import RunConsole
from deft.platform.errors import UserError
from deft.platform.records.manifests import STAGES, manifest_file
from helpers import make_prediction, write_finished_run


def write_run(root: Path, objective: str, num_right: int) -> Path:
    tables = {
        label: {"figfont": [make_prediction(item, is_correct=item < right) for item in range(40)]}
        for label, right in (("base", 2), ("eval", num_right))
    }
    return write_finished_run(root, tables, objective=objective).path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_run(tmp_path, "original", 10)
    write_run(tmp_path, "DEFT", 30)
    return tmp_path


def test_package_has_its_functions_and_loads_them_when_asked_for() -> None:
    assert {compare.__name__, run.__name__, sweep.__name__} <= set(deft.__all__)
    with pytest.raises(AttributeError, match="module 'deft' has no attribute 'train'"):
        deft.train  # noqa: B018
    code = "import deft, sys; print([m for m in sys.modules if m.startswith('deft.')])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert loaded.stdout == "[]\n"


def test_results_of_finished_runs_are_one_table(root: Path) -> None:
    frame = load_results(root=root).to_pandas()
    after = frame[(frame.which == "trained") & (frame.metric == "avg_at_1")]
    assert dict(zip(after.objective, after.value, strict=True)) == {"original": 0.25, "DEFT": 0.75}
    assert set(frame.dataset) == {"figfont"}
    assert set(frame.model) == {"tiny"}
    assert (after.ci_low < after.value).all()
    one = load_results(["figfont-tiny-DEFT"], root=root)
    assert set(one["objective"].to_pylist()) == {"DEFT"}
    with pytest.raises(UserError, match="no finished run there"):
        load_results(root=root / "sweeps")


def test_comparison_is_the_one_of_the_command(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["figfont-tiny-original", "figfont-tiny-DEFT"]
    comparison = compare(names, root=root)
    assert compare([*root.glob(f"{names[0]}-*"), names[1]], root=root) == comparison
    assert [row.value for row in comparison.rows] == [0.25, 0.75, 0.05]
    assert comparison.rows[1].conclusion == "higher"
    assert comparison.table()["difference"].to_pylist()[:2] == [None, 0.5]
    app(["compare", *names, "--root", str(root), "--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out) == comparison.model_dump(mode="json")
    with pytest.raises(UserError, match="give at least two runs"):
        compare([], root=root)


def test_results_of_a_sweep_have_its_axes(finished: Any) -> None:
    table = load_results(sweep=finished.sweep.name, root=finished.root)
    assert set(table["run"].to_pylist()) == {finished.run.name}
    assert set(table["metric"].to_pylist()) == {"nll", "avg_at_1", "num_items", "num_samples"}
    assert load_results([finished.run], root=finished.root).num_rows == table.num_rows


def test_a_finished_run_is_not_run_again(finished: Any) -> None:
    out = StringIO()
    console = RunConsole(Console(file=out))
    again = run(finished.spec, root=finished.root, console=console)
    assert again.run == finished.run.name
    assert "is finished already" in out.getvalue()
    same = run(json.loads(finished.spec_file.read_text()), root=finished.root, console=console)
    assert same == run(finished.spec_file, root=finished.root, console=console) == again
    assert {"which": "trained", "metric": "nll", "value": 3.0}.items() <= again.table().to_pylist()[
        -4
    ].items()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda root: run({"dataset": "figfon"}, root=root), "figfont"),
        (lambda root: run({"grid": {}}, root=root), "grid makes this a sweep"),
        (
            lambda root: run(
                {"dataset": "figfont", "model": "tiny", "objective": "p"},
                settings={"training.max_stepz": 3},
                root=root,
            ),
            "settings training.max_stepz: training.max_stepz: unknown key; did you mean max_steps",
        ),
        (
            lambda root: run(
                load_spec({"dataset": "figfont", "model": "tiny", "objective": "p"}),
                settings={"seed": 1},
                root=root,
            ),
            "not over a ExperimentSpec",
        ),
        (lambda root: sweep({"dataset": "figfont"}, root=root), "a run file, not a sweep"),
        (lambda root: sweep(root / "none.yaml", root=root), "none.yaml: no such file"),
        (lambda root: evaluate({"model": "smollm2-135m"}, root=root), "nothing to evaluate"),
    ],
)
def test_bad_input_raises_and_writes_nothing(
    tmp_path: Path, call: Callable[[Path], Any], message: str
) -> None:
    with pytest.raises(UserError) as refusal:
        call(tmp_path)
    assert message in str(refusal.value)
    assert not [*tmp_path.iterdir()]


def test_a_sweep_may_be_a_mapping(tmp_path: Path) -> None:
    from deft.sweeps.cells import load_sweep

    base = {"dataset": "figfont", "model": "tiny"}
    grid = {"objective": ["original", "DEFT"], "seed": [0, 1]}
    plan = load_sweep({"base": base, "grid": grid}, tmp_path, {"training.max_steps": 3})
    assert plan.spec.name == "sweep"
    assert len(plan.cells) == 4
    assert {cell.spec.training.max_steps for cell in plan.cells} == {3}
    file = tmp_path / "sweep.yaml"
    file.write_text(plan.file)
    again = load_sweep(file, tmp_path, ["training.max_steps=3"])
    assert [cell.run for cell in again.cells] == [cell.run for cell in plan.cells]


def test_paths_and_tuples_are_settings_too(tmp_path: Path) -> None:
    (tmp_path / "sums.jsonl").write_text('{"prompt": "1+1=", "response": "2"}\n')
    texts = {"dataset": str(tmp_path / "sums.jsonl"), "model": "tiny", "objective": "p"}
    paths = {**texts, "dataset": tmp_path / "sums.jsonl", "evaluation": {"benchmarks": ()}}
    assert load_spec(paths) == load_spec({**texts, "evaluation": {"benchmarks": []}})


@pytest.mark.slow
def test_a_real_run_is_evaluated_again_and_compared(ray_cluster: None, tmp_path: Path) -> None:
    settings = {
        "dataset": {"name": "figfont", "size": 60},
        "model": "tiny",
        "objective": "DEFT",
        "training": {"num_workers": 1, "max_steps": 2, "batch_size": 8, "max_length": 256},
        "evaluation": {
            "general": False,
            "benchmarks": [{"name": "figfont", "size": 4, "max_tokens": 8}],
            "engine": {"type": "transformers"},
        },
    }
    trained = run(settings, root=tmp_path)
    assert all(manifest_file(trained.directory, stage).is_file() for stage in STAGES)
    again = evaluate(
        {"model": trained.directory, "evaluation": settings["evaluation"]}, root=tmp_path
    )
    values = [
        {row.metric: row.value for row in results.results if row.benchmark == "figfont"}
        for results in (trained, again)
    ]
    assert values[0]["avg_at_1"] == values[1]["avg_at_1"]
    comparison = compare([trained.run, again.run], root=tmp_path)
    assert comparison.rows[1].conclusion == "not distinguishable"


@pytest.mark.slow
def test_a_finished_sweep_is_reported_again(
    ray_cluster: None, finished: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, file = tmp_path / "runs", finished.root.parent / "sweep.yaml"
    shutil.copytree(finished.root, root, symlinks=True)
    results = sweep(file, root=root)
    assert results.cells == {finished.run.name: "finished"}
    assert results.failures == {}
    assert (results.report / "report.html").is_file()
    again = load_results(sweep=results.sweep, root=root)
    assert results.table().to_pylist() == again.to_pylist()
    capsys.readouterr()
    app(["sweep", str(file), "--root", str(root), "--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out) == results.model_dump(mode="json")
