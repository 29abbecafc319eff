"""`deft plot …`: commands that draw figures for a paper."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from deft.platform.cli_options import as_user_error
from deft.platform.console import RunConsole

plot_app = typer.Typer(
    help="Draw figures for a paper: PDF and PNG, with their numbers as CSV.", no_args_is_help=True
)


def split_names(text: str) -> list[str]:
    """Split names at commas outside parentheses, as in `DEFT,my.mod:own(a=1,b=2)`."""
    return [name.strip() for name in re.split(r",(?![^()]*\))", text) if name.strip()]


@plot_app.command()
def gate(
    objectives: Annotated[str, typer.Option(help="Names, separated by commas.")],
    out: Annotated[Path, typer.Option(help="Figure; .pdf, .png and .csv are written.")] = Path(
        "gate"
    ),
) -> None:
    """Draw gate and focus of objectives over the target's probability; needs no model."""
    from deft.platform.commands.plot import plot_gates

    with as_user_error():
        plot_gates(split_names(objectives), out, RunConsole())
