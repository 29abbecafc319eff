"""`deft report`: the results of a sweep so far, as one page of HTML and as Markdown."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from deft.evaluators.scores.comparison import LEVEL
from deft.evaluators.scores.statistics import MIN_RUNS
from deft.evaluators.spec import HELDOUT
from deft.platform.console import RunConsole
from deft.platform.errors import UserError
from deft.platform.records.manifests import EvaluateManifest, RecordManifest
from deft.platform.tracking.outbox import read_delivered
from deft.platform.viewer.page import write_view
from deft.sweeps.report import (
    section_figures,
    section_provenance,
    section_results,
)
from deft.sweeps.report.document import (
    Block,
    BulletList,
    Document,
    Picture,
    Section,
    Table,
    TableEntry,
    Text,
)
from deft.sweeps.report.read_sweep import Setting, Sweep, read_sweep
from deft.sweeps.report.report_data import SweepReportData, gather_report_data
from deft.sweeps.results_table import result_rows, write_tables
from deft.workers.common.files import atomic_file, write_atomic
from deft.workers.common.text import plural

REPORT = "report"
"""Folder of a sweep's report, in the directory of the sweep."""

RESPONSES = "responses.html"
"""Page of single responses, beside the report."""

FEW_ITEMS = 30
"""Items below which a comparison is said to be small."""


def write_report(sweep_dir: Path, root: Path, console: RunConsole) -> Path:
    """Write `report.html`, `report.md`, figures, tables and responses; print the main tables.

    Unfinished sweeps are reported too: what failed or is missing is named.

    Args:
        sweep_dir: directory of the sweep.
        root: run root.
        console: where tables and paths are shown.

    Returns:
        The directory of the report.

    Raises:
        UserError: it is not a sweep, or damaged.
    """
    sweep = read_sweep(sweep_dir, root)
    console.stage("report", f"{sweep.count('finished')} of {len(sweep.cells)} cells have finished")
    report = gather_report_data(sweep)
    document = compose(report, root.resolve() / "cache")
    out = sweep_dir / REPORT
    save_pictures(document.pictures, out / "figures")
    write_atomic(out / "report.html", document.to_html())
    write_atomic(out / "report.md", document.to_markdown())
    write_tables(result_rows(sweep), out)
    write_view(_shown_runs(sweep), f"Responses of {sweep.name}", out / RESPONSES)
    _show(report, console)
    console.print(f"report: {out / 'report.html'}, {out / 'report.md'}")
    console.print(f"responses: {out / RESPONSES}")
    console.print(f"numbers: {out / 'results.csv'}, {out / 'results.parquet'}")
    return out


def _shown_runs(sweep: Sweep) -> list[Path]:
    """Select one seed of each objective in each setting: pages of all cells grow too large."""
    chosen = [
        sweep.chosen(setting, name) for setting in sweep.settings for name in sweep.objectives
    ]
    return [cells[0].directory for cells in chosen if cells]


def write_figures(sweep_dir: Path, root: Path, out: Path, console: RunConsole) -> None:
    """Write the figures of a sweep's report, and nothing else.

    Args:
        sweep_dir: directory of the sweep.
        root: run root.
        out: directory for them.
        console: where paths are shown.

    Raises:
        UserError: it is not a sweep, or damaged; or nothing in it has finished.
    """
    report = gather_report_data(read_sweep(sweep_dir, root))
    pictures = compose(report, root.resolve() / "cache").pictures
    if not pictures:
        raise UserError(f"{sweep_dir}: no cell has finished; run the sweep first")
    save_pictures(pictures, out)
    for picture in pictures:
        console.print(f"{out / picture.name}.png{' .pdf .csv' if picture.csv else ''}")


def save_pictures(pictures: Sequence[Picture], folder: Path) -> None:
    """Write pictures as PNG, and as PDF and CSV where there are those; remove older figures."""
    current = set()
    for picture in pictures:
        contents = {".png": picture.png, ".pdf": picture.pdf, ".csv": picture.csv.encode()}
        for ending, content in contents.items():
            if content:
                current.add(f"{picture.name}{ending}")
                with atomic_file(folder / f"{picture.name}{ending}") as file:
                    file.write(content)
    for older in [*folder.glob("*.png"), *folder.glob("*.pdf"), *folder.glob("*.csv")]:
        if older.name not in current:
            older.unlink()


def _show(report: SweepReportData, console: RunConsole) -> None:
    """Print the answer and the table behind it."""
    for table in _tables(report, section_results.brief_table):
        rows = [[entry.text for entry in row] for row in table.entries]
        console.table(table.caption, table.columns, rows)
    for item in [*section_results.headline_sentences(report).items, *_few_seeds(report)]:
        console.print(f"{item.lead} {item.text}")


def compose(report: SweepReportData, cache: Path) -> Document:
    """Compose the report's document."""
    sweep = report.sweep
    sections = [
        Section("Answer", _answer(report)),
        Section("Scores by seed", _by_seed(report)),
        Section("Learning curves", _each(report, section_figures.curves)),
        Section("Gate dynamics", _each(report, section_figures.gate_dynamics)),
        Section("Across priors", section_figures.regimes(report)),
        Section("Token landscape", section_figures.landscape_figures(report, cache)),
        Section("Gain and forgetting", _forgetting(report)),
        Section("What became of responses", _tables(report, section_results.rates_table)),
        Section("Where graders differ", _graders(report)),
        Section("Cost", section_provenance.cost(report)),
        Section("Choice among values", section_provenance.choice(report) if sweep.over else []),
        Section("Failed and missing cells", section_provenance.unfinished(report)),
        Section("Every comparison", _tables(report, section_results.comparison_table)),
        Section("How this was measured", [_methods(report)]),
        Section("To reproduce", section_provenance.reproduction(report)),
    ]
    return Document(
        title=f"Sweep {sweep.name}",
        subtitle=_subtitle(sweep),
        sections=[section for section in sections if section.blocks],
        links=[TableEntry("Single responses", link=RESPONSES), *_mlflow_link(sweep)],
    )


def _mlflow_link(sweep: Sweep) -> list[TableEntry]:
    """Return the address of the sweep's MLflow run, on the pages that its cells are on."""
    records = (cell.manifest(RecordManifest) for cell in sweep.cells)
    address = next((record.link for record in records if record and record.link), "")
    delivered = read_delivered(sweep.directory)
    if not address or delivered is None or delivered.run_id is None:
        return []
    return [TableEntry("MLflow", link=f"{address.partition('/#/')[0]}/#/runs/{delivered.run_id}")]


def _subtitle(sweep: Sweep) -> str:
    parts = [f"{sweep.count('finished')} of {plural(len(sweep.cells), 'cell')} finished"]
    parts += [
        f"{count} {state}" for state in ("failed", "not run yet") if (count := sweep.count(state))
    ]
    parts.append(f"compared with {sweep.baseline}")
    manifests = [cell.manifest(EvaluateManifest) for cell in sweep.cells]
    if ends := [manifest.finished_at for manifest in manifests if manifest is not None]:
        last = time.gmtime(max(ends) / 1000)
        parts.append(time.strftime("last result %Y-%m-%d %H:%M UTC", last))
    return " · ".join(parts)


def _answer(report: SweepReportData) -> list[Block]:
    tables: list[Block] = [
        section_results.main_table(report, setting)
        for setting, results in report.results.items()
        if results.primary is not None
    ]
    legend = Text(
        f"In brackets the 95 % interval, over seeds and items from {MIN_RUNS} seeds on and over "
        "items only with fewer; below it the difference to "
        f"{report.baseline}, and whether it is told from noise: ▲ better, ▼ worse, ≈ not "
        f"distinguishable, corrected for all "
        f"{plural(report.num_comparisons, 'comparison')} of this report. The best "
        "score of a column is set in bold, be it by chance or not."
    )
    legends = [*_few_seeds(report), legend] if tables else []
    return [section_results.headline_sentences(report), *tables, *legends]


def _few_seeds(report: SweepReportData) -> list[Text]:
    """Say that seeds and objectives cannot be told apart, where there are too few seeds."""
    comparisons = [c for results in report.results.values() for c in results.comparisons.values()]
    fewest = min((comparison.num_seeds for comparison in comparisons), default=MIN_RUNS)
    if fewest >= MIN_RUNS:
        return []
    return [
        Text(
            f"some comparisons have {plural(fewest, 'seed')}. With fewer than "
            f"{MIN_RUNS}, a difference between seeds cannot be told from one between objectives: "
            "intervals and p are over items only, and are about these trained models.",
            lead="Few seeds:",
        )
    ]


def _by_seed(report: SweepReportData) -> list[Block]:
    return [*section_figures.bars(report), *_tables(report, section_results.seeds_table)]


def _forgetting(report: SweepReportData) -> list[Block]:
    return [
        *section_figures.forgetting(report),
        *_tables(report, section_results.forgetting_table),
    ]


def _graders(report: SweepReportData) -> list[Block]:
    return [
        *_tables(report, section_results.second_opinions_table),
        *_tables(report, section_results.disagreements_table),
    ]


def _each(
    report: SweepReportData, draw: Callable[[SweepReportData, Setting, int], list[Block]]
) -> list[Block]:
    return [
        block
        for number, setting in enumerate(report.results, 1)
        for block in draw(report, setting, number)
    ]


def _tables(
    report: SweepReportData, make: Callable[[SweepReportData, Setting], Table | None]
) -> list[Table]:
    tables = [make(report, setting) for setting in report.results]
    return [table for table in tables if table is not None]


def _methods(report: SweepReportData) -> BulletList:
    count = report.num_comparisons
    items = [
        Text(
            "avg@n is the share of correct responses, mean over n responses an item and over "
            "items; other metrics are means likewise. A response that was cut off, left empty or "
            "never asked for counts as not correct.",
            lead="Scores.",
        ),
        Text(
            f"From {plural(MIN_RUNS, 'seed')} on, the variance of a mean is that of the "
            "crossed random-effects model of seeds and items; with fewer it is that over items "
            "only. Shares have Wilson's interval, other scores that of the t distribution. A mean "
            "over benchmarks gives each the same weight.",
            lead="Intervals.",
        ),
        Text(
            f"Objectives are compared with {report.baseline} on the same items and, where both "
            "have them, with the same seeds. p is that of the t test on the paired differences "
            "with the same variance, or of McNemar's exact test for a single seed with one right "
            "or wrong response an item. p (Holm) is corrected for all "
            f"{plural(count, 'comparison')}; below {LEVEL} a difference is called "
            "better or worse.",
            lead="Differences.",
        ),
        Text(
            "The true difference that a single comparison of this size finds with a chance of 80 % "
            "at the 5 % level, from the same variance. Where nothing is distinguishable, smaller "
            "differences than this are neither shown nor ruled out.",
            lead="Found from.",
        ),
    ]
    smallest = min(
        (c.num_items for r in report.results.values() for c in r.comparisons.values()), default=0
    )
    if 0 < smallest < FEW_ITEMS:
        items.append(
            Text(
                f"The smallest comparison has {plural(smallest, 'item')}, which finds "
                "large differences only: see `found from`.",
                lead="Few items.",
            )
        )
    if any(m.benchmark == HELDOUT for r in report.results.values() for m in r.measures):
        items.append(
            Text(
                "Bits per byte is comparable across tokenizers; lower is better. Where each seed "
                "holds out other examples, they are pooled; from "
                f"{MIN_RUNS} seeds on, interval and p are over the means of the seeds.",
                lead="Held out.",
            )
        )
    return BulletList(items)
