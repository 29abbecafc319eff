"""Tables of a run's results, and of the catalogs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import filterfalse
from pathlib import Path
from typing import Any

from deft.platform.config.spec import ExperimentSpec
from deft.platform.console import RunConsole
from deft.platform.records.manifests import EvaluateManifest, ModelResult, TrainManifest
from deft.platform.records.results import (
    MainMetric,
    is_bound,
    main_metrics,
    with_interval,
)
from deft.platform.records.run_directory import Event, RunDirectory

SHOWN = (
    "objective",
    "nll",
    "eos_logp",
    "mean_p",
    "mean_gate",
    "mean_focus",
    "mean_concentration",
    "mean_entropy",
    "kept_share",
    "grad_norm",
    "tokens_per_second",
)
"""Training metrics in the table at the end of a run; all of them are in MLflow."""


def show_results(run: RunDirectory[ExperimentSpec], console: RunConsole, *, detailed: bool) -> None:
    """Print what training changed, and the run's directory.

    Args:
        run: a finished one.
        console: where.
        detailed: whether to print every metric instead of the main ones.
    """
    models, events = run.require_manifest(EvaluateManifest).models, run.train_events()
    warn_of_lost_steps(run, events, console)
    if detailed:
        show_training(events, console)
        show_evaluation(models, console)
    else:
        show_summary(models, console)
    console.print(f"everything of this run: {run.path}")


def show_next_commands(run: RunDirectory[ExperimentSpec], root: Path, console: RunConsole) -> None:
    """Print what can be done with a finished run; ``root`` as the user gave it."""
    option = "" if root == Path("runs") else f" --root {root}"
    other = "DEFT" if str(run.spec.objective) == "original" else "original"
    commands = {
        f"deft view {run.path.name}{option}": "its responses, one by one",
        f"deft chat {run.path.name}{option}": "talk with the model",
        f"vllm serve {root / run.path.name / 'model'}": "serve it by OpenAI's API",
        f"deft run … --objective {other}{option}": "another objective; then: deft compare",
        f"deft ui{option}": "charts of all runs",
    }
    width = max(map(len, commands))
    for number, (command, purpose) in enumerate(commands.items()):
        console.print(f"{'next' if number == 0 else '':<10}{command:<{width}}  {purpose}")


def show_summary(models: Mapping[str, ModelResult], console: RunConsole) -> None:
    """Print the main metric of each benchmark before and after training, with 95 % intervals."""
    before, after = models.get("base", ModelResult(directory="")), models["eval"]
    measured = [
        MainMetric("held-out", "nll", "nll", before.heldout, after.heldout),
        *main_metrics(models),
        *(
            MainMetric("mean", metric.replace("_at_", "@"), metric, before.means, after.means)
            for metric in filterfalse(is_bound, after.means)
        ),
    ]
    rows = [
        [
            f"{main.benchmark} {main.name}",
            with_interval(main.before, main.key),
            with_interval(main.after, main.key),
        ]
        for main in measured
        if main.key in main.after
    ]
    console.table("results", ["", "before", "after training"], rows)


def show_training(events: Sequence[Event], console: RunConsole) -> None:
    """Print a table of metrics at the first and the last optimizer step."""
    if events:
        first, last = events[0].metrics, events[-1].metrics
        console.table(
            "training",
            ["", "first step", "last step"],
            [
                [name, f"{first[f'train/{name}']:.4g}", f"{last[f'train/{name}']:.4g}"]
                for name in SHOWN
                if f"train/{name}" in first and f"train/{name}" in last
            ],
        )


def warn_of_lost_steps(
    run: RunDirectory[ExperimentSpec], events: Sequence[Event], console: RunConsole
) -> None:
    """Say it where fewer steps are on record than were taken."""
    num_steps, recorded = run.require_manifest(TrainManifest).step, events[-1].step if events else 0
    if recorded < num_steps:
        console.print(
            f"warning: {run.events_file}: only {recorded} of {num_steps} steps are on record; "
            "MLflow has what was delivered before"
        )


LABELS = {"base": "base", "eval": "trained"}


def show_evaluation(
    models: Mapping[str, ModelResult], console: RunConsole, labels: Mapping[str, str] = LABELS
) -> None:
    """Print a table for each benchmark, a column for each model: means and 95 % intervals.

    Args:
        models: results by the label of the model.
        console: where.
        labels: label of a model → heading of its column, in their order.
    """
    results = {label: models[label].metrics for label in labels if label in models}
    shown = list(results)
    for benchmark in dict.fromkeys(name for label in shown for name in results[label]):
        measured = [results[label].get(benchmark, {}) for label in shown]
        names = list(filterfalse(is_bound, measured[-1]))
        rows = [
            [name.replace("_at_", "@"), *(with_interval(metrics, name) for metrics in measured)]
            for name in names
        ]
        console.table(benchmark, ["", *(labels[label] for label in shown)], rows)
    means = {label: model.means for label, model in models.items() if model.means}
    if means:
        rows = [
            [name.replace("_at_", "@"), *(with_interval(means[label], name) for label in means)]
            for name in next(iter(means.values()))
        ]
        console.table("mean over benchmarks", ["", *(labels[label] for label in means)], rows)


NOT_LISTED = {
    "objectives": "MODULE:FUNCTION, one of your own",
    "models": "a directory, an id of the Hugging Face hub, or a run",
    "datasets": "a file, a directory, an id of the Hugging Face hub, or a list of them",
    "benchmarks": "MODULE:BENCHMARK, one of your own; lm_eval:TASK, one of lm-evaluation-harness",
}
"""What may be given by catalog in place of an entry's name."""


def show_catalog(kind: str, console: RunConsole) -> None:
    """Print the entries of a catalog, a line each with its source, and what else may be given."""
    entries = catalog_entries(kind)
    width = max(len(entry["signature"]) for entry in entries)
    for entry in entries:
        console.print(f"{entry['signature']:<{width}}  {entry['summary']} [{entry['source']}]")
    if kind in NOT_LISTED:
        console.print(f"also: {NOT_LISTED[kind]}")


def catalog_entries(kind: str) -> list[dict[str, str]]:
    """Return name, signature, summary and source of the entries of a catalog."""
    from deft.evaluators.benchmarks.catalog import BENCHMARKS
    from deft.objectives.catalog import CATALOG
    from deft.workers.catalogs.datasets import DATASETS
    from deft.workers.catalogs.models import MODELS
    from deft.workers.catalogs.prompt_styles import PROMPT_STYLES

    catalogs: dict[str, Mapping[str, Any]] = {
        "objectives": CATALOG,
        "models": MODELS,
        "datasets": DATASETS,
        "prompts": PROMPT_STYLES,
        "benchmarks": BENCHMARKS,
    }
    return [
        {
            "name": key,
            "signature": getattr(info, "signature", key),
            "summary": info.summary,
            "source": info.source,
        }
        for key, info in catalogs[kind].items()
    ]


def objectives_markdown() -> str:
    """Format the catalog of objectives as the Markdown table of `docs/objectives.md`."""
    from deft.objectives.catalog import CATALOG

    lines = ["| name | value | gate | what it does | source |", "|---|---|---|---|---|"]
    for info in CATALOG.values():
        names = ", ".join(f"`{name}`" for name in (info.signature, *info.aliases))
        cells = (names, info.value, info.gate, info.summary, info.source)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)
