"""`deft compare` on runs that are on disk as `deft run` leaves them; nothing is trained here."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from rich.console import Console

from deft.evaluators.scores import statistics
from deft.platform.commands.compare import compare_runs
from deft.platform.commands.compare_table import decimals, show_comparison
from deft.platform.console import RunConsole
from deft.platform.records.find import find_newest_run
from deft.platform.records.manifests import EvaluateManifest, load_manifest, save_manifest
from helpers import make_prediction, write_finished_run

Deft = Callable[..., CompletedProcess[str]]
NUM_ITEMS = 400


def write_run(root: Path, objective: str, num_right: int, seed: int = 0) -> Path:
    predictions = {
        label: [
            make_prediction(item, is_correct=item < right, finish_reason="stop")
            for item in range(NUM_ITEMS)
        ]
        for label, right in (("eval", num_right), ("base", 3))
    }
    tables = {label: {"figfont": rows} for label, rows in predictions.items()}
    return write_finished_run(root, tables, f"seed={seed}", objective=objective).path


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [write_run(tmp_path, "original", 100), write_run(tmp_path, "Cayley_Trans", 160)]


def shown(runs: list[Path], width: int) -> str:
    out = io.StringIO()
    show_comparison(compare_runs(runs), RunConsole(Console(file=out, width=width)))
    return out.getvalue()


def test_numbers_are_whole_in_eighty_columns(runs: list[Path]) -> None:
    text = shown(runs, 80)
    items = np.arange(NUM_ITEMS)
    low, high = statistics.paired_difference(1.0 * (items < 100), 1.0 * (items < 160)).interval
    tables = text[: text.index("differences to")]
    assert max(map(len, tables.splitlines())) <= 80
    for whole in ("0.250", "0.400", "+0.150", f"[{low:+.3f}, {high:+.3f}]", "< 0.0001 higher"):
        assert whole in tables
    for name in [run.name for run in runs]:
        assert name in shown(runs, 200)


def test_small_differences_have_the_digits_that_matter() -> None:
    assert decimals(0.05) == 3
    assert decimals(0.0004) == 5
    assert decimals(0, 2e-5) == 6
    assert decimals(0) == decimals(float("nan")) == 3


def test_rows_are_what_the_table_says_with_all_digits(runs: list[Path]) -> None:
    comparison = compare_runs(runs)
    assert comparison.first == runs[0].name
    first, second, base = comparison.rows
    assert (first.value, second.value, base.value) == (0.25, 0.4, 3 / NUM_ITEMS)
    assert first.difference is None
    assert second.difference == pytest.approx(0.15)
    assert second.conclusion == "higher"
    assert base.run == "base: tiny-0123456789ab"
    assert base.conclusion == "lower"


def test_json_and_csv_are_alone_on_the_output(deft: Deft, tmp_path: Path, runs: list[Path]) -> None:
    arguments = ["compare", *(run.name for run in runs), "--root", str(tmp_path)]
    printed = json.loads(deft(*arguments, "--json").stdout)
    assert [row["value"] for row in printed["rows"]] == [0.25, 0.4, 3 / NUM_ITEMS]
    rows = list(csv.DictReader(io.StringIO(deft(*arguments, "--csv").stdout)))
    assert [row["run"] for row in rows] == [row["run"] for row in printed["rows"]]
    assert float(rows[1]["difference"]) == printed["rows"][1]["difference"]


def test_of_runs_of_one_name_the_newest_is_compared(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, "original", 9, seed) for seed in range(3)]
    longer = write_run(tmp_path, "DEFT_exact", 9)
    name = runs[0].name.rpartition("-")[0]
    times = {run: number for number, run in enumerate([runs[2], runs[0], runs[1]], 1)}
    for run, time in times.items():
        file = run / "stages" / "evaluate.json"
        manifest = load_manifest(file, EvaluateManifest)
        save_manifest(file, manifest.model_copy(update={"finished_at": time}))
    said: list[str] = []
    assert find_newest_run(name, tmp_path, said.append) == runs[1]
    assert said == [f"{name}: the newest of 3, {runs[1].name}"]
    among = [runs[0].name, runs[2].name]
    assert find_newest_run(name, tmp_path, said.append, among=among) == runs[0]
    # A whole directory name, and the beginning of one, mean what they always do.
    assert find_newest_run(runs[2].name, tmp_path, pytest.fail) == runs[2]
    assert find_newest_run("figfont-tiny-D", tmp_path, pytest.fail) == longer
