"""The answer in words, and the tables behind it."""

from __future__ import annotations

import math

from deft.evaluators.scores.statistics import Interval
from deft.evaluators.spec import GENERAL
from deft.platform.commands.compare import RATES
from deft.sweeps.report import formatting
from deft.sweeps.report.comparisons import Contrast, Results
from deft.sweeps.report.document import Entry, Points, Table, Text
from deft.sweeps.report.findings import Findings
from deft.sweeps.report.read_sweep import Setting
from deft.sweeps.report.scores import Column, Measure, Scores

BASE = "base model"
VERDICTS = {"better": "▲ better", "worse": "▼ worse", "not distinguishable": "≈"}
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


def answers(findings: Findings) -> Points:
    """One sentence or two for each setting: which objective is best, and is it more than chance."""
    return Points([_answer(findings, results) for results in findings.results.values()])


def _answer(findings: Findings, results: Results) -> Text:
    baseline, measure = findings.baseline, results.primary
    title = results.setting.title
    if measure is None:
        return Text("no cell has finished yet.", lead=f"{title}:")
    ranking = results.ranking(measure)
    best = ranking[0]
    said = f"({measure.title}{'' if measure.higher_is_better else ', lower is better'})"
    score = formatting.number(results.objectives[best][measure].mean)
    if len(ranking) == 1:
        return Text(f"only {best} has finished: {score} {said}.", lead=f"{title}:")
    if baseline not in ranking:
        text = f"{best} scores best, {score} {said}; {baseline} has not finished, so nothing is"
        return Text(f"{text} compared.", lead=f"{title}:")
    if best == baseline:
        return Text(_baseline_wins(results, measure, score, said, ranking), lead=f"{title}:")
    contrast = results.contrasts.get((best, measure))
    against = formatting.number(results.objectives[baseline][measure].mean)
    text = f"{best} scores best, {score} against {against} of {baseline} {said}"
    if contrast is None:
        return Text(f"{text}; they share no item, so they are not compared.", lead=f"{title}:")
    text += f": a difference of {_difference(contrast)}"
    if contrast.verdict != "better":
        text += f", not distinguishable from {baseline} {_p(contrast)}. {_power(contrast)}"
        return Text(f"{text}{_others(results, measure, best)}", lead=f"{title}:")
    text += f", distinguishably better {_p(contrast)}."
    return Text(f"{text}{_others(results, measure, best)}", lead=f"{title}:")


def _baseline_wins(
    results: Results, measure: Measure, score: str, said: str, ranking: list[str]
) -> str:
    text = f"no objective scores better than {ranking[0]}, {score} {said}."
    contrast = results.contrasts.get((ranking[1], measure))
    if contrast is not None:
        text += f" The next is {ranking[1]} with a difference of {_difference(contrast)}"
        if contrast.verdict == "worse":
            text += f", distinguishably worse {_p(contrast)}."
        else:
            text += f", not distinguishable {_p(contrast)}. {_power(contrast)}"
    return text + _others(results, measure, ranking[1])


def _difference(contrast: Contrast) -> str:
    shown = formatting.signed_interval(contrast.interval)
    over = "" if contrast.over_seeds else " over items only"
    return f"{formatting.signed(contrast.difference)} {shown}{over}"


def _p(contrast: Contrast) -> str:
    shown = formatting.p_value(contrast.adjusted_p)
    return f"(p {shown if shown.startswith('<') else f'= {shown}'} after Holm's correction)"


def _power(contrast: Contrast) -> str:
    if not contrast.detectable > formatting.ROUNDING:
        return "They score alike on every item, which says nothing of what would be found."
    size = formatting.plural(contrast.num_items, "item")
    if contrast.num_seeds > 1:
        size += f" and {contrast.num_seeds} seeds"
    return (
        f"With {size} a true difference of {formatting.effect(contrast.detectable)} would be found "
        "with a chance of 80 %."
    )


def _others(results: Results, measure: Measure, best: str) -> str:
    """Who else can be told from the baseline, and who cannot."""
    verdicts: dict[str, list[str]] = {"better": [], "worse": [], "not distinguishable": []}
    for name in results.ranking(measure):
        contrast = results.contrasts.get((name, measure))
        if name != best and contrast is not None:
            verdicts[contrast.verdict].append(name)
    said = [
        f"{opening}: {', '.join(verdicts[verdict])}."
        for verdict, opening in (
            ("better", "Better as well"),
            ("not distinguishable", "Not distinguishable either way"),
            ("worse", "Worse"),
        )
        if verdicts[verdict]
    ]
    return "".join(f" {text}" for text in said)


def main_table(findings: Findings, setting: Setting) -> Table:
    """Base model and objectives against measures: value, interval, difference, verdict."""
    sweep, results = findings.sweep, findings.results[setting]
    rows: list[list[str | Entry]] = [
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
                results.contrasts.get((name, measure)),
                strong=best[measure] == name,
            )
            for measure in results.measures
        ]
        rows.append([name, seeds_of(findings, setting, name), *entries])
    titles = [measure.title for measure in results.measures]
    return Table(findings.heading("Scores", setting), ["objective", "seeds", *titles], rows)


def _only_best(results: Results, measure: Measure) -> str | None:
    first, *others = results.ranking(measure)
    score = results.objectives[first][measure].mean
    tied = any(results.objectives[name][measure].mean == score for name in others)
    return None if tied else first


def brief_table(findings: Findings, setting: Setting) -> Table | None:
    """The primary measure alone, as wide as a terminal."""
    results = findings.results[setting]
    measure = results.primary
    if measure is None:
        return None
    rows = [[BASE, "", *_score(results.base.get(measure), results.base_intervals.get(measure))]]
    for name, column in results.objectives.items():
        seeds = seeds_of(findings, setting, name)
        score = _score(column.get(measure), results.intervals.get((name, measure)))
        found = results.contrasts.get((name, measure))
        compared = [formatting.signed(found.difference), VERDICTS[found.verdict]] if found else []
        rows.append([name, seeds, *score, *compared])
    columns = ["objective", "seeds", "score", "95 %", f"− {findings.baseline}", ""]
    padded = [[*row, *[""] * (len(columns) - len(row))] for row in rows]
    return Table(f"{setting.title}: {measure.title}", columns, padded)


def _score(scores: Scores | None, interval: Interval | None) -> list[str]:
    if scores is None or interval is None:
        return [formatting.NONE, formatting.NONE]
    return [formatting.number(scores.mean), formatting.interval(interval)]


def seeds_of(findings: Findings, setting: Setting, objective: str) -> str:
    """``3``, or ``2 of 3`` where seeds are missing."""
    sweep = findings.sweep
    planned = {
        cell.seed for cell in sweep.cells if (cell.setting, cell.objective) == (setting, objective)
    }
    finished = len(sweep.chosen(setting, objective))
    return str(finished) if finished == len(planned) else f"{finished} of {len(planned)}"


def _value(
    scores: Scores | None,
    interval: Interval | None,
    contrast: Contrast | None = None,
    *,
    strong: bool = False,
) -> Entry:
    if scores is None or interval is None:
        return Entry(formatting.NONE)
    return Entry(
        formatting.number(scores.mean),
        details=(formatting.interval(interval),),
        mark=contrast.verdict if contrast is not None else None,
        change=formatting.signed(contrast.difference) if contrast is not None else "",
        strong=strong,
    )


def seeds_table(findings: Findings, setting: Setting) -> Table | None:
    """The primary measure of every seed: what the bars show."""
    results = findings.results[setting]
    measure = results.primary
    if measure is None:
        return None
    found = {
        name: column[measure] for name, column in results.objectives.items() if measure in column
    }
    seeds = sorted({seed for scores in found.values() for seed in scores.seeds})
    rows = []
    for name, scores in found.items():
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
    return Table(findings.heading(f"{measure.title}, seed by seed", setting), columns, rows)


def comparison_table(findings: Findings, setting: Setting) -> Table | None:
    """Every comparison with the baseline, with all its numbers."""
    results = findings.results[setting]
    if not results.contrasts:
        return None
    rows: list[list[str | Entry]] = [
        [
            name,
            measure.title,
            formatting.signed(found.difference),
            formatting.signed_interval(found.interval),
            "seeds and items" if found.over_seeds else "items only",
            formatting.p_value(found.p_value),
            formatting.p_value(found.adjusted_p),
            Entry("", mark=found.verdict),
            formatting.effect(found.detectable),
            str(found.num_seeds),
            f"{found.num_items:,}",
        ]
        for name in results.objectives
        for measure in results.measures
        if (found := results.contrasts.get((name, measure))) is not None
    ]
    caption = findings.heading(f"Differences to {findings.baseline}", setting)
    words = frozenset({"measure", "over", "verdict"})
    return Table(caption, COMPARISON_COLUMNS, rows, words)


def rates_table(findings: Findings, setting: Setting) -> Table | None:
    """How often a response was no answer, beside the score it went into."""
    results = findings.results[setting]
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
    caption = findings.heading("Shares of responses", setting)
    names = ["objective", "benchmark", "score", *RATES]
    return Table(caption, names, rows, frozenset({"benchmark"})) if rows else None


def forgotten(results: Results) -> Measure | None:
    """`general`, where it stands beside the benchmarks of the domain."""
    found = [m for m in results.measures if m.benchmark == GENERAL and m != results.primary]
    return found[0] if found else None


def forgetting_table(findings: Findings, setting: Setting) -> Table | None:
    """Gain on the domain and change of `general`, both over the base model."""
    results = findings.results[setting]
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
    caption = findings.heading("Gain over the base model, and what it cost", setting)
    return Table(caption, columns, rows) if rows else None


def _gain(found: Contrast) -> tuple[str, str]:
    return formatting.signed(found.difference), formatting.signed_interval(found.interval)
