"""Commands that look after a run root and its machine: `deft status`, `logs`, `clean`, `doctor`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deft.platform.cli.options import AsJson, Root, TrackingUri, names_of_both, names_of_runs
from deft.platform.console import RunConsole

if TYPE_CHECKING:
    from deft.platform.commands.upkeep.status import RootStatus
    from deft.platform.commands.upkeep.survey import RunStatus

app = typer.Typer()


@app.command("ls", hidden=True, epilog="Example: deft ls --watch")
@app.command(epilog="Example: deft status --watch")
def status(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A sweep or run, or the beginning of its name; all if not given.",
            autocompletion=names_of_both,
        ),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", "-a", help="Show finished cells of sweeps as well.")
    ] = False,
    watching: Annotated[bool, typer.Option("--watch", help="Look again every 2 seconds.")] = False,
    root: Root = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """List runs and sweeps: stage, progress, time left, result, age and size."""
    from deft.platform.commands.output import print_json
    from deft.platform.commands.upkeep.status import select, show_status, survey, watch
    from deft.sweeps.directory import read_cause, read_cells

    def look() -> tuple[RootStatus, RootStatus]:
        everything_there = survey(root, read_cells, read_cause)
        return everything_there, select(everything_there, name, everything=everything or as_json)

    if watching and not as_json:
        watch(look, RunConsole())
        return
    all_of_it, shown = look()
    if as_json:
        print_json(shown)
    else:
        show_status(all_of_it, shown, RunConsole())


@app.command(epilog="Example: deft logs chain_sum-tiny-DEFT --follow")
def logs(
    run: Annotated[
        str,
        typer.Argument(
            help="A run directory, or its name in the root or the beginning of it.",
            autocompletion=names_of_runs,
        ),
    ],
    lines: Annotated[
        int | None, typer.Option("--lines", "-n", min=1, help="Print only so many, the last ones.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on as long as the run does.")
    ] = False,
    root: Root = Path("runs"),
) -> None:
    """Print what a run has said so far, with the time of every line, also of a sweep's cell."""
    from deft.platform.commands.upkeep.logs import show_log
    from deft.platform.records.find import find_directory

    show_log(find_directory(run, root, "spec.json", "run"), lines, follow=follow)


class Removed(StrEnum):
    """What `deft clean` removes; typer knows no list of literals."""

    checkpoints = "checkpoints"
    failed = "failed"
    cache = "cache"


@app.command(epilog="Example: deft clean cache --yes")
def clean(
    kinds: Annotated[
        list[Removed] | None,
        typer.Argument(
            help="Checkpoints of finished runs, runs that failed before they had a trained model, "
            "or parts of the cache that no run refers to; all three if not given."
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove what is listed.")] = False,
    root: Root = Path("runs"),
) -> None:
    """List what a run root can do without, and how much that is; remove it with --yes."""
    from deft.platform.commands.upkeep.clean import KINDS
    from deft.platform.commands.upkeep.clean import clean as clean_root
    from deft.platform.commands.upkeep.status import survey
    from deft.platform.records.find import require_existing_root
    from deft.sweeps.directory import read_cause, read_cells

    def look() -> list[RunStatus]:
        return survey(root, read_cells, read_cause).runs

    require_existing_root(root)
    chosen = [kind for kind in KINDS if not kinds or kind in map(str, kinds)]
    clean_root(root, look, chosen, RunConsole(), removes=yes)


@app.command(epilog="Example: deft doctor --root /shared/runs")
def doctor(
    root: Root = Path("runs"),
    tracking_uri: TrackingUri = None,
    as_json: AsJson = False,
) -> None:
    """Check packages, devices, memory, disk, ports, MLflow, hub and cluster, and say what to do."""
    from deft.platform.commands.doctor import examine, has_problem, show_diagnosis
    from deft.platform.commands.output import print_json
    from deft.platform.tracking.uri import default_tracking_uri

    findings = list(examine(root, tracking_uri or default_tracking_uri(root)))
    if as_json:
        print_json([vars(finding) for finding in findings])
    else:
        show_diagnosis(findings, RunConsole())
    if has_problem(findings):
        raise typer.Exit(1)
