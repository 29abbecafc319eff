"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Root = Annotated[
    Path, typer.Option("--root", envvar="DEFT_ROOT", help="Where runs, cache and MLflow store are.")
]
TrackingUri = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri",
        envvar="MLFLOW_TRACKING_URI",
        help="MLflow server or store; an SQLite file under the run root if not given.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a setting of the run file, or of a sweep's base run.",
    ),
]
AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print the results as JSON, and all else to the error output."),
]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show the output of Ray, DeepSpeed and vLLM.")
]
