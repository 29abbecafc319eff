"""The notebook of examples/, its cells executed one after the other.

By `exec`: a kernel would add a dozen packages to the lock, and start slower than the cells run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest

from deft.platform.config.loading import load_spec
from helpers import ROOT, leave_finished_run, make_prediction

NOTEBOOK = ROOT / "examples" / "compare_objectives.ipynb"


@pytest.fixture
def cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the code of the cells, which run in a folder of their own."""
    mpl.use("Agg")
    (tmp_path / "examples").mkdir()
    monkeypatch.chdir(tmp_path / "examples")
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_notebook_is_stored_without_outputs() -> None:
    notebook = json.loads(NOTEBOOK.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


def check_figure(variables: dict[str, Any], num_steps: int) -> None:
    curves, bars = variables["figure"].axes
    assert [line.get_label() for line in curves.get_lines()] == ["original", "DEFT"]
    assert {len(line.get_xdata()) for line in curves.get_lines()} == {num_steps}
    assert [label.get_text() for label in bars.get_xticklabels()] == ["original", "DEFT"]


def test_cells_read_runs_that_have_finished(tmp_path: Path, cells: list[str]) -> None:
    variables: dict[str, Any] = {}
    exec(cells[0], variables)
    for objective, num_right in (("original", 30), ("DEFT", 10)):
        tables = {
            label: {"chain_sum": [make_prediction(i, is_correct=i < number) for i in range(40)]}
            for label, number in (("base", 0), ("eval", num_right))
        }
        spec = load_spec({**variables["experiment"], "objective": objective})
        leave_finished_run(tmp_path / "runs", spec, tables)
    for cell in cells[1:]:
        exec(cell, variables)
    after = variables["after"]
    assert dict(zip(after.objective, after.value, strict=True)) == {"original": 0.75, "DEFT": 0.25}
    assert variables["comparison"]["conclusion"].to_list()[1:] == ["lower", "lower"]
    check_figure(variables, num_steps=2)


@pytest.mark.slow
def test_cells_train_and_evaluate_two_objectives(ray_cluster: None, cells: list[str]) -> None:
    variables: dict[str, Any] = {}
    exec(cells[0], variables)
    variables["experiment"] |= {
        "dataset": {"name": "chain_sum", "size": 200},
        "training": {"num_workers": 1, "max_steps": 3, "batch_size": 16},
        "evaluation": {
            "general": False,
            "benchmarks": [{"name": "chain_sum", "size": 4, "max_tokens": 8}],
            "engine": {"type": "transformers"},
        },
    }
    for cell in cells[1:]:
        exec(cell, variables)
    assert len(variables["scores"]) == 4
    check_figure(variables, num_steps=3)
