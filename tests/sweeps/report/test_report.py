"""Reports of sweeps that are on disk as `deft sweep` leaves them; nothing is trained here."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from subprocess import CompletedProcess
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from deft.evaluators.scores import statistics
from deft.evaluators.scores.heldout_table import RowLoss, write_losses
from deft.evaluators.scores.predictions import Prediction, write_predictions
from deft.objectives.figure_style import INK
from deft.platform.config.spec import ExperimentSpec
from deft.platform.console import RunConsole
from deft.platform.errors import UserError
from deft.platform.records.manifests import (
    ModelResult,
    PrepareManifest,
    RecordManifest,
    manifest_file,
    save_manifest,
)
from deft.platform.tracking.outbox import Outbox
from deft.sweeps.report.document import Table
from deft.sweeps.report.landscapes import LandscapeError, token_landscapes
from deft.sweeps.report.read_sweep import choose, find_sweep, read_sweep
from deft.sweeps.report.report_data import SweepReportData, gather_report_data
from deft.sweeps.report.scores import Measure
from deft.sweeps.report.section_results import (
    brief_table,
    disagreements_table,
    forgetting_table,
    headline_sentences,
    main_table,
    rates_table,
    second_opinions_table,
)
from deft.sweeps.report.write import write_report
from deft.workers.common.files import DamagedFileError
from helpers import (
    make_benchmark_result,
    make_evaluate_manifest,
    make_prepare_manifest,
    make_train_manifest,
)

YAML = """name: trial  # <script>alert("file")</script>
grid:
  objective: [DEFT, original, p]
  seed: [0, 1]
"""
NUM_ITEMS = 60
RATE_AXIS = "training.learning_rate"


@dataclass
class Disk:
    """A run root with one sweep in it."""

    root: Path
    directory: Path
    cells: list[dict[str, Any]] = field(default_factory=list)

    def write(self, *, axes: Sequence[str], select: Mapping[str, str] | None = None) -> None:
        head = {
            "name": "trial",
            "file": YAML,
            "baseline": "original",
            "axes": list(axes),
            "select": select,
        }
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "sweep.json").write_text(json.dumps(head))
        lines = "".join(json.dumps(cell) + "\n" for cell in self.cells)
        (self.directory / "cells.jsonl").write_text(lines)

    def add_cell(self, objective: str, seed: int, rate: float = 1e-3, **settings: Any) -> Path:
        """Plan a cell; returns the directory of its run, which is not there yet."""
        dataset = settings.get("dataset", "figfont")
        name = dataset["name"] if isinstance(dataset, dict) else dataset
        spec = ExperimentSpec.model_validate(
            {
                "dataset": "figfont",
                "model": "tiny",
                "objective": objective,
                "seed": seed,
                "training": {"learning_rate": rate, "batch_size": 16},
                "evaluation": {"benchmarks": [{"name": "figfont", "size": NUM_ITEMS}]},
            }
        ).model_dump(mode="json")
        # Whatever people call their data: names of files need not exist any more.
        spec["dataset"]["name"] = name
        number = len(self.cells)
        run = self.root / f"run-{number:02d}-{objective}"
        self.cells.append(
            {
                "run": run.name,
                "settings": {"objective": objective, "seed": seed, RATE_AXIS: rate, **settings},
                "spec": spec,
            }
        )
        return run

    def fail(self, run: Path, cause: str) -> None:
        file = self.directory / "failures" / f"{run.name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"cause": cause, "attempts": 2, "time": 1}))


def predictions(verdicts: Sequence[bool], source: str = "s") -> list[Prediction]:
    return [
        Prediction(
            id=f"item-{item}",
            item_digest=f"digest-{item}",
            sample=0,
            source=source,
            prompt="p",
            num_bos=0,
            response="r",
            gold="g",
            finish_reason="stop" if right else "length",
            n_tokens=3,
            verdict="correct" if right else "truncated",
            extracted=None,
            scores={},
        )
        for item, right in enumerate(verdicts)
    ]


def finish_cell(
    run: Path,
    scores: Mapping[str, Sequence[bool]],
    base: Mapping[str, Sequence[bool]],
    *,
    nll: float,
    num_steps: int = 20,
    focus: bool = False,
    bits: Sequence[float] = (4.0, 5.0),
) -> None:
    """Leave what a run leaves: events, predictions and manifests.

    Args:
        run: its directory.
        scores: benchmark → whether each item was right.
        base: the same of the base model.
        nll: held-out NLL at the end of training.
        num_steps: of training.
        focus: whether the objective has one.
        bits: of the held-out rows, which spell a byte each.
    """
    for label, comparison in (("eval", scores), ("base", base)):
        for name, verdicts in comparison.items():
            path = run / "predictions" / f"{label}-{name}.parquet"
            write_predictions(predictions(verdicts), path)
        worse = 1.0 if label == "eval" else 2.0
        losses = [
            RowLoss(row, worse * n * float(np.log(2)), 0.0, 1.0, 2, 1, 1, 1)
            for row, n in enumerate(bits)
        ]
        write_losses(losses, run / "predictions" / f"{label}-heldout.parquet")
    _write_events(run, nll, num_steps, focus=focus)
    evaluated = make_evaluate_manifest(
        {
            "eval": _model_result("eval", str(run / "model"), scores),
            "base": _model_result("base", "/models/tiny", base),
        },
        seconds=30.0,
    )
    manifests = (
        make_prepare_manifest(
            items={name: f"/cache/items/{name}-aabbcc.jsonl" for name in scores},
            num_examples=320,
            num_validation_examples=2,
            num_tokens=3200,
            num_target_tokens=640,
            format_hash="f0f0f0f0f0f0",
        ),
        make_train_manifest(num_steps, seconds=90.0),
        evaluated.model_copy(update={"finished_at": 1_790_000_000_000}),
        RecordManifest(mlflow_run_id=f"mlflow-{run.name}"),
    )
    for manifest in manifests:
        save_manifest(manifest_file(run, manifest.stage), manifest)


def _model_result(label: str, directory: str, scores: Mapping[str, Sequence[bool]]) -> ModelResult:
    return ModelResult(
        directory=directory,
        heldout={"bits_per_byte": 4.5},
        benchmarks={
            name: make_benchmark_result(
                {"num_samples": 1, "num_items": len(verdicts)},
                predictions=f"predictions/{label}-{name}.parquet",
            )
            for name, verdicts in scores.items()
        },
    )


def _write_events(run: Path, nll: float, num_steps: int, *, focus: bool) -> None:
    lines = []
    for step in range(num_steps + 1):
        part = step / num_steps
        if step:
            metrics = {
                "train/nll": 6 - (6 - nll) * part,
                "train/mean_gate": 1 - 0.5 * part if focus else 1.0,
                "train/mean_p": 0.5 * part,
            } | ({"train/mean_focus": 0.3 * part} if focus else {})
            lines.append({"time": step, "step": step, "metrics": metrics})
        if step % 10 == 0:
            held_out = 6.5 - (6.5 - nll) * part
            metrics = {"validation/nll": held_out, "validation/bits_per_byte": 2 * held_out}
            lines.append({"time": step, "step": step, "metrics": metrics})
    run.mkdir(parents=True, exist_ok=True)
    (run / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def right(number: int, total: int = NUM_ITEMS) -> list[bool]:
    """Return outcomes of ``total`` items of which the first ``number`` are right."""
    return [item < number for item in range(total)]


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """Create an empty sweep."""
    root = tmp_path / "runs"
    return Disk(root, root / "sweeps" / "trial-0123456789")


HOSTILE = "bad <script>alert(1)</script> & $x_{"


def make_trial(disk: Disk) -> Disk:
    """3 objectives × 2 seeds × 2 datasets at two learning rates, one failed, one not run."""
    base = {"figfont": right(3), "general": right(20, 40)}
    gained = {"original": 24, "DEFT": 42, "p": 25}
    for dataset in ("figfont", {"name": HOSTILE, "size": 8}):
        for objective in ("DEFT", "original", "p"):
            for seed in (0, 1):
                for rate in (1e-3, 1e-2):
                    run = disk.add_cell(objective, seed, rate, dataset=dataset)
                    on_hostile = dataset != "figfont"
                    if on_hostile and objective == "p" and rate == 1e-2:
                        if seed == 0:
                            disk.fail(run, "RuntimeError: <script>alert(2)</script> no memory")
                        continue
                    # DEFT learns better at the higher rate, the others at the lower one.
                    chosen = (rate == 1e-2) == (objective == "DEFT")
                    number = gained[objective] + seed if chosen else 5
                    scores = {"figfont": right(number), "general": right(20 - 2 * seed, 40)}
                    nll = 2.0 + 0.1 * seed if chosen else 3.0
                    finish_cell(run, scores, base, nll=nll, focus=objective == "DEFT")
    disk.write(
        axes=["dataset", "objective", "seed", RATE_AXIS],
        select={"over": RATE_AXIS, "by": "validation/nll"},
    )
    return disk


@pytest.fixture
def trial(disk: Disk) -> Disk:
    return make_trial(disk)


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Disk:
    """Write the report of a trial; the trial must be left as it is."""
    root = tmp_path_factory.mktemp("reported") / "runs"
    disk = make_trial(Disk(root, root / "sweeps" / "trial-0123456789"))
    write_report(disk.directory, disk.root, RunConsole(Console(quiet=True)))
    return disk


@pytest.fixture
def written(reported: Disk) -> Path:
    return reported.directory / "report"


@pytest.fixture
def console() -> RunConsole:
    return RunConsole(Console(quiet=True))


def findings_of(disk: Disk) -> SweepReportData:
    return gather_report_data(read_sweep(disk.directory, disk.root))


def texts(table: Table | None) -> dict[str, list[str]]:
    """Rows by their names, each entry's lines joined."""
    assert table is not None
    return {row[0].text: [" ".join(entry.lines) for entry in row[1:]] for row in table.entries}


AVG = Measure("figfont", "figfont, avg@1")


def test_results_are_a_row_for_each_cell_model_benchmark_and_metric(written: Path) -> None:
    rows = pq.read_table(written / "results.parquet").to_pylist()
    with (written / "results.csv").open() as file:
        assert [row["value"] for row in csv.DictReader(file)] == [str(row["value"]) for row in rows]
    # 23 finished cells, two models, of which each has 1 held-out and 2 × 2 metrics.
    assert len({row["run"] for row in rows}) == 22
    assert len(rows) == 22 * 2 * (1 + 2 * 2)
    assert {row[RATE_AXIS] for row in rows} == {"0.001", "0.01"}
    (row,) = (
        row
        for row in rows
        if (row["objective"], row["seed"], row["dataset"]) == ("DEFT", 1, "figfont")
        and (row[RATE_AXIS], row["which"], row["metric"]) == ("0.01", "base", "bits_per_byte")
    )
    assert (row["benchmark"], row["value"], row["ci_low"]) == ("heldout", 4.5, None)


def test_scores_are_what_the_chosen_cells_say(trial: Disk) -> None:
    findings = findings_of(trial)
    plain, hostile = findings.sweep.settings
    assert plain.title == "figfont · tiny"
    # DEFT's cells at its own best rate: 42 and 43 of 60 right; the baseline's 24 and 25.
    deft = np.array([right(42), right(43)], float)
    nll = np.array([right(24), right(25)], float)
    low, high = statistics.mean_interval(deft)
    table = texts(main_table(findings, plain))
    assert table["DEFT"][0] == "2"
    assert table["DEFT"][1] == f"0.708 [{low:.3f}, {high:.3f}] ▲ +0.300"
    assert table["original"][1].startswith("0.408 [")
    assert "▲" not in table["original"][1]
    # One base model for both seeds counts once: 3 of 60 items right.
    low, high = statistics.mean_interval(np.array(right(3), float))
    assert table["base model"][1] == f"0.050 [{low:.3f}, {high:.3f}]"
    assert table["p"][1].endswith("≈ +0.017")
    # 20 and 18 of 40 general items; 4 and 5 bits for a byte each, the same for all.
    assert table["DEFT"][2].startswith("0.475 [")
    assert table["DEFT"][3].startswith("4.500 [")

    comparison = findings.results[plain].comparisons["DEFT", AVG]
    expected = statistics.paired_difference(nll, deft)
    assert comparison.difference == pytest.approx(18 / 60)
    assert comparison.interval == pytest.approx(expected.interval)
    assert comparison.p_value == expected.p_value
    assert (comparison.num_seeds, comparison.num_items) == (2, 60)
    # 2 objectives × 3 measures × 2 settings are tested together; DEFT's two are the clear ones.
    assert findings.num_comparisons == 12
    assert comparison.adjusted_p == pytest.approx(12 * expected.p_value)
    # Two seeds: all of it is about items.
    assert not comparison.over_seeds
    assert comparison.detectable == pytest.approx(expected.detectable)

    # The hostile data set has the same values: its failed and missing cells were not the chosen.
    assert texts(main_table(findings, hostile))["DEFT"] == table["DEFT"]
    console_rows = texts(brief_table(findings, plain))
    assert console_rows["DEFT"][3:] == ["+0.300", "▲ better"]
    assert console_rows["p"][3:] == ["+0.017", "≈"]


def test_answer_is_said_in_words(trial: Disk) -> None:
    (first, second) = headline_sentences(findings_of(trial)).items
    assert first.lead == "figfont · tiny:"
    assert first.text.startswith(
        "DEFT scores best, 0.708 against 0.408 of original (figfont, avg@1): a difference of +0.300"
    )
    # Two seeds: nothing is said of others.
    assert first.text.startswith("[+0.179, +0.421] over items only, ", first.text.index("["))
    assert "distinguishably better (p < 0.0001 after Holm's correction)." in first.text
    assert first.text.endswith("Not distinguishable either way: p.")
    assert HOSTILE in second.lead


def test_no_difference_is_said_with_what_would_have_been_found(disk: Disk) -> None:
    for objective, number in (("original", 30), ("p", 32)):
        run = disk.add_cell(objective, 0)
        finish_cell(run, {"figfont": right(number)}, {"figfont": right(3)}, nll=2.0)
    disk.write(axes=["objective", "seed"])
    findings = findings_of(disk)
    (setting,) = findings.sweep.settings
    comparison = findings.results[setting].comparisons["p", AVG]
    # One seed, right or wrong: two items that one alone has right are McNemar's 2 · (1/2)².
    assert comparison.p_value == pytest.approx(0.5)
    (answer,) = headline_sentences(findings).items
    assert "p scores best, 0.533 against 0.500 of original" in answer.text
    assert "not distinguishable from original (p = 1.0000 after Holm's correction)" in answer.text
    detectable = statistics.detectable_effect(np.array(right(32), float) - right(30))
    assert f"With 60 items a true difference of {detectable:.3f} would be found" in answer.text


def test_baseline_may_be_the_best(disk: Disk) -> None:
    for objective, number in (("DEFT", 10), ("original", 50), ("p", 49)):
        run = disk.add_cell(objective, 0)
        finish_cell(run, {"figfont": right(number)}, {"figfont": right(3)}, nll=2.0)
    disk.write(axes=["objective", "seed"])
    (answer,) = headline_sentences(findings_of(disk)).items
    assert answer.text.startswith("no objective scores better than original, 0.833")
    assert "The next is p with a difference of −0.017" in answer.text
    assert answer.text.endswith("Worse: DEFT.")


def test_gain_forgetting_and_rates(trial: Disk) -> None:
    findings = findings_of(trial)
    setting = findings.sweep.settings[0]
    forgotten = texts(forgetting_table(findings, setting))
    # 42.5 − 3 of 60 items gained; 20 and 18 of 40 general items instead of 20.
    assert forgotten["DEFT"][0] == f"+{39.5 / 60:.3f}"
    assert forgotten["DEFT"][2] == "−0.025"
    table = rates_table(findings, setting)
    assert table is not None
    rows = {(row[0].text, row[1].text): [e.text for e in row[2:]] for row in table.entries}
    # What is not correct was cut off, in these cells.
    truncated = f"{1 - 42.5 / 60:.3f}"
    assert rows["DEFT", "figfont, avg@1"] == ["0.708", truncated, "0.000", "0.000", "0.000"]


def test_responses_on_which_graders_differ_are_listed(disk: Disk) -> None:
    run = disk.add_cell("original", 0)
    finish_cell(run, {"math500": right(2)}, {"math500": right(1)}, nll=2.0)
    for label, number in (("eval", 2), ("base", 1)):
        rows = [
            replace(row, response=f"So it is {row.id}.", second_verdict=second)
            for row, second in zip(
                predictions(right(number)), ["correct", "wrong", *["wrong"] * 58], strict=True
            )
        ]
        write_predictions(rows, run / "predictions" / f"{label}-math500.parquet")
    disk.write(axes=["objective", "seed"])
    findings = findings_of(disk)
    setting = findings.sweep.settings[0]
    shares, items = (
        make(findings, setting) for make in (second_opinions_table, disagreements_table)
    )
    assert shares is not None
    assert [[entry.text for entry in row] for row in shares.entries] == [
        ["base model", "math500", "60", "0", "0.000"],
        ["original, seed 0", "math500", "60", "1", "0.017"],
    ]
    assert items is not None
    (row,) = items.entries
    assert [entry.text for entry in row[:3]] == ["item-1", "math500", "original, seed 0"]
    assert [entry.text for entry in row[4:]] == ["So it is item-1.", "correct", "wrong"]


def test_rate_is_chosen_by_the_rule(trial: Disk) -> None:
    sweep = read_sweep(trial.directory, trial.root)
    plain, hostile = sweep.settings
    chosen = {(c.setting, c.objective): c.value for c in sweep.candidates if c.chosen}
    assert chosen == {
        (setting, name): "0.01" if name == "DEFT" else "0.001"
        for setting in (plain, hostile)
        for name in ("DEFT", "original", "p")
    }
    scores = {
        (c.objective, c.value): (c.score, c.num_finished, c.num_cells)
        for c in sweep.candidates
        if c.setting == hostile
    }
    assert scores["DEFT", "0.01"] == (pytest.approx(2.05), 2, 2)
    assert scores["p", "0.01"][1:] == (0, 2)
    # An accuracy is best where it is highest; here every cell's is its bits per byte instead.
    cells = [cell for cell in sweep.cells if cell.objective == "DEFT"]
    lowest = choose(cells, "validation/bits_per_byte")
    assert {c.value for c in lowest if c.chosen} == {"0.01"}


def test_value_with_lost_seeds_is_not_chosen(disk: Disk) -> None:
    for rate, nll, seeds in ((1e-3, 2.5, (0, 1)), (1e-2, 1.0, (0,))):
        for seed in (0, 1):
            run = disk.add_cell("DEFT", seed, rate)
            if seed in seeds:
                finish_cell(run, {"figfont": right(9)}, {"figfont": right(3)}, nll=nll)
            else:
                disk.fail(run, "diverged")
    disk.write(axes=["seed", RATE_AXIS], select={"over": RATE_AXIS, "by": "validation/nll"})
    sweep = read_sweep(disk.directory, disk.root)
    assert [c.value for c in sweep.candidates if c.chosen] == ["0.001"]


class Page(HTMLParser):
    """What a page is made of, outside its pictures and inside them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.labels: list[str] = []
        self.text: list[str] = []
        self.tables: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "br", "use", "image", "path", "stop", "rect"):
            self.open.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href"):
                self.links.append(value or "")
            if name == "id":
                self.ids.append(value or "")
            if name == "aria-labelledby":
                self.labels.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if "table" in self.open:
            self.tables.append(data)


def page_of(directory: Path) -> Page:
    page = Page()
    page.feed((directory / "report.html").read_text())
    return page


def cells_of_trial() -> list[tuple[int, str]]:
    """Return number and objective of every cell of `make_trial`."""
    return [(n, ("DEFT", "original", "p")[n // 4 % 3]) for n in range(24)]


def test_page_stands_alone_and_is_well_formed(written: Path) -> None:
    page = page_of(written)
    assert page.open == []
    assert not {"script", "link", "iframe", "img"} & set(page.tags)
    assert page.tags.count("svg") >= 4
    files = {"responses.html", *(f"../../../run-{n:02d}-{o}/" for n, o in cells_of_trial())}
    elsewhere = {
        link for link in page.links if not link.startswith(("#", "data:image/png;base64,"))
    }
    assert elsewhere == files
    html = (written / "report.html").read_text()
    namespaces = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert set(re.findall(r"https?://[^\"\s<]*", html)) <= namespaces
    assert not re.search(r"url\((?!#)", html)
    assert len(page.ids) == len(set(page.ids))
    assert set(page.labels) <= set(page.ids)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert "<title>Sweep trial</title>" in html


def test_pictures_take_the_page_s_ink_in_light_and_dark(written: Path) -> None:
    html = (written / "report.html").read_text()
    for svg in re.findall(r'<svg role="img".*?</svg>', html, re.DOTALL):
        assert "currentColor" in svg
        assert INK not in svg
        assert not re.search(r"#000000|(?<!-)\bblack\b", svg)
        assert '<title id="' in svg
        background = re.search(r'id="[\w-]*patch_1">\s*<path[^>]*style="([^"]*)"', svg)
        assert background is not None
        assert "fill: none" in background[1]
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html


def test_what_people_wrote_stays_text(written: Path) -> None:
    page = page_of(written)
    assert "script" not in page.tags
    words = " ".join(page.text)
    for hostile in (
        HOSTILE,
        '<script>alert("file")</script>',
        "<script>alert(2)</script> no memory",
    ):
        assert hostile in words
    markdown = (written / "report.md").read_text()
    outside = re.sub(r"^(`{3,})\n.*?\n\1$", "", markdown, flags=re.DOTALL | re.MULTILINE)
    assert "<script" not in outside
    assert set(re.findall(r"<\w+", outside)) == {"<br"}
    assert YAML in markdown


def test_markdown_and_page_tell_the_same_numbers(written: Path) -> None:
    number = r"[+−]?\d[\d,]*\.\d+"
    lines = (written / "report.md").read_text().splitlines()
    rows = "\n".join(line for line in lines if line.startswith("|"))
    in_markdown = re.findall(number, rows)
    assert len(in_markdown) > 200
    assert re.findall(number, "\n".join(page_of(written).tables)) == in_markdown
    pictures = re.findall(r"!\[[^\]]+\]\((figures/[\w-]+\.png)\)", "\n".join(lines))
    assert len(pictures) >= 4
    for name in pictures:
        assert (written / name).read_bytes().startswith(b"\x89PNG")


def test_failed_and_missing_cells_are_named(reported: Disk, written: Path) -> None:
    words = " ".join(page_of(written).text)
    assert "22 of 24 cells finished · 1 failed · 1 not run yet · compared with original" in words
    failed, missing = (
        cell["run"]
        for cell in reported.cells
        if not manifest_file(reported.root / cell["run"], "evaluate").exists()
    )
    markdown = (written / "report.md").read_text()
    (row,) = [line for line in markdown.splitlines() if "no memory" in line]
    assert row.startswith(f"| {failed} | p | 0 |")
    assert row.endswith("| 2 |")
    assert f"| {missing} | p | 1 |" in markdown


def test_report_says_how_to_repeat_it(reported: Disk, written: Path) -> None:
    words = " ".join(page_of(written).text)
    for cell in reported.cells:
        assert cell["run"] in words
    assert re.search(r"\b[0-9a-f]{64}\b", words), "no hash of a lock file"
    for needed in ("f0f0f0f0f0f0", "abcabcabcabc", "0123456789ab / ba9876543210", "aabbcc"):
        assert needed in words
    assert f"mlflow-{reported.cells[0]['run']}" in words
    # Two of 90 s with 2 processes each.
    assert re.search(r"\| DEFT \| 2 \| 20 \| 3,200 \| 90.0 s \| 30.0 s \| 0.100 \|",
                     (written / "report.md").read_text())  # fmt: skip


def test_report_of_a_sweep_that_has_just_begun(disk: Disk, console: RunConsole) -> None:
    disk.fail(disk.add_cell("DEFT", 0), "no room")
    disk.add_cell("original", 0)
    disk.write(axes=["objective", "seed"])
    report = write_report(disk.directory, disk.root, console)
    markdown = (report / "report.md").read_text()
    assert "no cell has finished yet" in markdown
    assert "no room" in markdown
    assert "0 of 2 cells finished" in markdown

    # One more cell, and old pictures make room for new ones.
    (report / "figures").mkdir(exist_ok=True)
    (report / "figures" / "learning-9.png").write_bytes(b"")
    finish_cell(disk.root / disk.cells[0]["run"], {"figfont": right(9)}, {}, nll=2.0)
    write_report(disk.directory, disk.root, console)
    markdown = (report / "report.md").read_text()
    assert "only DEFT has finished: 0.150" in markdown
    assert "1 of 2 cells finished" in markdown, "a finished cell's old failure counts no more"
    assert not (report / "figures" / "learning-9.png").exists()


def test_without_benchmarks_held_out_loss_decides(disk: Disk) -> None:
    for objective, bits in (("original", (4.0, 5.0)), ("DEFT", (3.0, 4.0))):
        run = disk.add_cell(objective, 0)
        finish_cell(run, {}, {}, nll=2.0, bits=bits)
    disk.write(axes=["objective", "seed"])
    (answer,) = headline_sentences(findings_of(disk)).items
    assert "DEFT scores best, 3.500 against 4.500 of original" in answer.text
    assert "lower is better" in answer.text


def test_lost_predictions_are_no_result(trial: Disk) -> None:
    run = trial.root / trial.cells[0]["run"]
    (run / "predictions" / "eval-figfont.parquet").unlink()
    (cell, *_) = read_sweep(trial.directory, trial.root).cells
    assert cell.state == "failed"
    assert cell.cause.endswith("eval-figfont.parquet is gone")


def test_sweep_is_found_by_the_beginning_of_its_name(trial: Disk) -> None:
    assert find_sweep("trial", trial.root) == trial.directory
    assert find_sweep(str(trial.directory), trial.root / "elsewhere") == trial.directory
    with pytest.raises(UserError, match=r"no such sweep in .* there are: trial-0123456789"):
        find_sweep("other", trial.root)
    shutil.copytree(trial.directory, trial.directory.with_name("trial-9"))
    with pytest.raises(UserError, match="several sweeps start with this: trial-0123456789, "):
        find_sweep("trial", trial.root)
    (trial.directory / "cells.jsonl").write_text("{")
    with pytest.raises(DamagedFileError, match="damaged"):
        read_sweep(trial.directory, trial.root)


def test_report_command(trial: Disk, deft: Callable[..., CompletedProcess[str]]) -> None:
    done = deft("report", "trial", "--root", str(trial.root))
    assert done.returncode == 0, done.stderr
    assert "▲ better" in done.stdout
    assert "DEFT scores best" in done.stdout
    assert str(trial.directory / "report" / "report.html") in done.stdout
    missing = deft("report", "nothing", "--root", str(trial.root))
    assert missing.returncode == 2
    assert missing.stderr.startswith("error: nothing: no such sweep")


def test_landscape_is_computed_once_from_what_was_prepared(
    disk: Disk, ray_cluster: None, tmp_path: Path
) -> None:
    from deft.workers.data.prepare import prepare
    from deft.workers.dataset_spec import DatasetSpec
    from deft.workers.spec import ModelSpec

    prepared = prepare(
        DatasetSpec(name="figfont", size=60),
        ModelSpec(name="tiny"),
        max_length=256,
        seed=0,
        cache=tmp_path / "cache",
    )
    run = disk.add_cell("DEFT", 0)
    finish_cell(run, {"figfont": right(9)}, {}, nll=2.0)
    manifest = PrepareManifest(prepared=prepared, items={}, overlap={})
    save_manifest(manifest_file(run, "prepare"), manifest)
    disk.write(axes=["objective", "seed"])
    (cell,) = read_sweep(disk.directory, disk.root).cells
    names = ["original", "DEFT", "LabelSmoothing"]
    panels, others = token_landscapes(cell, names, disk.root / "cache")
    assert list(panels) == ["original", "DEFT"]
    assert others == ["LabelSmoothing"]
    # Untrained, the model knows nothing: every p is near 1/V, every gradient of NLL near 1.
    assert float(panels["original"].p.max()) < 0.01
    assert float(panels["original"].gradient_norm.min()) > 0.9

    shutil.rmtree(prepared.rows_dir)
    shutil.rmtree(prepared.validation_dir)
    again, _ = token_landscapes(cell, names, disk.root / "cache")
    assert again["DEFT"].p.tolist() == panels["DEFT"].p.tolist()
    with pytest.raises(LandscapeError, match="is gone"):
        token_landscapes(cell, ["EAFT"], disk.root / "cache")


def test_page_fits_a_phone(written: Path, ui: ModuleType) -> None:
    with ui.browser_page() as page:
        page.set_viewport_size({"width": 390, "height": 844})
        page.goto((written / "report.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        # Figures are columns of panels, whose letters are as large as they were drawn or larger.
        assert page.locator("figure > svg").first.bounding_box()["width"] == 0
        panels = page.locator(".panels > svg")
        assert panels.count() >= page.locator("figure").count() + 4
        for panel in panels.all():
            shown = panel.bounding_box()
            assert 150 < shown["width"] <= 358
            points = panel.evaluate("each => each.viewBox.baseVal.width")
            assert shown["width"] > points
        page.set_viewport_size({"width": 1280, "height": 844})
        assert page.locator("figure > svg").first.bounding_box()["width"] > 400
        assert panels.first.bounding_box() is None


def test_page_says_where_training_has_only_harmed(disk: Disk, console: RunConsole) -> None:
    for objective, number in (("original", 10), ("DEFT", 9)):
        run = disk.add_cell(objective, 0)
        finish_cell(run, {"figfont": right(number)}, {"figfont": right(12)}, nll=2.0)
        link = f"http://127.0.0.1:5000/#/runs/of-{objective}"
        record = RecordManifest(mlflow_run_id=f"of-{objective}", link=link)
        save_manifest(manifest_file(run, "record"), record)
    disk.write(axes=["objective", "seed"])
    Outbox(disk.directory, "trial").bind_run("of-the-sweep")
    (answer,) = headline_sentences(findings_of(disk)).items
    assert "No objective reaches the untouched model, which has 0.200:" in answer.text
    links = page_of(write_report(disk.directory, disk.root, console)).links
    for run_id in ("of-the-sweep", "of-original", "of-DEFT"):
        assert f"http://127.0.0.1:5000/#/runs/{run_id}" in links


def test_page_says_that_two_seeds_are_not_enough(written: Path) -> None:
    text = " ".join(" ".join(page_of(written).text).split())
    assert "some comparisons have 2 seeds." in text
    assert "cannot be told from one between objectives" in text
    assert "items only" in text
    assert "seeds and items" not in " ".join(page_of(written).tables)
