"""Commands that look at results: `deft compare`, `view`, `report`, `ui`, `plot` and others."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from deft.platform.cli.options import (
    AsJson,
    Overrides,
    Root,
    RunName,
    TrackingUri,
    as_user_error,
    names_of_both,
    names_of_runs,
    names_of_sweeps,
    split_names,
)
from deft.platform.console import RunConsole
from deft.platform.errors import UserError
from deft.platform.tracking.links import UI_PORT

app = typer.Typer()
plot_app = typer.Typer(
    help="Draw figures for a paper: PDF and PNG, with their numbers as CSV.", no_args_is_help=True
)
app.add_typer(plot_app, name="plot")


@app.command(epilog="Example: deft compare --sweep quickstart --csv > quickstart.csv")
def compare(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN RUN…",
            help="Run directories, or names in the root; of several runs of one name the newest.",
            autocompletion=names_of_runs,
        ),
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(
            help="Look for the runs among this sweep's; without names, compare all.",
            autocompletion=names_of_sweeps,
        ),
    ] = None,
    root: Root = Path("runs"),
    as_json: AsJson = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print a line of CSV for each model and benchmark.")
    ] = False,
) -> None:
    """Compare runs on the items they share: intervals, differences to the first, significance."""
    from deft.platform import api
    from deft.platform.commands.compare_table import show_comparison
    from deft.platform.commands.output import console_for, print_csv, print_json

    console = console_for(machine_readable=as_json or as_csv)
    comparison = api.compare(runs or (), sweep=sweep, root=root, console=console)
    if as_json:
        print_json(comparison)
    elif as_csv:
        for warning in comparison.warnings:
            console.print(f"warning: {warning}")
        print_csv(comparison.rows)
    else:
        show_comparison(comparison, console)


@app.command(epilog="Example: deft view chain_sum-tiny-original chain_sum-tiny-DEFT")
def view(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN…|SWEEP",
            help="Runs, or a sweep, of which all finished runs are shown.",
            autocompletion=names_of_both,
        ),
    ],
    root: Root = Path("runs"),
    out: Annotated[
        Path | None, typer.Option(help="HTML file; responses.html in the first run if not given.")
    ] = None,
    browser: Annotated[bool, typer.Option(help="Open a browser, where there is a screen.")] = True,
) -> None:
    """Look at single responses, two models side by side, on a page that needs no server."""
    from deft.platform.commands.ui import open_page
    from deft.platform.viewer.page import write_view
    from deft.sweeps.report.read_sweep import find_viewed

    console = RunConsole()
    runs, folder, title = find_viewed(names, root, console)
    page = out or folder / "responses.html"
    number = write_view(runs, title, page)
    console.print(f"{number:,} items: {page} ({page.stat().st_size / 1e6:.1f} MB)")
    if browser:
        open_page(page.resolve().as_uri())


@app.command(epilog="Example: deft report quickstart")
def report(
    sweep: Annotated[
        str,
        typer.Argument(
            help="A sweep's directory, or its name or the beginning of it.",
            autocompletion=names_of_sweeps,
        ),
    ],
    root: Root = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Write what a sweep has found so far, as a web page and as Markdown, into its directory."""
    from deft.sweeps.report.read_sweep import find_sweep

    directory = find_sweep(sweep, root)
    from deft.platform.commands.output import console_for, print_json
    from deft.platform.records.root_use import using
    from deft.sweeps.report.read_sweep import read_sweep
    from deft.sweeps.report.write import write_report
    from deft.sweeps.results_table import sweep_results

    with using(root):
        out = write_report(directory, root, console_for(machine_readable=as_json))
    if as_json:
        print_json(sweep_results(read_sweep(directory, root), out))


@app.command(
    epilog="Example: deft landscape --model tiny --dataset figfont --objectives original,DEFT"
)
def landscape(
    dataset: Annotated[str, typer.Option(help="See `deft list datasets`.")],
    model: Annotated[str, typer.Option(help="See `deft list models`.")],
    objectives: Annotated[str, typer.Option(help="Names, separated by commas.")],
    size: Annotated[int, typer.Option(help="Examples to look at.")] = 64,
    out: Annotated[Path, typer.Option(help="Image file (PNG, SVG or PDF).")] = Path(
        "landscape.png"
    ),
    settings: Overrides = None,
    root: Root = Path("runs"),
) -> None:
    """Draw how hard each objective pulls at a model's tokens, without training it."""
    from deft.platform.config.loading import load_spec

    chosen = split_names(objectives)
    if not chosen:
        raise UserError("give --objectives, such as original,DEFT")
    names = {"dataset": dataset, "model": model, "objective": chosen[0]}
    own = [f"dataset.size={size}", "dataset.validation=0"]
    spec = load_spec(None, names, [*own, *(settings or ())])
    from deft.platform.commands.landscape import draw_landscape
    from deft.platform.records.root_use import using

    with using(root):
        draw_landscape(spec, chosen, root, out, RunConsole())


@plot_app.command(epilog="Example: deft plot gate --objectives original,p,DEFT")
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


@plot_app.command("sweep", epilog="Example: deft plot sweep quickstart --out figures")
def plot_sweep(
    sweep: Annotated[
        str, typer.Argument(help="A sweep's directory or name.", autocompletion=names_of_sweeps)
    ],
    out: Annotated[Path, typer.Option(help="Directory for the figures.")] = Path("figures"),
    root: Root = Path("runs"),
) -> None:
    """Draw the figures of a sweep's report: landscapes, focus, entropy, gain by prior strength."""
    from deft.sweeps.report.read_sweep import find_sweep
    from deft.sweeps.report.write import write_figures

    write_figures(find_sweep(sweep, root), root, out, RunConsole())


@app.command(epilog="Example: deft register chain_sum-tiny-DEFT adder")
def register(
    run: RunName,
    name: Annotated[str, typer.Argument(help="What the model is called in MLflow's registry.")],
    root: Root = Path("runs"),
    tracking_uri: TrackingUri = None,
) -> None:
    """Upload the model that a run trained to MLflow, and register it under a name."""
    from deft.platform.records.find import find_run
    from deft.platform.tracking.model_registry import register_model
    from deft.platform.tracking.uri import default_tracking_uri

    uri = tracking_uri or default_tracking_uri(root)
    register_model(find_run(run, root), name, uri, RunConsole())


@app.command(epilog="Example: deft push chain_sum-tiny-DEFT me/adder")
def push(
    run: RunName,
    hub_id: Annotated[str, typer.Argument(help="Repository of the Hugging Face hub: ORG/NAME.")],
    public: Annotated[
        bool, typer.Option("--public", help="Let everyone read a repository that is made.")
    ] = False,
    root: Root = Path("runs"),
) -> None:
    """Upload the model that a run trained, with its card, to the Hugging Face hub, as private."""
    from deft.platform.commands.model.push import push_model
    from deft.platform.records.find import find_newest_run

    console = RunConsole()
    push_model(find_newest_run(run, root, console.print), hub_id, console, public=public)


@app.command(epilog="Example: deft chat chain_sum-tiny-DEFT --temperature 0.7")
def chat(
    run: RunName,
    max_tokens: Annotated[int, typer.Option(min=1, help="Length limit of an answer.")] = 512,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy decoding.")] = 0.0,
    root: Root = Path("runs"),
) -> None:
    """Talk with the model that a run trained; a text on the standard input gets one answer."""
    from deft.platform.commands.output import console_for
    from deft.platform.config.loading import trained_style
    from deft.platform.records.find import find_newest_run

    # What is said of the run does not belong into an answer that is piped on.
    directory = find_newest_run(run, root, console_for(machine_readable=True).print)
    style = trained_style(directory)
    from deft.platform.commands.model.chat import Chat, talk, write_out

    model = Chat(directory / "model", style, max_tokens=max_tokens, temperature=temperature)
    if sys.stdin.isatty():
        talk(model, lambda: input("> "), write_out)
    else:
        model.answer(sys.stdin.read().rstrip("\n"), write_out)
        write_out("\n")


@app.command(epilog="Example: deft ui --port 5001")
def ui(
    root: Root = Path("runs"),
    tracking_uri: TrackingUri = None,
    port: Annotated[int, typer.Option(help="Port on the loopback interface.")] = UI_PORT,
    browser: Annotated[bool, typer.Option(help="Open a browser, where there is a screen.")] = True,
) -> None:
    """Compare runs in MLflow's charts, those that are still training included."""
    from deft.platform.commands.ui import find_store, open_ui
    from deft.platform.tracking.uri import default_tracking_uri, require_tracking_uri

    find_store(tracking_uri, root)
    uri = tracking_uri or default_tracking_uri(root)
    require_tracking_uri(uri)
    if not uri.startswith("http"):
        from deft.platform.commands.doctor import why_taken

        if problem := why_taken(port):
            raise UserError(f"--port {port}: {problem}; give another port")
    open_ui(uri, port, RunConsole(), browser=browser)
