"""Sections of figures: pictures for page and file, and tables with their numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deft.platform.commands.plot import to_csv
from deft.sweeps.figures.regimes import (
    RegimeFigure,
    by_prior,
    draw_continuum,
    draw_entropy,
    draw_focus,
    draw_landscapes_by_regime,
)
from deft.sweeps.report import formatting
from deft.sweeps.report.curves import Curve
from deft.sweeps.report.document import Block, Picture, Table, TableEntry, Text
from deft.sweeps.report.landscapes import LandscapeError, token_landscapes
from deft.sweeps.report.plots import (
    PAGE_INCHES,
    BarPanel,
    CurvePanel,
    Point,
    PointPanel,
    draw_bars,
    draw_curves,
    draw_points,
)
from deft.sweeps.report.read_sweep import Setting
from deft.sweeps.report.report_data import SweepReportData
from deft.sweeps.report.section_results import forgotten
from deft.sweeps.report.svg import figure_style, to_panels, to_pdf, to_png, to_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEARNING = {
    "validation/nll": "held-out NLL (nats per token)",
    "validation/bits_per_byte": "held-out bits per byte",
    "train/nll": "NLL of the training batch",
}
LANDSCAPE_INCHES = 13.8
"""Width of four landscapes in a row, with their color bar."""
PAPER_OBJECTIVES = ("original", "p", "EAFT", "Cayley_Trans", "DEFT")
"""Columns of the landscapes by prior, as in the paper's figure."""
GATE = {
    "train/mean_gate": "mean gate",
    "train/mean_focus": "mean focus α",
    "train/mean_p": "mean target probability p",
}


def _picture(
    name: str,
    caption: str,
    description: str,
    draw: Callable[[], Figure],
    *,
    page_inches: float = PAGE_INCHES,
    csv: str = "",
    **style: float | str,
) -> Picture:
    with figure_style(**style):
        figure = draw()
        png = to_png(figure)
        figure.set_layout_engine("none")  # it is laid out now, which takes longest
        svg = to_svg(figure, name, description, page_inches)
        panels = to_panels(figure, name)
        pdf = to_pdf(figure) if csv else b""
    return Picture(name, caption, description, svg, png, pdf, csv, panels)


def regimes(report: SweepReportData) -> list[Block]:
    """Draw what sets the settings side by side: focus, entropy, gain against prior strength."""
    drawings: dict[str, tuple[Callable[[SweepReportData], RegimeFigure | None], str]] = {
        "focus": (
            draw_focus,
            "Mean focus and mean target probability over the course of training, a line for each "
            "setting, the strongest prior first.",
        ),
        "entropy": (
            draw_entropy,
            "Mean entropy of the predictions at target tokens of the training batches.",
        ),
        "continuum": (
            draw_continuum,
            "Gain over the base model against its score before training, with 95 % intervals.",
        ),
    }
    blocks: list[Block] = []
    for name, (draw, caption) in drawings.items():
        with figure_style():
            drawing = draw(report)
        if drawing is not None:
            blocks.append(_regime_picture(name, caption, drawing))
    return blocks


def _regime_picture(name: str, caption: str, drawing: RegimeFigure) -> Picture:
    return _picture(
        name,
        caption,
        f"{caption} Its numbers are in figures/{name}.csv.",
        lambda: drawing.figure,
        page_inches=LANDSCAPE_INCHES,
        csv=to_csv(drawing.rows),
    )


def bars(report: SweepReportData) -> list[Block]:
    """Draw figure 1: the primary measure of each objective, one panel for each setting."""
    panels = []
    for setting, results in report.results.items():
        measure = results.primary
        if measure is not None:
            scores_of = {name: c[measure] for name, c in results.objectives.items() if measure in c}
            base = results.base[measure].mean if measure in results.base else None
            runs = {name: scores.by_run.tolist() for name, scores in scores_of.items()}
            panels.append(BarPanel(setting.title, measure.title, runs, base))
    if not panels:
        return []
    caption = (
        "Mean over seeds; whiskers reach one standard deviation over seeds to both sides, dots are "
        "single seeds, the dashed line is the base model."
    )
    description = (
        "Bars: score of each objective in each setting. The table after it has the numbers."
    )
    return [
        _picture("bars", caption, description, lambda: draw_bars(panels, report.styles)),
    ]


def curves(report: SweepReportData, setting: Setting, number: int) -> list[Block]:
    """Draw learning curves on the metrics that all objectives share."""
    caption = (
        "Means over seeds; bands reach from the lowest seed to the highest. Frames leave out where "
        "long curves begin."
    )
    name = f"learning-{number}"
    return _curves(report, setting, name, LEARNING, "Learning curves", caption, crop=True)


def gate_dynamics(report: SweepReportData, setting: Setting, number: int) -> list[Block]:
    """Draw figure 3: gate, focus and probability of the tokens of the training batches."""
    caption = (
        "Step means over the target tokens of the training batches, means over seeds; bands reach "
        "from the lowest seed to the highest. Only objectives with a focus have one."
    )
    return _curves(report, setting, f"gate-{number}", GATE, "Gate dynamics", caption)


def _curves(
    report: SweepReportData,
    setting: Setting,
    picture_name: str,
    metrics: Mapping[str, str],
    title: str,
    caption: str,
    *,
    crop: bool = False,
) -> list[Block]:
    curves_of = report.curves[setting]
    panels = {
        metric: CurvePanel(
            label, {name: c[metric] for name, c in curves_of.items() if metric in c}, crop=crop
        )
        for metric, label in metrics.items()
    }
    panels = {metric: panel for metric, panel in panels.items() if panel.curves}
    if not panels:
        return []
    heading = report.heading(title, setting)
    drawn = list(panels.values())
    labels = ", ".join(panel.label for panel in drawn)
    picture = _picture(
        picture_name,
        f"{heading}. {caption}",
        f"Lines over training steps for each objective: {labels}. The table after it has numbers.",
        lambda: draw_curves(drawn, report.styles),
    )
    return [picture, _curve_table(heading, drawn)]


def _curve_table(heading: str, panels: Sequence[CurvePanel]) -> Table:
    """Tabulate start, middle and end of every curve, and the range of seeds at the end."""
    objectives = dict.fromkeys(name for panel in panels for name in panel.curves)
    rows: list[list[str | TableEntry]] = [
        [name, *(_milestones(panel.curves.get(name)) for panel in panels)] for name in objectives
    ]
    columns = ["objective", *(panel.label for panel in panels)]
    return Table(f"{heading}: start → middle → end, and the range of seeds there", columns, rows)


def _milestones(curve: Curve | None) -> TableEntry:
    if curve is None:
        return TableEntry(formatting.NONE)
    points = (float(curve.mean[0]), curve.at(0.5), float(curve.mean[-1]))
    low, high = (formatting.significant(float(band[-1])) for band in (curve.low, curve.high))
    return TableEntry(" → ".join(map(formatting.significant, points)), details=(f"{low} … {high}",))


def forgetting(report: SweepReportData) -> list[Block]:
    """Draw the gain on the domain against the change of the general suite."""
    panels = []
    for setting, results in report.results.items():
        primary, general = results.primary, forgotten(results)
        if primary is None or general is None:
            continue
        points = {
            name: Point(gained.difference, gained.interval, changed.difference, changed.interval)
            for name in results.objectives
            if (gained := results.gains.get((name, primary))) is not None
            and (changed := results.gains.get((name, general))) is not None
        }
        if points:
            panels.append(PointPanel(setting.title, points))
    if not panels:
        return [Text("The general suite was not asked, so nothing is known of what was forgotten.")]
    caption = (
        "Each point is an objective; the lines through it are 95 % intervals. "
        "Right is a gain on the domain, below the dashed line something was forgotten."
    )
    description = "Points: gain on the domain against change of the general suite, by objective."
    axes = ("gain over the base model, domain", "change of the general suite")
    return [
        _picture(
            "forgetting",
            caption,
            f"{description} The table after it has the numbers.",
            lambda: draw_points(panels, report.styles, *axes),
        )
    ]


def landscape_figures(report: SweepReportData, cache: Path) -> list[Block]:
    """Draw figure 2: the gradient of each objective by token, for each base model and dataset."""
    blocks: list[Block] = []
    seen = set()
    by_regime: dict[str, dict[str, Any]] = {}
    for setting in by_prior(report):
        pair = (setting.dataset, setting.model)
        chosen = {o: report.sweep.chosen(setting, o) for o in report.sweep.objectives}
        # An objective whose cells all failed may well fail here too.
        trained = [objective for objective, cells in chosen.items() if cells]
        cells = [cell for of_objective in chosen.values() for cell in of_objective]
        if pair in seen or not cells:
            continue
        seen.add(pair)
        title = " · ".join(pair)
        try:
            panels, others = token_landscapes(cells[0], trained, cache)
            by_regime[title], _ = token_landscapes(cells[0], PAPER_OBJECTIVES, cache)
        except LandscapeError as error:
            blocks.append(Text(f"not drawn: {error}.", lead=f"Landscape of {title}:"))
            continue
        blocks += _landscape(f"landscape-{len(seen)}", title, panels)
        if others:
            text = f"not drawn, as a gate alone does not describe them: {', '.join(others)}."
            blocks.append(Text(text, lead=f"Landscape of {title}:"))
    if len(by_regime) > 1:
        with figure_style(axes__facecolor="#f1f1ee"):
            drawing = draw_landscapes_by_regime(by_regime)
        caption = (
            "The objectives of arXiv 2602.11424 on each prior before training, the strongest "
            "first. Every panel has its own scale: where an objective pulls, not how hard."
        )
        if drawing is not None:
            blocks.append(_regime_picture("landscape-regimes", caption, drawing))
    return blocks


def _landscape(name: str, title: str, panels: Mapping[str, Any]) -> list[Block]:
    from deft.objectives.diagnostics import draw_landscapes

    if not panels:
        return []
    num_tokens = len(next(iter(panels.values())).p)
    picture = _picture(
        name,
        f"{title}: {num_tokens:,} target tokens before training. Dark tokens are pulled hardest; "
        "bottom left are confident conflicts, top left open questions, right what is known.",
        "Dots: tokens by target probability and entropy, colored by the norm of the logit "
        "gradient, one panel for each objective. The table after it has means by region.",
        lambda: draw_landscapes(panels),
        page_inches=LANDSCAPE_INCHES,
        axes__facecolor="#f1f1ee",
        font__size=13,
    )
    rows = [[objective, *_regions(panel)] for objective, panel in panels.items()]
    columns = ["objective", "known", "open questions", "confident conflicts"]
    caption = f"Mean norm of the logit gradient: {title}"
    note = (
        "Known are tokens of p of at least 0.5; of the others, open questions are those of more "
        "entropy than their median, confident conflicts the rest."
    )
    return [picture, Table(caption, columns, rows), Text(note)]


def _regions(panel: Any) -> list[str]:
    is_known = panel.p >= 0.5
    others = panel.entropy[~is_known]
    is_open = panel.entropy > (others.median() if len(others) else 0)
    masks = (is_known, ~is_known & is_open, ~is_known & ~is_open)
    return [
        formatting.significant(float(panel.gradient_norm[mask].mean()))
        if mask.any()
        else formatting.NONE
        for mask in masks
    ]
