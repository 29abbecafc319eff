"""What a running sweep says of itself, from the events of its cells."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from deft.platform.console import RunConsole
from deft.sweeps import progress
from deft.sweeps.cells import load_sweep
from deft.sweeps.directory import SweepDirectory
from deft.sweeps.progress import SweepView
from deft.sweeps.trial import CellConsole
from helpers import Clock

SWEEP = """
base: {dataset: {name: figfont, size: 60}, model: tiny}
grid: {objective: [original, DEFT], seed: [0, 1, 2]}
"""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def open_view(tmp_path: Path, out: StringIO, *, terminal: bool) -> tuple[SweepView, list[str]]:
    file = tmp_path / "sweep.yaml"
    file.write_text(SWEEP)
    plan = load_sweep(file, tmp_path / "runs")
    directory = SweepDirectory.of(plan, tmp_path / "runs")
    directory.create(plan)
    console = RunConsole(Console(file=out, force_terminal=terminal, width=160, highlight=False))
    cells = {cell.run: cell for cell in plan.cells}
    return SweepView(directory, cells, console), list(cells)


def test_all_cells_have_a_bar_and_an_estimate_before_one_has_ended(
    tmp_path: Path, clock: Clock
) -> None:
    out = StringIO()
    view, (first, second, *_) = open_view(tmp_path, out, terminal=False)
    assert view.describe().strip() == "0 of 6 cells"
    with view.console.progress("cells") as rows:
        view.shown_in(rows)
        for run in (first, second):
            view.handle({"event": "waiting", "run": run, "what": "Ray starts"})
        assert view.seconds_left() is None
        train = {"event": "progress", "name": "train", "total": 200, "unit": "steps"}
        view.handle({**train, "run": first, "done": 1})
        clock.now += 35
        view.handle({**train, "run": first, "done": 100})
        # 35 s of two cells for half of the training, 0.7 of a cell, of one of them.
        assert view.cells_done() == pytest.approx(0.35)
        assert view.seconds_left() == pytest.approx(35 / 0.35 * 5.65 / 2)
        assert view.describe().strip() == (
            "0 of 6 cells, about 5 min left · original, seed 0: train 100/200 steps · "
            "original, seed 1: Ray starts"
        )
        # What a cell really took tells the rest: 40 of 100 s of training.
        clock.now += 5
        view.handle({"event": "stage", "run": first, "stage": "evaluate"})
        clock.now += 60
        view.failed(second, "no more memory")
    assert "FAILED    original, seed 1 (100 s)  no more memory" in out.getvalue()
    assert view.describe().strip().startswith("1 of 6 cells, about")


def test_a_cell_that_goes_on_from_a_checkpoint_is_no_whole_one(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "primary_results", lambda *_: "")
    view, (first, second, *_) = open_view(tmp_path, StringIO(), terminal=False)
    train = {"event": "progress", "name": "train", "total": 200, "unit": "steps"}
    view.handle({**train, "run": first, "done": 101})
    clock.now += 35
    view.handle({**train, "run": first, "done": 200})
    # 35 s for half of its training; of six cells, all of its training is done.
    assert view.seconds_left() == pytest.approx(35 / 0.35 * (6 - 0.7))
    view.handle({"event": "stage", "run": first, "stage": "evaluate"})
    clock.now += 30
    view.finished(first)
    # Half of its training, 0.35 of a cell, was done before.
    assert view.seconds_left() == pytest.approx(65 / 0.65 * 5)
    view.handle({"event": "stage", "run": second, "stage": "evaluate"})
    clock.now += 35
    view.finished(second)
    assert view.seconds_left() == pytest.approx(100 / 0.95 * 4)


def test_bars_have_the_units_of_what_they_count(tmp_path: Path, clock: Clock) -> None:
    out = StringIO()
    view, (first, second, *_) = open_view(tmp_path, out, terminal=True)
    with view.console.progress("cells") as rows:
        view.shown_in(rows)
        assert rows.bars is not None
        rows.bars.refresh()
        assert "0/6 cells" in out.getvalue()
        event = {"event": "progress", "run": first, "name": "train", "done": 3, "total": 200}
        view.handle({**event, "unit": "steps"})
        view.handle({"event": "waiting", "run": second, "what": "an engine starts"})
        clock.now += 10
        view.handle({**event, "unit": "steps", "done": 20})
        out.truncate(0)
        rows.bars.refresh()
    screen = out.getvalue()
    assert "20/200 steps" in screen
    assert "an engine starts" in screen
    assert "0/6 cells" in screen
    assert "eta 0:" in screen


class Events:
    """Stands for the queue from a cell's process to the sweep's."""

    def __init__(self, view: SweepView) -> None:
        self.view = view

    def put(self, event: dict[str, object]) -> None:
        self.view.handle(event)


def test_a_cell_tells_the_sweep_what_it_does(tmp_path: Path) -> None:
    view, (run, *_) = open_view(tmp_path, StringIO(), terminal=False)
    console = CellConsole(run, Events(view))

    def doing() -> str:
        return view.describe().partition("original, seed 0: ")[2]

    with console.waiting("loading the data"):
        assert doing() == "loading the data"
    with console.progress("steps") as steps:
        steps.wait("first step")
        assert doing() == "first step"
        steps.update("train", 8, 8)
        assert doing() == "train 8/8 steps"
    with console.progress("responses") as rows:
        rows.update("heldout, eval", 4, 4, unit="examples")
        assert doing() == "heldout, eval 4/4 examples"
        rows.update("figfont, eval", 2, 2, unit="responses")
        assert doing() == "figfont, eval 2/2 responses"
