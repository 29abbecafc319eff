"""The functions of `from deft import …`, which the commands of the same names call."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from deft.platform.console import RunConsole
from deft.platform.errors import UserError
from deft.workers.common.loopback import keep_to_loopback

if TYPE_CHECKING:
    import pyarrow as pa

    from deft.platform.commands.compare import RunComparison
    from deft.platform.config.spec import ExperimentSpec, ModelEvaluationSpec
    from deft.platform.records.results import RunResults
    from deft.platform.run.context import RunContext
    from deft.sweeps.cells import Plan
    from deft.sweeps.results_table import SweepResults

Made = TypeVar("Made")


def run(
    spec: ExperimentSpec | Mapping[str, Any] | str | PathLike[str],
    *,
    settings: Mapping[str, Any] | None = None,
    root: str | PathLike[str] | None = None,
    tracking_uri: str | None = None,
    console: RunConsole | None = None,
    verbose: bool = False,
) -> RunResults:
    """Train, evaluate and record one experiment, as `deft run` does.

    Finished stages of the same spec are not run again.

    Args:
        spec: a run file, what such a file holds, or an `ExperimentSpec`.
        settings: values by dotted key, such as ``{"training.max_steps": 10}``, laid over a file or
            a mapping.
        root: run root; the environment's DEFT_ROOT, or ``runs``, if not given.
        tracking_uri: MLflow server or store; MLFLOW_TRACKING_URI, or an SQLite file under the run
            root, if not given.
        console: where progress is printed; the standard output if not given.
        verbose: whether to show the output of Ray, DeepSpeed and vLLM.

    Returns:
        A row for each model, benchmark and metric; `RunResults.table` makes a table of them.

    Raises:
        UserError: the input cannot be used; nothing was written for it.
        StageError: a stage failed; finished stages are kept.
    """
    from deft.platform.config.loading import load_spec
    from deft.platform.config.spec import ExperimentSpec

    experiment = _made(spec, ExperimentSpec, settings) or load_spec(
        _source(spec), None, settings or {}
    )
    context = _context(root, tracking_uri, console, verbose=verbose)
    from deft.platform.records.results import results_of
    from deft.platform.run.driver import run_experiment

    return results_of(run_experiment(experiment, context).path)


def sweep(
    spec: Plan | Mapping[str, Any] | str | PathLike[str],
    *,
    settings: Mapping[str, Any] | None = None,
    root: str | PathLike[str] | None = None,
    tracking_uri: str | None = None,
    console: RunConsole | None = None,
    verbose: bool = False,
) -> SweepResults:
    """Run a grid of experiments and report on them, as `deft sweep` does.

    Finished cells are not run again. A cell that fails fails alone, see `SweepResults.failures`.

    Args:
        spec: a sweep file, what such a file holds, or a plan of `deft.sweeps.cells.load_sweep`.
        settings: values by dotted key, laid over the base run of a file or a mapping.
        root: see `run`.
        tracking_uri: see `run`.
        console: see `run`.
        verbose: see `run`.

    Returns:
        The states of all cells, and a row for each finished cell, model, benchmark and metric.

    Raises:
        UserError: the input cannot be used; nothing was written for it.
        StageError: something other than a cell failed.
    """
    from deft.sweeps.cells import Plan, load_sweep

    plan = _made(spec, Plan, settings) or load_sweep(_source(spec), run_root(root), settings or {})
    context = _context(root, tracking_uri, console, verbose=verbose)
    from deft.sweeps.report.read_sweep import read_sweep
    from deft.sweeps.report.write import REPORT
    from deft.sweeps.results_table import sweep_results
    from deft.sweeps.run import run_sweep

    directory = run_sweep(plan, context)
    return sweep_results(read_sweep(directory.path, directory.root), directory.path / REPORT)


def evaluate(
    spec: ModelEvaluationSpec | Mapping[str, Any] | str | PathLike[str],
    *,
    settings: Mapping[str, Any] | None = None,
    root: str | PathLike[str] | None = None,
    tracking_uri: str | None = None,
    console: RunConsole | None = None,
    verbose: bool = False,
) -> RunResults:
    """Evaluate a model, trained here or not, as `deft evaluate` does.

    What is finished is not done again, and what was interrupted goes on.

    Args:
        spec: ``{"model": …, "evaluation": {"benchmarks": [{"name": "gsm8k", "size": 100}]}}``, a
            file that holds it, or a `ModelEvaluationSpec`. The model is a name of the catalog, a
            directory, a hub id, or a run.
        settings: see `run`.
        root: see `run`.
        tracking_uri: see `run`.
        console: see `run`.
        verbose: see `run`.

    Returns:
        A row for each benchmark and metric.

    Raises:
        UserError: the input cannot be used; nothing was written for it.
        StageError: something else failed; responses that were generated are kept.
    """
    from deft.platform.config.loading import make_evaluation
    from deft.platform.config.spec import ModelEvaluationSpec

    evaluation = _made(spec, ModelEvaluationSpec, settings) or make_evaluation(
        _source(spec), settings or {}, run_root(root)
    )
    context = _context(root, tracking_uri, console, verbose=verbose)
    from deft.platform.records.results import results_of
    from deft.platform.run.evaluate_command import run_evaluation

    return results_of(run_evaluation(evaluation, context).path)


def compare(
    runs: Sequence[str | PathLike[str]] = (),
    *,
    sweep: str | None = None,
    root: str | PathLike[str] | None = None,
    console: RunConsole | None = None,
) -> RunComparison:
    """Compare runs on the items they share, as `deft compare` does.

    Args:
        runs: directories of finished runs, or their names in the root; of several runs of one name
            the newest. The others are compared with the first.
        sweep: name of the sweep to look for them in; without ``runs``, all its finished cells.
        root: see `run`.
        console: where it is said which of several runs of one name is meant; the standard output
            if not given.

    Returns:
        Benchmark by benchmark: values, differences to the first run, their 95 % intervals and
        p-values; `RunComparison.table` makes a table of them.

    Raises:
        UserError: there is no such run, or they were asked other questions.
    """
    from deft.platform.commands.compare import compare_runs
    from deft.sweeps.report.read_sweep import find_compared

    names = [os.fspath(name) for name in runs]
    directories = find_compared(names, sweep, run_root(root), console or RunConsole())
    try:
        return compare_runs(directories)
    except ValueError as error:
        raise UserError(str(error)) from None


def load_results(
    runs: Sequence[str | PathLike[str]] = (),
    *,
    sweep: str | None = None,
    root: str | PathLike[str] | None = None,
    console: RunConsole | None = None,
) -> pa.Table:
    """Read what finished runs measured, as one long table.

    Args:
        runs: directories of finished runs, or their names in the root; all of it if not given.
        sweep: name of the sweep to look for them in; without ``runs``, all its finished cells.
        root: see `run`.
        console: see `compare`.

    Returns:
        A row for each run, model (before or after training), benchmark and metric, with the columns
        ``run``, ``dataset``, ``model``, ``objective``, ``seed``, the sweep's other axes, ``which``,
        ``benchmark``, ``metric``, ``value``, ``stderr``, ``ci_low`` and ``ci_high``; its
        `to_pandas` makes a data frame.

    Raises:
        UserError: there is no such run or sweep, or nothing has finished.
    """
    from deft.platform.records.find import finished_runs
    from deft.platform.records.results import described_rows, to_table
    from deft.sweeps.report.read_sweep import find_compared, find_sweep, read_sweep
    from deft.sweeps.results_table import result_rows

    folder, names = run_root(root), [os.fspath(name) for name in runs]
    if sweep is None and not names:
        directories = finished_runs(folder)
    else:
        directories = find_compared(names, sweep, folder, console or RunConsole())
    if sweep is None:
        return to_table([row for run in directories for row in described_rows(run)])
    wanted = {directory.name for directory in directories}
    rows = result_rows(read_sweep(find_sweep(sweep, folder), folder))
    return to_table([row for row in rows if row["run"] in wanted])


def run_root(root: str | PathLike[str] | None) -> Path:
    """Return the run root, which the environment names if it is not given."""
    return Path(root or os.environ.get("DEFT_ROOT") or "runs")


def prepare_environment() -> None:
    """Set what Ray reads when it is imported; nothing where that has happened already.

    What this process starts then listens on the loopback interface alone, unless it is to use
    another cluster.
    """
    if "ray" in sys.modules:
        return
    if os.environ.get("RAY_ADDRESS", "local") == "local":
        keep_to_loopback()
    # Many processes on few cores are normal for a sweep, and a lost one is reported by what
    # depended on it.
    os.environ.setdefault(
        "RAY_DEDUP_LOGS_SKIP_REGEX",
        "worker processes have been started|A worker died or was killed",
    )


def _made(spec: object, kind: type[Made], settings: Mapping[str, Any] | None) -> Made | None:
    """Return ``spec`` if it is one of ``kind`` already, whose settings stand."""
    if not isinstance(spec, kind):
        return None
    if settings:
        raise UserError(
            f"settings: they are laid over a file or a mapping, not over a {kind.__name__}; set "
            "them before it is made"
        )
    return spec


def _source(spec: Any) -> Path | Mapping[str, Any]:
    return spec if isinstance(spec, Mapping) else Path(spec)


def _context(
    root: str | PathLike[str] | None,
    tracking_uri: str | None,
    console: RunConsole | None,
    *,
    verbose: bool,
) -> RunContext:
    prepare_environment()
    from deft.platform.run.context import open_context

    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    return open_context(run_root(root), console or RunConsole(), uri, verbose=verbose)
