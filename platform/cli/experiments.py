"""Commands that run experiments: `deft run`, `sweep`, `submit` and `evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deft.platform.cli.options import (
    AsJson,
    Dataset,
    Model,
    Overrides,
    Root,
    TrackingUri,
    Verbose,
    as_user_error,
    names_in,
    names_of_models,
    split_names,
)
from deft.platform.console import RunConsole
from deft.platform.errors import StageError, UserError, fail
from deft.platform.signals import end_by_signal

app = typer.Typer()


@app.command(epilog="Example: deft run examples/quickstart.yaml --objective original")
def run(
    file: Annotated[Path | None, typer.Argument(help="A run file (YAML).", readable=False)] = None,
    dataset: Dataset = None,
    model: Model = None,
    objective: Annotated[
        str | None,
        typer.Option(help="See `deft list objectives`.", autocompletion=names_in("objectives")),
    ] = None,
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
    from deft.platform import api
    from deft.platform.commands.output import console_for, print_json
    from deft.platform.commands.show_results import show_next_commands, show_results
    from deft.platform.records.run_directory import RunDirectory

    console = console_for(machine_readable=as_json)
    if note := preset_note(spec):
        console.print(note)
    console.stage("run", f"{spec.run_name} in {root}")
    results = api.run(spec, root=root, tracking_uri=tracking_uri, console=console, verbose=verbose)
    if as_json:
        print_json(results)
        return
    finished = RunDirectory(results.directory.parent, spec)
    show_results(finished, console, detailed=verbose)
    show_next_commands(finished, root, console)


@app.command(epilog="Example: deft sweep sweeps/quickstart.yaml --dry-run")
def sweep(
    file: Annotated[Path, typer.Argument(help="A sweep file (YAML).", readable=False)],
    settings: Overrides = None,
    root: Root = Path("runs"),
    tracking_uri: TrackingUri = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the cells, the plan and the cost, and stop.")
    ] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Run a grid of experiments and compare them. The same command again runs what is left."""
    from deft.sweeps.cells import load_sweep

    plan = load_sweep(file, root, settings or ())
    if dry_run:
        from deft.sweeps.dry_run import show_sweep

        with as_user_error():
            show_sweep(plan, root, RunConsole())
        return
    from deft.platform import api
    from deft.platform.commands.output import console_for, print_json

    console = console_for(machine_readable=as_json)
    results = api.sweep(
        plan, root=root, tracking_uri=tracking_uri, console=console, verbose=verbose
    )
    if as_json:
        print_json(results)
    if results.failures:
        raise StageError(
            f"{len(results.failures)} of {len(results.cells)} cells failed; the same command tries "
            "them again"
        )


@app.command(
    "submit",
    epilog="Example: deft submit examples/quickstart.yaml --address http://127.0.0.1:8265",
)
def submit_(
    file: Annotated[
        Path, typer.Argument(help="A run file or a sweep file (YAML).", readable=False)
    ],
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


@app.command(epilog="Example: deft evaluate --model smollm2-135m --benchmarks gsm8k --size 100")
def evaluate(
    model: Annotated[
        str,
        typer.Option(
            help="A name from `deft list models`, a directory, a hub id, or a run that trained "
            "one.",
            autocompletion=names_of_models,
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
    from deft.platform import api
    from deft.platform.commands.output import console_for, print_json
    from deft.platform.commands.show_results import show_evaluation
    from deft.platform.records.manifests import EvaluateManifest, require_manifest

    console = console_for(machine_readable=as_json)
    console.stage("run", f"{spec.run_name} in {root}")
    results = api.evaluate(
        spec, root=root, tracking_uri=tracking_uri, console=console, verbose=verbose
    )
    if as_json:
        print_json(results)
        return
    models = require_manifest(results.directory, EvaluateManifest).models
    show_evaluation(models, console, {"eval": spec.model.name})
    console.print(f"everything of this evaluation: {results.directory}")
