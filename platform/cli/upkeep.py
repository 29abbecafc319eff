"""Commands that look after a machine and a run root: `deft doctor`."""

from __future__ import annotations

from pathlib import Path

import typer

from deft.platform.cli.options import AsJson, Root, TrackingUri
from deft.platform.console import RunConsole

app = typer.Typer()


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
