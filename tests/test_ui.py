"""The comparison in the real MLflow UI, through a real browser."""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType

import pytest

from deft.platform.commands.ui import link_of
from deft.platform.config.loading import load_spec
from deft.platform.records.run_directory import RunDirectory
from deft.platform.tracking.experiment_recorder import ExperimentRecorder
from deft.platform.tracking.uri import default_tracking_uri

OBJECTIVES = ("original", "p", "Cayley_Trans", "DEFT")
STEPS = range(1, 41)


def gate(objective: str, step: int) -> float:
    return 1 - 0.1 * OBJECTIVES.index(objective) * (1 - math.exp(-step / 10))


def nll(objective: str, seed: int, step: int) -> float:
    return 2 + 5 * math.exp(-step / (10 + 2 * OBJECTIVES.index(objective))) + seed / 20


def record(root: Path, objective: str, seed: int) -> str:
    """Record a run with made-up curves, for the UI is what is looked at; return its name."""
    names = {"dataset": "figfont", "model": "tiny", "objective": objective}
    run = RunDirectory(root, load_spec(None, names, [f"seed={seed}"]))
    run.create()
    with ExperimentRecorder(run, default_tracking_uri(root), pytest.fail) as recorder:
        for step in STEPS:
            gates = {"train/mean_gate": gate(objective, step)}
            run.append_event(step, {"train/nll": nll(objective, seed, step), **gates})
        result = {"eval/figfont/jaro_winkler": gate(objective, seed)}
        recorder.log(STEPS[-1], result, 1_800_000_000_000)
        assert recorder.finish() is not None
    return run.path.name


def test_objectives_are_compared_side_by_side(ui: ModuleType, tmp_path: Path) -> None:
    runs = {record(tmp_path, name, seed): (name, seed) for name in OBJECTIVES for seed in (0, 1)}
    with ui.mlflow_ui(tmp_path) as address, ui.browser_page() as page:
        # The link that `deft ui` prints opens on charts of results and losses.
        page.goto(link_of(default_tracking_uri(tmp_path), address))
        ui.expect(page.get_by_text("results and losses").first).to_be_visible()
        cards = page.get_by_test_id("experiment-view-compare-runs-card")
        ui.expect(cards).to_have_count(3)
        ui.expect(cards.nth(0)).to_contain_text("jaro_winkler")
        ui.expect(cards.nth(1)).to_contain_text("train/nll")
        for run in runs:
            ui.expect(page.get_by_role("link", name=run)).to_be_visible()

        ui.open_runs(page, address)
        page.get_by_label("Select all runs").click()
        page.get_by_role("button", name="Compare", exact=True).click()
        ui.expect(page.get_by_text("Comparing 8 Runs from 1 Experiment")).to_be_visible()
        for run in runs:
            ui.expect(page.get_by_text(run, exact=True).first).to_be_attached()

        # Parallel coordinates, objective among their axes; MLflow cuts values to ten characters.
        page.locator(".js-plotly-plot .parcoords .axis-title").first.wait_for()
        ((coordinates,),) = ui.curves(page)
        axes = {axis["label"]: axis for axis in coordinates["dimensions"]}
        assert axes["objective"]["ticktext"] == sorted(name[:10] for name in OBJECTIVES)

        # From there the curves of one metric, run by run.
        page.get_by_role("link", name="train/nll").first.click()
        page.wait_for_function("() => document.querySelector('.js-plotly-plot')?.data?.length >= 8")
        drawn = {curve["name"]: curve["y"] for curve in ui.curves(page)[0]}
        assert drawn.keys() == runs.keys()
        for run, (name, seed) in runs.items():
            assert drawn[run] == pytest.approx([nll(name, seed, step) for step in STEPS])

        # And of several, a curve for each objective: the picture of docs/quickstart.md.
        ui.open_runs(page, address)
        ui.group_by_objective(page)
        ui.show_charts(page, ui.CHARTS)
        for name in OBJECTIVES:
            ui.expect(page.get_by_text(f"Group: {name}")).to_be_visible()
            for metric in ("nll", "mean_gate"):
                legend = page.get_by_text(f"{name} (train/{metric})", exact=True)
                ui.expect(legend).to_be_visible()
        gates, losses = ([curve["y"] for curve in chart] for chart in ui.curves(page))
        for name in OBJECTIVES:
            assert pytest.approx([gate(name, step) for step in STEPS]) in gates
            mean = [(nll(name, 0, step) + nll(name, 1, step)) / 2 for step in STEPS]
            assert pytest.approx(mean) in losses
        page.screenshot(path=tmp_path / "comparison.png")
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")
