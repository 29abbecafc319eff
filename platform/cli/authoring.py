"""Commands for authors of run files, objectives and benchmarks: `deft list`, `new`, `check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from deft.platform.cli.options import AsJson, Dataset, Model, Overrides, Root, names_in
from deft.platform.console import RunConsole
from deft.platform.errors import UserError

app = typer.Typer()


@app.command("list", epilog="Example: deft list objectives")
def list_(
    kind: Annotated[
        Literal["objectives", "models", "datasets", "prompts", "benchmarks"],
        typer.Argument(help="What to list."),
    ],
    as_json: AsJson = False,
) -> None:
    """List the entries of a catalog, one line each with its source."""
    from deft.platform.commands.output import print_json
    from deft.platform.commands.show_results import catalog_entries, show_catalog

    if as_json:
        print_json(catalog_entries(kind))
    else:
        show_catalog(kind, RunConsole())


@app.command(epilog="Example: deft check 'my_objectives:doubt(floor=0.2)'")
def check(
    objective: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:OBJECTIVE",
            help="An import path from the current folder, or a name of the catalog.",
            autocompletion=names_in("objectives"),
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Check an objective before it trains: form, gate, behavior from p = 0 to 1, and time."""
    from deft.platform.commands.authoring.check import check as check_objective
    from deft.platform.commands.authoring.check import show_check
    from deft.platform.commands.output import print_json

    report = check_objective(objective)
    if not as_json:
        show_check(report, RunConsole())
        return
    print_json(report)
    if report.problems:
        raise typer.Exit(2)


@app.command(epilog="Example: deft new objective my_objectives.py")
def new(
    kind: Annotated[
        Literal["objective", "benchmark", "sweep"], typer.Argument(help="What to write.")
    ],
    file: Annotated[Path, typer.Argument(help="The file: .py, or .yaml for a sweep.")],
) -> None:
    """Write a commented file to start from, which works as it is."""
    from deft.platform.commands.authoring.new import write_new

    steps = write_new(kind, file)
    console = RunConsole()
    console.print(f"{file}")
    for step in steps:
        console.print(f"try it: {step}")


@app.command(epilog="Example: deft schema run > run.schema.json")
def schema(
    kind: Annotated[Literal["run", "sweep"], typer.Argument(help="The file to describe.")],
) -> None:
    """Print the JSON Schema of a run or sweep file: editors complete and check settings by it."""
    from deft.platform.commands.output import print_json
    from deft.platform.config.schema import run_schema
    from deft.sweeps.spec import sweep_schema

    print_json(run_schema() if kind == "run" else sweep_schema())


show = typer.Typer(help="Look at what a run would use.", no_args_is_help=True)
app.add_typer(show, name="show")


@show.command("data", epilog="Example: deft show data examples/quickstart.yaml --number 1")
def show_data_(
    file: Annotated[Path | None, typer.Argument(help="A run file (YAML).", readable=False)] = None,
    dataset: Dataset = None,
    model: Model = None,
    settings: Overrides = None,
    number: Annotated[int, typer.Option(min=1, help="Examples to print.")] = 3,
    root: Root = Path("runs"),
) -> None:
    """Print the first examples as the model will see them, trained tokens colored."""
    from deft.platform.config.loading import load_spec

    if file is None and not (dataset and model):
        raise UserError("give a run file, or --dataset and --model")
    names = {"dataset": dataset, "model": model, "objective": None if file else "original"}
    spec = load_spec(file, names, settings or ())
    from deft.platform.commands.show_data import show_data
    from deft.platform.records.root_use import using

    with using(root):
        show_data(spec, root, number, RunConsole())


@app.command(epilog="Example: deft grade math responses.jsonl --out graded.jsonl")
def grade(
    benchmark: Annotated[str, typer.Argument(help="math, medical, figfont, or a benchmark.")],
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE.jsonl",
            help="Lines with response and gold; medical also options (letter to text).",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="OUT.jsonl", help="Where the graded lines go.")],
    as_json: AsJson = False,
) -> None:
    """Score stored responses, without a model: adds verdict and extracted to each line."""
    from deft.platform.commands.grade import grade_file, show_counts
    from deft.platform.commands.output import console_for, print_json

    console = console_for(machine_readable=as_json)
    counts = grade_file(benchmark, file, out, console)
    if as_json:
        print_json({"file": str(out), "verdicts": dict(counts)})
    else:
        show_counts(counts, out, console)
