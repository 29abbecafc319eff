"""All results of a sweep as one long table, for spreadsheets and data frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from deft.platform.records.manifests import EvaluateManifest
from deft.platform.records.results import columns_of, metric_rows, save_csv
from deft.sweeps.report.read_sweep import CellResult, Sweep
from deft.workers.common.files import atomic_file

ResultRow = dict[str, Any]
"""One cell, model, benchmark and metric; the columns are those of `result_rows`."""


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
    columns = columns_of(rows)
    table = pa.table({name: [row.get(name) for row in rows] for name in columns})
    with atomic_file(folder / "results.parquet") as file:
        pq.write_table(table, file)
