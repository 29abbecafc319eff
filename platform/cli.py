"""The command line. Everything heavy is imported inside the command that needs it."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from typer.exceptions import TyperException

from deft.platform.cli_options import (
    AsJson,
    Overrides,
    Root,
    TrackingUri,
    Verbose,
    as_user_error,
    context_of,
)
from deft.platform.cli_plot import plot_app, split_names
from deft.platform.console import RunConsole
from deft.platform.errors import StageError, UserError, describe_os_error, print_error
from deft.platform.signals import KEPT, end_by_signal, handle_signals, received_signal
from deft.platform.tracking.links import UI_PORT
from deft.workers.common.files import DamagedFileError
from deft.workers.common.loopback import keep_to_loopback

app = typer.Typer(
    help="Compare SFT objectives of language models: train on Ray, evaluate with vLLM, "
    "look at the results in MLflow.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(plot_app, name="plot")


@app.command()
def run(
    file: Annotated[Path | None, typer.Argument(help="A run file (YAML).")] = None,
    dataset: Annotated[str | None, typer.Option(help="See `deft list datasets`.")] = None,
    model: Annotated[str | None, typer.Option(help="See `deft list models`.")] = None,
    objective: Annotated[str | None, typer.Option(help="See `deft list objectives`.")] = None,
    protocol: Annotated[
        str | None, typer.Option(help="fair (default), or paper for arXiv 2602.11424's training.")
    ] = None,
    settings: Overrides = None,
    root: Root = Path("runs"),
    tracking_uri: TrackingUri = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved spec and the plan, and stop.")
    ] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Train, evaluate and record one experiment, from a run file or from three names."""
    from deft.platform.config.loading import load_spec, preset_note

    names = {"dataset": dataset, "model": model, "objective": objective}
    if file is None and not any(names.values()):
        raise UserError("give a run file, or --dataset, --model and --objective")
    if file is not None and "=" in file.name and not file.exists():
        from deft.platform.commands.original_options import PAGE

        raise UserError(
            f"{file}: no such run file; give settings as --set key=value, {PAGE} has "
            "the keys of the original's trainer"
        )
    names["protocol"] = protocol
    spec = load_spec(file, names, settings or ())
    console = RunConsole()
    if dry_run:
        console.print(spec.model_dump_json(indent=2))
        from deft.platform.commands.dry_run import show_plan, show_protocols
        from deft.platform.commands.output import console_for

        # The resolved spec alone goes to the output: it is a run file, and can be piped into one.
        plan_console = console_for(machine_readable=True)
        with as_user_error():
            show_plan(spec, root, plan_console)
        names["protocol"] = "fair" if spec.protocol == "paper" else "paper"
        show_protocols(spec, lambda: load_spec(file, names, settings or ()), plan_console)
        return
    from deft.platform.commands.output import console_for, print_json
    from deft.platform.commands.show_results import results_of, show_results
    from deft.platform.run.driver import run_experiment

    console = console_for(machine_readable=as_json)
    if note := preset_note(spec):
        console.print(note)
    console.stage("run", f"{spec.run_name} in {root}")
    finished = run_experiment(spec, context_of(root, console, tracking_uri, verbose=verbose))
    if as_json:
        print_json(results_of(finished))
        return
    show_results(finished, console)
    console.print(f"compare runs: deft ui{'' if root == Path('runs') else f' --root {root}'}")


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(help="A sweep file (YAML).")],
    settings: Overrides = None,
    root: Root = Path("runs"),
    tracking_uri: TrackingUri = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the cells, the plan and the cost, and stop.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Run a grid of experiments and compare them. The same command again runs what is left."""
    from deft.sweeps.cells import load_sweep

    plan = load_sweep(file, root, settings or ())
    console = RunConsole()
    if dry_run:
        from deft.sweeps.dry_run import show_sweep

        with as_user_error():
            show_sweep(plan, root, console)
        return
    from deft.sweeps.run import run_sweep

    directory = run_sweep(plan, context_of(root, console, tracking_uri, verbose=verbose))
    failed = [cell.run for cell in plan.cells if directory.failure(cell.run)]
    if failed:
        raise StageError(
            f"{len(failed)} of {len(plan.cells)} cells failed; the same command tries them again"
        )


@app.command("submit")
def submit_(
    file: Annotated[Path, typer.Argument(help="A run file or a sweep file (YAML).")],
    address: Annotated[
        str,
        typer.Option(
            envvar="RAY_API_SERVER_ADDRESS", help="The cluster's dashboard, as http://HOST:PORT."
        ),
    ] = "http://127.0.0.1:8265",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="As for `deft run` and `deft sweep`."),
    ] = None,
    root: Annotated[
        Path,
        typer.Option(
            "--root",
            envvar="DEFT_ROOT",
            help="Where runs, cache and MLflow store go: storage that all nodes of the cluster "
            "share, by its absolute path there.",
        ),
    ] = Path("runs"),
    tracking_uri: TrackingUri = None,
    follow: Annotated[
        bool, typer.Option(help="Print the job's log and return its exit code.")
    ] = True,
) -> None:
    """Run a run file or a sweep file as a job of a Ray cluster that is up already.

    The job gets the current directory, without what .gitignore names, and the deft that runs here.

    Its other packages are the cluster's; a runtime_env.yaml here adds to its environment.
    """
    from deft.platform.config.loading import load_spec
    from deft.platform.config.yaml_file import read_yaml

    command = "sweep" if "grid" in read_yaml(file)[0] else "run"
    if command == "sweep":
        from deft.sweeps.cells import load_sweep

        plan = load_sweep(file, root, settings or ())
        specs = [cell.spec for cell in (*plan.models.values(), *plan.cells)]
    else:
        specs = [load_spec(file, None, settings or ())]
    from deft.platform.commands import submit

    console, working_dir = RunConsole(), Path.cwd()
    root = submit.absolute_root(root, submit.check_address(address))
    entrypoint = submit.entrypoint(
        command,
        file,
        working_dir=working_dir,
        root=root,
        settings=settings or (),
        tracking_uri=tracking_uri,
    )
    for problem in submit.missing_paths(specs, working_dir, root):
        console.print(f"warning: {problem}")
    job = submit.submit(submit.connect(address), entrypoint, working_dir)
    console.stage("submit", f"job {job.id} at {job.address}, results in {root} there")
    if not follow:
        console.print(f"follow it: {job.to_follow}\nstop it:   {job.to_stop}")
        return
    try:
        code = submit.follow(job)
    except KeyboardInterrupt:
        end_by_signal(f"job {job.id} goes on\nfollow it: {job.to_follow}\nstop it:   {job.to_stop}")
    if code:
        fail(f"job {job.id} ended with exit code {code}", code)


@app.command()
def evaluate(
    model: Annotated[
        str,
        typer.Option(
            help="A name from `deft list models`, a directory, a hub id, or a run that trained one."
        ),
    ],
    benchmarks: Annotated[
        str, typer.Option(help="Names, separated by commas; see `deft list benchmarks`.")
    ] = "",
    samples: Annotated[int | None, typer.Option(help="Responses per item.")] = None,
    size: Annotated[int | None, typer.Option(help="Items of each benchmark.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Length limit of a response.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy decoding.")] = None,
    protocol: Annotated[
        str | None, typer.Option(help="default, or paper for the paper's sampling and prompts.")
    ] = None,
    data_dir: Annotated[
        str | None, typer.Option(help="Folder with <benchmark>.jsonl, .json or .parquet files.")
    ] = None,
    heldout: Annotated[
        str | None,
        typer.Option(metavar="FILE.jsonl", help="Prompts and responses to measure the loss on."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="As in evaluation.engine.dtype=bfloat16."),
    ] = None,
    root: Root = Path("runs"),
    tracking_uri: TrackingUri = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved spec and stop.")
    ] = False,
    as_json: AsJson = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show the output of Ray and vLLM.")
    ] = False,
) -> None:
    """Evaluate a model, trained here or not. The same command again goes on where it stopped."""
    from deft.platform.config.loading import load_evaluation

    sampling = {
        "samples": samples,
        "size": size,
        "max_tokens": max_tokens,
        "temperature": temperature,
    }
    common = {
        "protocol": protocol,
        "data_dir": data_dir,
        "heldout": {"file": heldout} if heldout else None,
    }
    spec = load_evaluation(model, split_names(benchmarks), sampling, common, settings or (), root)
    console = RunConsole()
    if dry_run:
        console.print(spec.model_dump_json(indent=2))
        return
    from deft.platform.commands.output import console_for, print_json
    from deft.platform.commands.show_results import results_of, show_evaluation
    from deft.platform.records.manifests import EvaluateManifest
    from deft.platform.run.evaluate_command import run_evaluation

    console = console_for(machine_readable=as_json)
    console.stage("run", f"{spec.run_name} in {root}")
    run = run_evaluation(spec, context_of(root, console, tracking_uri, verbose=verbose))
    if as_json:
        print_json(results_of(run))
        return
    models = run.require_manifest(EvaluateManifest).models
    show_evaluation(models, console, {"eval": spec.model.name})
    console.print(f"everything of this evaluation: {run.path}")


@app.command()
def compare(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN RUN…",
            help="Run directories, or names in the root; of several runs of one name the newest.",
        ),
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(help="Look for the runs among this sweep's; without names, compare all."),
    ] = None,
    root: Root = Path("runs"),
    as_json: AsJson = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print a line of CSV for each model and benchmark.")
    ] = False,
) -> None:
    """Compare runs on the items they share: intervals, differences to the first, significance."""
    from deft.platform.commands.compare import compare_runs
    from deft.platform.commands.compare_table import show_comparison
    from deft.platform.commands.output import console_for, print_csv, print_json
    from deft.sweeps.report.read_sweep import find_compared

    console = console_for(machine_readable=as_json or as_csv)
    with as_user_error():
        comparison = compare_runs(find_compared(runs or [], sweep, root, console))
    if as_json:
        print_json(comparison)
    elif as_csv:
        for warning in comparison.warnings:
            console.print(f"warning: {warning}")
        print_csv(comparison.rows)
    else:
        show_comparison(comparison, console)


@app.command()
def view(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN…|SWEEP", help="Runs, or a sweep, of which all finished runs are shown."
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


@app.command()
def report(
    sweep: Annotated[
        str, typer.Argument(help="A sweep's directory, or its name or the beginning of it.")
    ],
    root: Root = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Write what a sweep has found so far, as a web page and as Markdown, into its directory."""
    from deft.sweeps.report.read_sweep import find_sweep

    directory = find_sweep(sweep, root)
    from deft.platform.commands.output import console_for, print_json
    from deft.sweeps.report.read_sweep import read_sweep
    from deft.sweeps.report.write import write_report
    from deft.sweeps.results_table import result_rows

    out = write_report(directory, root, console_for(machine_readable=as_json))
    if as_json:
        read = read_sweep(directory, root)
        states = {cell.run: cell.state for cell in read.cells}
        print_json({"report": str(out), "cells": states, "results": result_rows(read)})


class Kind(StrEnum):
    """Catalogs that `deft list` can list."""

    objectives = "objectives"
    models = "models"
    datasets = "datasets"
    prompts = "prompts"
    benchmarks = "benchmarks"


@app.command("list")
def list_(
    kind: Annotated[Kind, typer.Argument(help="What to list.")], as_json: AsJson = False
) -> None:
    """List the entries of a catalog, one line each with its source."""
    from deft.platform.commands.output import print_json
    from deft.platform.commands.show_results import catalog_entries, show_catalog

    if as_json:
        print_json(catalog_entries(kind.value))
    else:
        show_catalog(kind.value, RunConsole())


show = typer.Typer(help="Look at what a run would use.", no_args_is_help=True)
app.add_typer(show, name="show")


@show.command("data")
def show_data_(
    file: Annotated[Path | None, typer.Argument(help="A run file (YAML).")] = None,
    dataset: Annotated[str | None, typer.Option(help="See `deft list datasets`.")] = None,
    model: Annotated[str | None, typer.Option(help="See `deft list models`.")] = None,
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

    show_data(spec, root, number, RunConsole())


@app.command()
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


@app.command()
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

    draw_landscape(spec, chosen, root, out, RunConsole())


@plot_app.command("sweep")
def plot_sweep(
    sweep: Annotated[str, typer.Argument(help="A sweep's directory or name.")],
    out: Annotated[Path, typer.Option(help="Directory for the figures.")] = Path("figures"),
    root: Root = Path("runs"),
) -> None:
    """Draw the figures of a sweep's report: landscapes, focus, entropy, gain by prior strength."""
    from deft.sweeps.report.read_sweep import find_sweep
    from deft.sweeps.report.write import write_figures

    write_figures(find_sweep(sweep, root), root, out, RunConsole())


@app.command()
def register(
    run: Annotated[str, typer.Argument(help="A run directory, or its name in the root.")],
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


@app.command()
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


@app.command()
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


def main() -> NoReturn:
    """Run the `deft` command; exit with 0 on success, 1 if a stage failed, 2 on bad input."""
    handle_signals()
    if os.environ.get("RAY_ADDRESS", "local") == "local":
        keep_to_loopback()
    # A user's own objective is named by import path, and usually lies where the command is run.
    sys.path.append(os.getcwd())
    # Read when ray is imported. Many processes on few cores are normal for a sweep, and a lost one
    # is reported by what depended on it.
    os.environ.setdefault(
        "RAY_DEDUP_LOGS_SKIP_REGEX",
        "worker processes have been started|A worker died or was killed",
    )
    message, code = "", 0
    try:
        code = app(standalone_mode=False) or 0
    except (UserError, DamagedFileError) as error:
        message, code = f"{error}", 2
    except OSError as error:
        message, code = describe_os_error(error), 2
    except StageError as error:
        message, code = f"{error}", 1
    except TyperException as error:  # an unknown command, option or value
        from deft.platform.commands.original_options import answer

        message, code = error.format_message() or "a command is missing", error.exit_code
        option = answer(str(getattr(error, "option_name", "")))
        message = f"{message.rstrip('.')}; here, {option}" if option else message
    if received_signal():  # Typer turns KeyboardInterrupt into an exit code
        end_by_signal(KEPT.get(sys.argv[1], "the same command starts again"))
    if message:
        fail(message, code)
    sys.exit(code)


def fail(message: str, code: int) -> NoReturn:
    """Print an error and exit."""
    print_error(message)
    sys.exit(code)


if __name__ == "__main__":  # how a submitted job starts it, see submit.py
    main()
