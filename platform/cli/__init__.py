"""The command line. Everything heavy is imported inside the command that needs it."""

from __future__ import annotations

import os
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, NoReturn

import typer
from typer.exceptions import TyperException

from deft.platform.api import prepare_environment
from deft.platform.cli import authoring, experiments, results, upkeep
from deft.platform.errors import StageError, UserError, describe_os_error, fail
from deft.platform.signals import (
    KEPT,
    end_by_signal,
    handle_signals,
    leave_signals_to_system,
    received_signal,
)
from deft.workers.common.files import DamagedFileError

PACKAGE = "deft-platform"
"""Name under which this package is installed."""

app = typer.Typer(
    help="Compare SFT objectives of language models: train on Ray, evaluate with vLLM, "
    "look at the results in MLflow.",
    epilog="The first thing to try: deft run examples/quickstart.yaml",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for panel, group in {
    "Experiments": experiments.app,
    "Results": results.app,
    "Writing your own": authoring.app,
    "Upkeep": upkeep.app,
}.items():
    # What is added without a name loses the panel of its group.
    for command in group.registered_commands:
        command.rich_help_panel = panel
    for nested in group.registered_groups:
        nested.rich_help_panel = panel
    app.add_typer(group)


def show_version(asked: bool) -> None:
    """Print the version and exit, if it was asked for."""
    if not asked:
        return
    try:
        print(f"deft {version(PACKAGE)}")
    except PackageNotFoundError:  # in a submitted job, which gets the code alone
        print("deft, not installed as a package")
    raise typer.Exit


@app.callback()
def global_options(
    show: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=show_version, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Take options that go before a command."""


def main() -> NoReturn:
    """Run the `deft` command; exit with 0 on success, 1 if a stage failed, 2 on bad input."""
    handle_signals()
    message, code = "", 0
    try:
        prepare_environment()
        # A user's own objective is named by import path, and usually lies where the command is run.
        sys.path.append(os.getcwd())
        code = app(standalone_mode=False) or 0
    except KeyboardInterrupt:  # by `handle_signals`, before Typer or after, which catches it itself
        pass
    except (UserError, DamagedFileError) as error:
        message, code = f"{error}", 2
    except OSError as error:
        message, code = describe_os_error(error), 2
    except StageError as error:
        message, code = f"{error}", 1
    except TyperException as error:  # an unknown command, option or value
        from deft.platform.commands.original_options import answer

        message, code = error.format_message() or "a command is missing", error.exit_code
        message = message.replace("Value error, ", "")
        option = answer(str(getattr(error, "option_name", "")))
        message = f"{message.rstrip('.')}; here, {option}" if option else message
    if received_signal():
        end_by_signal(KEPT.get("".join(sys.argv[1:2]), "the same command starts again"))
    leave_signals_to_system()
    if message:
        fail(message, code)
    sys.exit(code)
