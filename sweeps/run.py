"""From a plan to a finished sweep: Ray Tune runs the cells, which share warm engines."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from deft.evaluators.generation.shared_pool import SharedPool
from deft.platform.console import RunConsole
from deft.platform.run.cluster import event_queue, ray_cluster, require_workers
from deft.platform.run.driver import require_importable
from deft.platform.run.evaluation import require_engine
from deft.platform.tracking.sweep_recorder import SweepRecorder
from deft.platform.tracking.uri import require_tracking_uri
from deft.sweeps.cells import Cell, Plan
from deft.sweeps.directory import SweepDirectory
from deft.sweeps.placement import Placement, place
from deft.sweeps.progress import SweepView
from deft.sweeps.report.write import write_report
from deft.sweeps.spec import AshaSpec
from deft.sweeps.trial import Trial

MAX_REPORTS = 1_000_000
"""More held-out losses than any cell reports."""

TRIAL_RESOURCES = {"memory": 1.0}
"""A trial only waits for its training workers, which reserve devices themselves; but Ray Tune wants
something reserved: a byte of memory."""


def run_sweep(
    plan: Plan,
    root: Path,
    console: RunConsole,
    tracking_uri: str,
    *,
    verbose: bool,
) -> SweepDirectory:
    """Run every cell that is not finished yet, and report on all; one that fails fails alone.

    Args:
        plan: the sweep.
        root: run root, which every node of the cluster sees.
        console: where progress is shown.
        tracking_uri: MLflow tracking URI.
        verbose: whether Ray's, DeepSpeed's and vLLM's own output is shown.

    Raises:
        UserError: the input cannot be used; nothing was written for it.
    """
    cells = {cell.run: cell for cell in (*plan.models.values(), *plan.cells)}
    for objective in dict.fromkeys(cell.spec.objective for cell in cells.values()):
        require_importable(objective)
    require_tracking_uri(tracking_uri)
    directory = SweepDirectory.of(plan, root)
    name = directory.path.name
    with ray_cluster(verbose=verbose), directory.locked():
        placement = place_cells(plan)
        directory.create(plan)
        finished = [run for run in cells if directory.is_finished(run)]
        done = f", {len(finished)} finished already" if finished else ""
        console.stage("sweep", f"{name}: {len(cells)} cells{done} · {say(placement)}")
        with SweepRecorder(directory.path, name, tracking_uri, console.say) as recorder:
            recorder.log_params(plan.spec.model_dump(mode="json", exclude={"base", "models"}))
            for run in finished:
                recorder.add_cell(directory.root / run)
            try:
                run_all(plan, directory, placement, recorder, console, tracking_uri, verbose)
                report = write_report(directory.path, directory.root, console)
            except BaseException as error:
                recorder.fail(error)
                raise
            failed = sum(directory.failure(run) is not None for run in cells)
            recorder.log_metrics({"cells": len(cells), "failed_cells": failed})
            recorder.log_artifacts(report)
            if recorder.finish() is None:
                console.say("warning: MLflow does not answer; the same command delivers later")
    return directory


def run_all(
    plan: Plan,
    directory: SweepDirectory,
    placement: Placement,
    recorder: SweepRecorder,
    console: RunConsole,
    tracking_uri: str,
    verbose: bool,
) -> None:
    """Run what comes first, then every cell, on the cluster this process is connected to."""
    cells = {cell.run: cell for cell in (*plan.models.values(), *plan.cells)}
    view = SweepView(directory, cells, console)
    with ExitStack() as stack:
        pool = None
        if placement.num_engines:
            pool = SharedPool(
                plan.cells[0].spec.evaluation.engine,
                placement.num_engines,
                use_gpu=placement.reserved,
                reserve=placement.reserved,
                verbose=verbose,
            )
            stack.enter_context(pool)
        events = stack.enter_context(event_queue(view.handle))
        view.bars = stack.enter_context(console.progress("cells"))
        trial = Trial(
            root=str(directory.root),
            sweep=directory.path.name,
            tracking_uri=tracking_uri,
            events=events,
            pool=pool,
            reports=plan.spec.asha is not None,
            verbose=verbose,
            directory=os.getcwd(),
            python_path=tuple(sys.path),
        )

        def ended(run: str) -> None:
            recorder.add_cell(directory.root / run)

        models = list(plan.models.values())
        run_cells(plan, models, directory, trial.__call__, placement, view, ended)
        ready = []
        for cell in plan.cells:
            cause = directory.failure(cell.after) if cell.after else None
            if cause is None:
                ready.append(cell)
            else:
                cause = f"the model it starts from failed: {cause}"
                directory.forget_failure(cell.run)
                directory.fail(cell.run, cause)
                view.failed(cell.run, cause)
        run_cells(plan, ready, directory, trial.__call__, placement, view, ended)


def place_cells(plan: Plan) -> Placement:
    """Divide the cluster this process is connected to.

    Raises:
        UserError: it cannot hold the largest cell.
    """
    specs = [cell.spec for cell in (*plan.models.values(), *plan.cells)]
    least = max(spec.training.min_workers or spec.training.num_workers for spec in specs)
    use_gpu = require_workers(least)
    generating = [spec for spec in specs if spec.evaluation.suite]
    for spec in generating[:1]:  # they share their engines
        require_engine(spec.evaluation, use_gpu=use_gpu)
    resources = ray.cluster_resources()
    placement = place(
        num_cpus=resources.get("CPU", 0),
        num_gpus=resources.get("GPU", 0),
        num_nodes=sum(node["Alive"] for node in ray.nodes()),
        num_workers=max(spec.training.num_workers for spec in specs),
        tensor_parallel=specs[0].evaluation.engine.tensor_parallel,
        generates=bool(generating),
    )
    limit = plan.spec.max_concurrent or placement.num_cells
    return Placement(
        min(placement.num_cells, limit), placement.num_engines, reserved=placement.reserved
    )


def say(placement: Placement) -> str:
    """A placement in words."""
    cells, engines = placement.num_cells, placement.num_engines
    shared = f"{engines} warm engine{'' if engines == 1 else 's'} for all"
    return f"{cells} at a time, {shared if engines else 'an engine for each that needs one'}"


def run_cells(
    plan: Plan,
    cells: Sequence[Cell],
    directory: SweepDirectory,
    trial: Callable[[dict[str, Any]], None],
    placement: Placement,
    view: SweepView,
    ended: Callable[[str], None],
) -> None:
    """Have Ray Tune run those of ``cells`` that are not finished, each by a call of ``trial``.

    ``ended`` is told the name of each run that has come to an end, whichever.
    """
    runs = [cell.run for cell in cells if not directory.is_finished(cell.run)]
    if not runs:
        return
    for run in runs:
        directory.forget_failure(run)
    storage = directory.path / "tune"
    # Read by Ray Tune; what it would print is shown by the view.
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_PRINT_ALL_TRIAL_ERRORS"] = "0"
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    # An interrupt ends this process at once; whatever is finished is on disk.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    tuner = tune.Tuner(
        tune.with_resources(trial, tune.PlacementGroupFactory([TRIAL_RESOURCES])),
        param_space={"run": tune.grid_search(runs)},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=placement.num_cells,
            # A new process for each would load everything anew; a stopped one cannot be used again.
            reuse_actors=plan.spec.asha is None,
            scheduler=_scheduler(plan.spec.asha),
            trial_dirname_creator=lambda trial: str(trial.config["run"]),
        ),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=str(storage),
            failure_config=tune.FailureConfig(max_failures=plan.spec.retries),
            callbacks=[_Watch(directory, view, ended)],
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    finally:
        # Which cells are finished is known from their directories.
        shutil.rmtree(storage, ignore_errors=True)


def _scheduler(asha: AshaSpec | None) -> TrialScheduler | None:
    if asha is None:
        return None
    return ASHAScheduler(
        time_attr="step",
        metric="nll",
        mode="min",
        grace_period=asha.grace_steps,
        reduction_factor=asha.reduction_factor,
        max_t=MAX_REPORTS,
    )


class _Watch(TrialProgressCallback):
    """Keeps and shows how trials end; takes the place of Ray Tune's own lines about them."""

    def __init__(
        self, directory: SweepDirectory, view: SweepView, ended: Callable[[str], None]
    ) -> None:
        self.directory = directory
        self.view = view
        self.ended = ended

    def on_trial_result(self, *_: Any, **__: Any) -> None:
        """How far a trial is, it says itself."""

    def __getstate__(self) -> dict[str, Any]:
        # Ray Tune stores its callbacks to restore an experiment; here cells restore themselves.
        return {}

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        run = trial.config["run"]
        if self.directory.is_evaluated(run):
            self.view.finished(run)
            self.ended(run)
        else:
            self._fail(run, "stopped early: others were ahead of it on held-out examples")

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self.view.retried(trial.config["run"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        # A trial that raises leaves the cause itself.
        self._fail(trial.config["run"], "its process died")

    def _fail(self, run: str, otherwise: str) -> None:
        if self.directory.failure(run) is None:
            self.directory.fail(run, otherwise)
        self.view.failed(run, self.directory.failure(run) or otherwise)
        self.ended(run)
