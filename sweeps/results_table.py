"""All results of a sweep as one long table, for spreadsheets and data frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from deft.platform.records.manifests import EvaluateManifest
from deft.platform.records.results import Row, metric_rows, save_csv, to_table
from deft.sweeps.directory import read_cause
from deft.sweeps.report.read_sweep import CellResult, CellState, Sweep
from deft.workers.common.files import atomic_file

ResultRow = dict[str, Any]
"""One cell, model, benchmark and metric; the columns are those of `result_rows`."""


class SweepResults(Row):
    """What a sweep has found so far."""

    sweep: str
    """Name of its directory."""
    directory: Path
    """Where the sweep's own files lie; each cell is a run beside the others."""
    report: Path
    """Folder of the report: `report.html`, `report.md`, `results.csv`, figures, responses."""
    cells: dict[str, CellState]
    """State of each cell, by the name of its run."""
    failures: dict[str, str]
    """Why cells failed, by the name of their run."""
    results: list[ResultRow]
    """A row for each finished cell, model, benchmark and metric, see `result_rows`."""

    def table(self) -> pa.Table:
        """Return the results as a table; `to_pandas` makes a data frame of it."""
        return to_table(self.results)


def sweep_results(sweep: Sweep, report: Path) -> SweepResults:
    """Gather the results of a sweep whose report lies in ``report``."""
    return SweepResults(
        sweep=sweep.directory.name,
        directory=sweep.directory,
        report=report,
        cells={cell.run: cell.state for cell in sweep.cells},
        failures={
            cell.run: cause
            for cell in sweep.cells
            if (cause := read_cause(sweep.directory, cell.run) or cell.cause)
        },
        results=result_rows(sweep),
    )


def result_rows(sweep: Sweep) -> list[ResultRow]:
    """List what the finished cells scored: a row for each cell, model, benchmark and metric.

    Columns are ``run``, ``dataset``, ``model``, ``objective``, ``seed``, the sweep's other axes by
    their dotted names, and those of `deft.platform.records.results.MetricRow`.
    """
    return [
        {**_about(sweep, cell), **row.model_dump()}
        for cell in sweep.cells
        if cell.state == "finished"
        for row in metric_rows(cell.require_manifest(EvaluateManifest).models)
    ]


def _about(sweep: Sweep, cell: CellResult) -> ResultRow:
    chosen_on = {sweep.over: cell.choice} if sweep.over else {}
    return {
        "run": cell.run,
        "dataset": cell.setting.dataset,
        "model": cell.setting.model,
        "objective": cell.objective,
        "seed": cell.seed,
        **dict(cell.setting.others),
        **chosen_on,
    }


def write_tables(rows: list[ResultRow], folder: Path) -> None:
    """Write `results.csv` and `results.parquet`, each whole or not at all."""
    save_csv(rows, folder / "results.csv")
    with atomic_file(folder / "results.parquet") as file:
        pq.write_table(to_table(rows), file)
