"""Options that several commands share, and what they are made into."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from deft.platform.errors import UserError


def names_in(catalog: str) -> Callable[[str], list[str]]:
    """Return what completes the names of a catalog in a shell."""

    def complete(incomplete: str) -> list[str]:
        from deft.platform.commands.show_results import catalog_entries

        names = [entry["name"] for entry in catalog_entries(catalog)]
        return [name for name in names if name.startswith(incomplete)]

    return complete


def names_of(*patterns: str) -> Callable[[str], list[str]]:
    """Return what completes names of directories with a file of ``patterns`` in the run root."""

    def complete(incomplete: str) -> list[str]:
        root = Path(os.environ.get("DEFT_ROOT", "runs"))
        files = (file for pattern in patterns for file in root.glob(pattern))
        names = sorted(file.parent.name for file in files)
        return [name for name in names if name.startswith(incomplete)]

    return complete


names_of_runs = names_of("*/spec.json")
names_of_sweeps = names_of("sweeps/*/sweep.json")
names_of_both = names_of("*/spec.json", "sweeps/*/sweep.json")


def names_of_models(incomplete: str) -> list[str]:
    """Complete what `deft evaluate` takes for a model."""
    return [*names_in("models")(incomplete), *names_of_runs(incomplete)]


Dataset = Annotated[
    str | None,
    typer.Option(help="See `deft list datasets`.", autocompletion=names_in("datasets")),
]
Model = Annotated[
    str | None, typer.Option(help="See `deft list models`.", autocompletion=names_in("models"))
]
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
RunName = Annotated[
    str,
    typer.Argument(help="A run directory, or its name in the root.", autocompletion=names_of_runs),
]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose", "-v", help="Show every metric, and the output of Ray, DeepSpeed and vLLM."
    ),
]


@contextmanager
def as_user_error() -> Iterator[None]:
    """Re-raise any ValueError from the block as a UserError."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error)) from None


def split_names(text: str) -> list[str]:
    """Split names at commas outside parentheses, as in `DEFT,my.mod:own(a=1,b=2)`."""
    return [name.strip() for name in re.split(r",(?![^()]*\))", text) if name.strip()]
