"""The command line. Everything heavy is imported inside the command that needs it."""

from __future__ import annotations

import os
import socket
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from typer.exceptions import TyperException

from deft.platform.console import RunConsole
from deft.platform.errors import StageError, UserError

app = typer.Typer(
    help="Compare SFT objectives of language models: train on Ray, evaluate with vLLM, "
    "look at the results in MLflow.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

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


@app.command()
def run(
    file: Annotated[Path | None, typer.Argument(help="A run file (YAML).")] = None,
    dataset: Annotated[str | None, typer.Option(help="See `deft list datasets`.")] = None,
    model: Annotated[str | None, typer.Option(help="See `deft list models`.")] = None,
    objective: Annotated[str | None, typer.Option(help="See `deft list objectives`.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a setting of the run file."),
    ] = None,
    root: Root = Path("runs"),
    tracking_uri: TrackingUri = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved spec and the plan, and stop.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show the output of Ray, DeepSpeed and vLLM.")
    ] = False,
) -> None:
    """Train, evaluate and record one experiment, from a run file or from three names."""
    from deft.platform.loading import load_spec

    names = {"dataset": dataset, "model": model, "objective": objective}
    if file is None and not any(names.values()):
        raise UserError("give a run file, or --dataset, --model and --objective")
    spec = load_spec(file, names, settings or ())
    console = RunConsole()
    if dry_run:
        console.say(spec.model_dump_json(indent=2))
        from deft.platform.dry_run import show_plan

        # The resolved spec alone goes to the output: it is a run file, and can be piped into one.
        try:
            show_plan(spec, root, RunConsole(Console(stderr=True, highlight=False)))
        except ValueError as error:
            raise UserError(str(error)) from None
        return
    from deft.platform.driver import run_experiment
    from deft.platform.results import show_results
    from deft.platform.tracking import default_tracking_uri

    console.stage("run", f"{spec.run_name} in {root}")
    uri = tracking_uri or default_tracking_uri(root)
    show_results(run_experiment(spec, root, console, uri, verbose=verbose), console)
    console.say(f"compare runs: deft ui{'' if root == Path('runs') else f' --root {root}'}")


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
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show the output of Ray and vLLM.")
    ] = False,
) -> None:
    """Evaluate a model, trained here or not. The same command again goes on where it stopped."""
    from deft.platform.loading import load_evaluation

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
    names = [name.strip() for name in benchmarks.split(",") if name.strip()]
    spec = load_evaluation(model, names, sampling, common, settings or (), root)
    console = RunConsole()
    if dry_run:
        console.say(spec.model_dump_json(indent=2))
        return
    from deft.platform.evaluation import run_evaluation
    from deft.platform.results import show_evaluation
    from deft.platform.tracking import default_tracking_uri

    console.stage("run", f"{spec.run_name} in {root}")
    uri = tracking_uri or default_tracking_uri(root)
    run = run_evaluation(spec, root, console, uri, verbose=verbose)
    show_evaluation(run.manifest("evaluate") or {"results": {}}, console, {"eval": spec.model.name})
    console.say(f"everything of this evaluation: {run.path}")


@app.command()
def compare(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN RUN…", help="Run directories, or names in the root.")
    ],
    root: Root = Path("runs"),
) -> None:
    """Compare runs on the items they share: intervals, differences to the first, significance."""
    from deft.platform.comparison import compare_runs, find_run

    compare_runs([find_run(name, root) for name in runs], RunConsole())


class Kind(StrEnum):
    """What `deft list` lists."""

    objectives = "objectives"
    models = "models"
    datasets = "datasets"
    prompts = "prompts"
    benchmarks = "benchmarks"


@app.command("list")
def list_(kind: Annotated[Kind, typer.Argument(help="What to list.")]) -> None:
    """Explain what there is, one line each with its source."""
    from deft.platform.results import show_catalog

    show_catalog(kind.value, RunConsole())


show = typer.Typer(help="Look at what a run would use.", no_args_is_help=True)
app.add_typer(show, name="show")


@show.command("data")
def show_data_(
    file: Annotated[Path | None, typer.Argument(help="A run file (YAML).")] = None,
    dataset: Annotated[str | None, typer.Option(help="See `deft list datasets`.")] = None,
    model: Annotated[str | None, typer.Option(help="See `deft list models`.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a setting of the run file."),
    ] = None,
    number: Annotated[int, typer.Option(min=1, help="Examples to print.")] = 3,
    root: Root = Path("runs"),
) -> None:
    """Print the first examples as the model will see them, trained tokens coloured."""
    from deft.platform.loading import load_spec

    if file is None and not (dataset and model):
        raise UserError("give a run file, or --dataset and --model")
    names = {"dataset": dataset, "model": model, "objective": None if file else "original"}
    spec = load_spec(file, names, settings or ())
    from deft.platform.show_data import show_data

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
) -> None:
    """Score stored responses, without a model: adds verdict and extracted to each line."""
    from deft.platform.grading import grade_file, show_counts

    console = RunConsole()
    show_counts(grade_file(benchmark, file, out, console), out, console)


@app.command()
def landscape(
    dataset: Annotated[str, typer.Option(help="See `deft list datasets`.")],
    model: Annotated[str, typer.Option(help="See `deft list models`.")],
    objectives: Annotated[str, typer.Option(help="Names, separated by commas.")],
    size: Annotated[int, typer.Option(help="Examples to look at.")] = 64,
    out: Annotated[Path, typer.Option(help="Image file (PNG, SVG or PDF).")] = Path(
        "landscape.png"
    ),
    root: Root = Path("runs"),
) -> None:
    """Draw how hard each objective pulls at a model's tokens, without training it."""
    from deft.platform.loading import load_spec

    chosen = [name.strip() for name in objectives.split(",")]
    names = {"dataset": dataset, "model": model, "objective": chosen[0]}
    spec = load_spec(None, names, [f"dataset.size={size}", "dataset.validation=0"])
    from deft.platform.landscape import draw_landscape

    draw_landscape(spec, chosen, root, out, RunConsole())


@app.command()
def register(
    run: Annotated[str, typer.Argument(help="A run directory, or its name in the root.")],
    name: Annotated[str, typer.Argument(help="What the model is called in MLflow's registry.")],
    root: Root = Path("runs"),
    tracking_uri: TrackingUri = None,
) -> None:
    """Upload the model that a run trained to MLflow, and register it under a name."""
    from deft.platform.comparison import find_run
    from deft.platform.registration import register_model
    from deft.platform.tracking import default_tracking_uri

    uri = tracking_uri or default_tracking_uri(root)
    register_model(find_run(run, root), name, uri, RunConsole())


@app.command()
def ui(
    root: Root = Path("runs"),
    tracking_uri: TrackingUri = None,
    port: Annotated[int, typer.Option(help="Port on the loopback interface.")] = 5000,
) -> None:
    """Open the MLflow UI on the runs, those that are still training included."""
    from deft.platform.tracking import default_tracking_uri, require_tracking_uri

    if tracking_uri is None and not (root / "mlflow.db").exists():
        raise UserError(f"{root}: no runs there yet; start one with `deft run`")
    uri = tracking_uri or default_tracking_uri(root)
    require_tracking_uri(uri)
    console = RunConsole()
    if uri.startswith("http"):
        console.say(f"that server has the UI itself: {uri}")
        return
    require_free_port(port)
    console.say(f"MLflow UI: http://127.0.0.1:{port} (Ctrl-C ends it)")
    sys.stdout.flush()
    arguments = ["ui", "--backend-store-uri", uri, "--host", "127.0.0.1", "--port", str(port)]
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", *arguments])


def require_free_port(port: int) -> None:
    """Raise UserError if nothing can listen on ``port`` of the loopback interface."""
    with socket.socket() as probe:
        # As servers do: a port whose last connection is only just closed is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise UserError(f"--port {port}: {error}; give another port") from None


def main() -> NoReturn:
    """Entry point of the `deft` command: 0 on success, 1 if a stage failed, 2 on bad input."""
    # A user's own objective is named by import path, and usually lies where the command is run.
    sys.path.append(os.getcwd())
    try:
        app(standalone_mode=False)
    except UserError as error:
        fail(f"{error}", 2)
    except StageError as error:
        fail(f"{error}", 1)
    except TyperException as error:  # an unknown command, option or value
        fail(error.format_message() or "a command is missing", error.exit_code)
    except typer.Exit as exit_:
        sys.exit(exit_.exit_code)
    except typer.Abort:
        fail("interrupted", 130)
    except KeyboardInterrupt:
        fail("interrupted; finished stages are kept", 130)
    sys.exit(0)


def fail(message: str, code: int) -> NoReturn:
    """Print an error and leave."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)
