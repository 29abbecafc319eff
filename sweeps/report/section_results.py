"""Section of results: the answer in sentences, and the tables behind it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from deft.evaluators.scores.second_opinions import SecondOpinions, read_second_opinions
from deft.evaluators.scores.statistics import Interval
from deft.evaluators.spec import GENERAL_BENCHMARK
from deft.platform.commands.compare import RATES
from deft.platform.records.manifests import EvaluateManifest
from deft.sweeps.report import formatting
from deft.sweeps.report.comparisons import PairedComparison, SettingResults
from deft.sweeps.report.document import BulletList, Table, TableEntry, Text
from deft.sweeps.report.read_sweep import Setting
from deft.sweeps.report.report_data import SweepReportData
from deft.sweeps.report.scores import Column, Measure, Scores
from deft.workers.common.text import plural

MAX_DISAGREEMENTS = 100
"""Responses with different verdicts that a table lists."""
BASE = "base model"
CONCLUSIONS = {"better": "▲ better", "worse": "▼ worse", "not distinguishable": "≈"}
COMPARISON_COLUMNS = (
    "objective",
    "measure",
    "difference",
    "95 %",
    "over",
    "p",
    "p (Holm)",
    "verdict",
    "found from",
    "seeds",
    "items",
)


def headline_sentences(report: SweepReportData) -> BulletList:
    """Write one or two sentences for each setting: the best objective, and its significance."""
    answers = []
    for results in report.results.values():
        answer = _answer(report, results)
        answers.append(replace(answer, text=answer.text + _below_base(results)))
    return BulletList(answers)


def _below_base(results: SettingResults) -> str:
    """Say it where no trained model is as good as the one before training."""
    measure = results.primary
    base = results.base.get(measure) if measure is not None else None
    if measure is None or base is None:
        return ""
    means = [results.objectives[name][measure].mean for name in results.ranking(measure)]
    if not all(
        mean < base.mean if measure.higher_is_better else mean > base.mean for mean in means
    ):
        return ""
    return (
        f" No objective reaches the untouched model, which has {formatting.number(base.mean)}: "
        "training has made the model worse at this."
    )


def _answer(report: SweepReportData, results: SettingResults) -> Text:
    baseline, measure = report.baseline, results.primary
    title = results.setting.title
    if measure is None:
        return Text("no cell has finished yet.", lead=f"{title}:")
    ranking = results.ranking(measure)
    best = ranking[0]
    measured_as = f"({measure.title}{'' if measure.higher_is_better else ', lower is better'})"
    score = formatting.number(results.objectives[best][measure].mean)
    if len(ranking) == 1:
        return Text(f"only {best} has finished: {score} {measured_as}.", lead=f"{title}:")
    if baseline not in ranking:
        text = f"{best} scores best, {score} {measured_as}; {baseline} has not finished"
        return Text(f"{text}, so nothing is compared.", lead=f"{title}:")
    if best == baseline:
        return Text(_baseline_wins(results, measure, score, measured_as, ranking), lead=f"{title}:")
    comparison = results.comparisons.get((best, measure))
    against = formatting.number(results.objectives[baseline][measure].mean)
    text = f"{best} scores best, {score} against {against} of {baseline} {measured_as}"
    if comparison is None:
        return Text(f"{text}; they share no item, so they are not compared.", lead=f"{title}:")
    text += f": a difference of {_difference(comparison)}"
    if comparison.conclusion != "better":
        text += f", not distinguishable from {baseline} {_p(comparison)}. {_power(comparison)}"
        return Text(f"{text}{_others(results, measure, best)}", lead=f"{title}:")
    text += f", distinguishably better {_p(comparison)}."
    return Text(f"{text}{_others(results, measure, best)}", lead=f"{title}:")


def _baseline_wins(
    results: SettingResults, measure: Measure, score: str, measured_as: str, ranking: list[str]
) -> str:
    text = f"no objective scores better than {ranking[0]}, {score} {measured_as}."
    comparison = results.comparisons.get((ranking[1], measure))
    if comparison is not None:
        text += f" The next is {ranking[1]} with a difference of {_difference(comparison)}"
        if comparison.conclusion == "worse":
            text += f", distinguishably worse {_p(comparison)}."
        else:
            text += f", not distinguishable {_p(comparison)}. {_power(comparison)}"
    return text + _others(results, measure, ranking[1])


def _difference(comparison: PairedComparison) -> str:
    shown = formatting.signed_interval(comparison.interval)
    over = "" if comparison.over_seeds else " over items only"
    return f"{formatting.signed(comparison.difference)} {shown}{over}"


def _p(comparison: PairedComparison) -> str:
    shown = formatting.p_value(comparison.adjusted_p)
    return f"(p {shown if shown.startswith('<') else f'= {shown}'} after Holm's correction)"


def _power(comparison: PairedComparison) -> str:
    if not comparison.detectable > formatting.ROUNDING:
        return (
            "They score alike on every item, so that it cannot be said how large a difference "
            "would be found."
        )
    size = plural(comparison.num_items, "item")
    if comparison.num_seeds > 1:
        size += f" and {comparison.num_seeds} seeds"
    return (
        f"With {size} a true difference of {formatting.effect(comparison.detectable)} would be "
        "found with a chance of 80 %."
    )


def _others(results: SettingResults, measure: Measure, best: str) -> str:
    """List which other objectives differ significantly from the baseline, and which do not."""
    by_conclusion: dict[str, list[str]] = {"better": [], "worse": [], "not distinguishable": []}
    for name in results.ranking(measure):
        comparison = results.comparisons.get((name, measure))
        if name != best and comparison is not None:
            by_conclusion[comparison.conclusion].append(name)
    sentences = [
        f"{opening}: {', '.join(by_conclusion[conclusion])}."
        for conclusion, opening in (
            ("better", "Better as well"),
            ("not distinguishable", "Not distinguishable either way"),
            ("worse", "Worse"),
        )
        if by_conclusion[conclusion]
    ]
    return "".join(f" {text}" for text in sentences)


def main_table(report: SweepReportData, setting: Setting) -> Table:
    """Tabulate base model and objectives by measure: value, interval, difference, conclusion."""
    sweep, results = report.sweep, report.results[setting]
    rows: list[list[str | TableEntry]] = [
        [
            BASE,
            "",
            *(_value(results.base.get(m), results.base_intervals.get(m)) for m in results.measures),
        ]
    ]
    best = {m: _only_best(results, m) for m in results.measures}
    for name in sweep.objectives:
        column = results.objectives.get(name, {})
        entries = [
            _value(
                column.get(measure),
                results.intervals.get((name, measure)),
                results.comparisons.get((name, measure)),
                strong=best[measure] == name,
            )
            for measure in results.measures
        ]
        rows.append([name, seeds_of(report, setting, name), *entries])
    titles = [measure.title for measure in results.measures]
    return Table(report.heading("Scores", setting), ["objective", "seeds", *titles], rows)


def _only_best(results: SettingResults, measure: Measure) -> str | None:
    first, *others = results.ranking(measure)
    score = results.objectives[first][measure].mean
    tied = any(results.objectives[name][measure].mean == score for name in others)
    return None if tied else first


def brief_table(report: SweepReportData, setting: Setting) -> Table | None:
    """Tabulate the primary measure alone, as wide as a terminal."""
    results = report.results[setting]
    measure = results.primary
    if measure is None:
        return None
    rows = [[BASE, "", *_score(results.base.get(measure), results.base_intervals.get(measure))]]
    for name, column in results.objectives.items():
        seeds = seeds_of(report, setting, name)
        score = _score(column.get(measure), results.intervals.get((name, measure)))
        row = [name, seeds, *score]
        comparison = results.comparisons.get((name, measure))
        if comparison is not None:
            row += [formatting.signed(comparison.difference), CONCLUSIONS[comparison.conclusion]]
        rows.append(row)
    columns = ["objective", "seeds", "score", "95 %", f"− {report.baseline}", ""]
    padded = [[*row, *[""] * (len(columns) - len(row))] for row in rows]
    return Table(f"{setting.title}: {measure.title}", columns, padded)


def _score(scores: Scores | None, interval: Interval | None) -> list[str]:
    if scores is None or interval is None:
        return [formatting.NONE, formatting.NONE]
    return [formatting.number(scores.mean), formatting.interval(interval)]


def seeds_of(report: SweepReportData, setting: Setting, objective: str) -> str:
    """Return ``3``, or ``2 of 3`` where seeds are missing."""
    sweep = report.sweep
    planned = {
        cell.seed for cell in sweep.cells if (cell.setting, cell.objective) == (setting, objective)
    }
    finished = len(sweep.chosen(setting, objective))
    return str(finished) if finished == len(planned) else f"{finished} of {len(planned)}"


def _value(
    scores: Scores | None,
    interval: Interval | None,
    comparison: PairedComparison | None = None,
    *,
    strong: bool = False,
) -> TableEntry:
    if scores is None or interval is None:
        return TableEntry(formatting.NONE)
    return TableEntry(
        formatting.number(scores.mean),
        details=(formatting.interval(interval),),
        mark=comparison.conclusion if comparison is not None else None,
        change=formatting.signed(comparison.difference) if comparison is not None else "",
        strong=strong,
    )


def seeds_table(report: SweepReportData, setting: Setting) -> Table | None:
    """Tabulate the primary measure seed by seed, as the bars show it."""
    results = report.results[setting]
    measure = results.primary
    if measure is None:
        return None
    scores_of = {
        name: column[measure] for name, column in results.objectives.items() if measure in column
    }
    seeds = sorted({seed for scores in scores_of.values() for seed in scores.seeds})
    rows = []
    for name, scores in scores_of.items():
        values = dict(zip(scores.seeds, map(float, scores.by_run), strict=False))
        deviation = float(scores.by_run.std(ddof=1)) if len(scores.by_run) > 1 else math.nan
        rows.append(
            [
                name,
                *(formatting.number(values.get(seed, math.nan)) for seed in seeds),
                formatting.number(scores.mean),
                formatting.number(deviation),
            ]
        )
    columns = ["objective", *(f"seed {seed}" for seed in seeds), "mean", "standard deviation"]
    return Table(report.heading(f"{measure.title}, seed by seed", setting), columns, rows)


def comparison_table(report: SweepReportData, setting: Setting) -> Table | None:
    """Tabulate every comparison with the baseline, with all its numbers."""
    results = report.results[setting]
    if not results.comparisons:
        return None
    rows: list[list[str | TableEntry]] = [
        [
            name,
            measure.title,
            formatting.signed(comparison.difference),
            formatting.signed_interval(comparison.interval),
            "seeds and items" if comparison.over_seeds else "items only",
            formatting.p_value(comparison.p_value),
            formatting.p_value(comparison.adjusted_p),
            TableEntry("", mark=comparison.conclusion),
            formatting.effect(comparison.detectable),
            str(comparison.num_seeds),
            f"{comparison.num_items:,}",
        ]
        for name in results.objectives
        for measure in results.measures
        if (comparison := results.comparisons.get((name, measure))) is not None
    ]
    caption = report.heading(f"Differences to {report.baseline}", setting)
    words = frozenset({"measure", "over", "verdict"})
    return Table(caption, COMPARISON_COLUMNS, rows, words)


def rates_table(report: SweepReportData, setting: Setting) -> Table | None:
    """Tabulate how often responses were truncated or had no answer, beside their scores."""
    results = report.results[setting]
    columns: dict[str, Column] = {BASE: results.base, **results.objectives}
    rows = [
        [
            name,
            measure.title,
            formatting.number(scores.mean),
            *(formatting.number(scores.rates[rate]) for rate in RATES),
        ]
        for name, column in columns.items()
        for measure in results.measures
        if (scores := column.get(measure)) is not None and scores.rates
    ]
    caption = report.heading("Shares of responses", setting)
    names = ["objective", "benchmark", "score", *RATES]
    return Table(caption, names, rows, frozenset({"benchmark"})) if rows else None


def second_opinions(
    report: SweepReportData, setting: Setting
) -> Iterator[tuple[str, str, SecondOpinions]]:
    """Yield model, benchmark and what a second grader said, where there was one."""
    chosen = {name: report.sweep.chosen(setting, name) for name in report.sweep.objectives}
    cells = [(name, cell, "eval") for name in chosen for cell in chosen[name]]
    # All cells of a setting start from the same model.
    for name, cell, label in [*((BASE, cell, "base") for _, cell, _ in cells[:1]), *cells]:
        model = cell.require_manifest(EvaluateManifest).models.get(label)
        for benchmark, result in model.benchmarks.items() if model is not None else ():
            opinions = read_second_opinions(cell.directory / result.predictions)
            if opinions.num_compared:
                model_name = name if name == BASE else f"{name}, seed {cell.seed}"
                yield model_name, benchmark, opinions


def second_opinions_table(report: SweepReportData, setting: Setting) -> Table | None:
    """Tabulate the share of responses on which a second grader disagrees."""
    rows = [
        [
            name,
            benchmark,
            f"{opinions.num_compared:,}",
            str(len(opinions.disagreements)),
            formatting.number(len(opinions.disagreements) / opinions.num_compared),
        ]
        for name, benchmark, opinions in second_opinions(report, setting)
    ]
    caption = report.heading("Second opinions", setting)
    columns = ["model", "benchmark", "responses", "verdicts that differ", "share"]
    return Table(caption, columns, rows, frozenset({"benchmark"})) if rows else None


def disagreements_table(report: SweepReportData, setting: Setting) -> Table | None:
    """List the responses on which a second grader disagrees, `MAX_DISAGREEMENTS` at most."""
    rows = [
        [item.id, benchmark, name, item.gold, item.tail, item.verdict, item.second_verdict]
        for name, benchmark, opinions in second_opinions(report, setting)
        for item in opinions.disagreements
    ]
    caption = report.heading("Responses whose verdicts differ", setting)
    if len(rows) > MAX_DISAGREEMENTS:
        caption += f" (the first {MAX_DISAGREEMENTS} of {len(rows):,})"
    columns = ["item", "benchmark", "model", "gold", "end of the response", "ours", "theirs"]
    shown = rows[:MAX_DISAGREEMENTS]
    return Table(caption, columns, shown, frozenset(columns[1:])) if rows else None


def forgotten(results: SettingResults) -> Measure | None:
    """Return the measure of `general`, if it is not the primary one."""
    candidates = (m for m in results.measures if m.benchmark == GENERAL_BENCHMARK)
    return next((measure for measure in candidates if measure != results.primary), None)


def forgetting_table(report: SweepReportData, setting: Setting) -> Table | None:
    """Tabulate the gain on the domain and the change of `general`, both over the base model."""
    results = report.results[setting]
    primary, general = results.primary, forgotten(results)
    if primary is None or general is None:
        return None
    rows = [
        [name, *_gain(gained), *_gain(changed)]
        for name in results.objectives
        if (gained := results.gains.get((name, primary))) is not None
        and (changed := results.gains.get((name, general))) is not None
    ]
    columns = ["objective", f"gain: {primary.title}", "95 %", f"change: {general.title}", "95 % "]
    caption = report.heading("Gain over the base model, and what it cost", setting)
    return Table(caption, columns, rows) if rows else None


def _gain(comparison: PairedComparison) -> tuple[str, str]:
    interval = formatting.signed_interval(comparison.interval)
    return formatting.signed(comparison.difference), interval
