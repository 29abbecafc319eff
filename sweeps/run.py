"""From a plan to a finished sweep: Ray Tune runs the cells, which share warm engines."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import ray
from ray import tune
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from deft.evaluators.generation.shared_pool import SharedPool
from deft.platform.run.cluster import event_queue, ray_cluster, require_workers
from deft.platform.run.context import RunContext
from deft.platform.run.driver import require_importable
from deft.platform.run.evaluation import require_engine
from deft.platform.tracking.links import run_link
from deft.platform.tracking.sweep_recorder import SweepRecorder
from deft.platform.tracking.uri import require_tracking_uri, warn_if_unreachable
from deft.sweeps.cells import Plan, PlannedCell
from deft.sweeps.directory import SweepDirectory
from deft.sweeps.placement import Placement, divide_cluster
from deft.sweeps.progress import SweepView
from deft.sweeps.report.write import write_report
from deft.sweeps.spec import AshaSpec, SweepSpec
from deft.sweeps.trial import Trial
from deft.workers.common.text import plural

MAX_REPORTS = 1_000_000
"""Upper bound of the held-out losses that a cell reports."""

TRIAL_RESOURCES = {"memory": 1.0}
"""A trial only waits for its training workers, which reserve devices themselves; but Ray Tune wants
something reserved: a byte of memory."""


def run_sweep(plan: Plan, context: RunContext) -> SweepDirectory:
    """Run every cell that is not finished yet, and report on all; one that fails fails alone.

    Args:
        plan: the sweep.
        context: what its cells share; every node of the cluster sees the run root.

    Raises:
        UserError: the input cannot be used; nothing was written for it.
    """
    cells = {cell.run: cell for cell in (*plan.models.values(), *plan.cells)}
    for objective in dict.fromkeys(cell.spec.objective for cell in cells.values()):
        require_importable(objective)
    require_tracking_uri(context.tracking_uri)
    directory, console = SweepDirectory.of(plan, context.root), context.console
    name = directory.path.name
    with ray_cluster(verbose=context.verbose), directory.locked():
        warn_if_unreachable(context.tracking_uri, console.print)
        placement = place_cells(plan)
        directory.create(plan)
        finished = [run for run in cells if directory.is_finished(run)]
        done = f", {len(finished)} finished already" if finished else ""
        console.stage(
            "sweep", f"{name}: {len(cells)} cells{done} · {describe_placement(placement)}"
        )
        with SweepRecorder(directory.path, name, context.tracking_uri, console.print) as recorder:
            recorder.log_params(plan.spec.model_dump(mode="json", exclude={"base", "models"}))
            for run in finished:
                recorder.add_cell(directory.root / run)
            try:
                run_all(plan, directory, placement, recorder, context)
                report = write_report(directory.path, directory.root, console)
            except BaseException as error:
                recorder.fail(error)
                raise
            failed = sum(directory.failure(run) is not None for run in cells)
            recorder.log_metrics({"cells": len(cells), "failed_cells": failed})
            recorder.log_artifacts(report)
            run_id = recorder.finish()
            if run_id is None:
                console.print("warning: MLflow does not answer; the same command delivers later")
            else:
                console.stage("record", run_link(context.tracking_uri, run_id))
    return directory


def run_all(
    plan: Plan,
    directory: SweepDirectory,
    placement: Placement,
    recorder: SweepRecorder,
    context: RunContext,
) -> None:
    """Run the models that cells start from, then every cell, on the connected cluster."""
    cells = {cell.run: cell for cell in (*plan.models.values(), *plan.cells)}
    view = SweepView(directory, cells, context.console)
    watch = CellWatch(directory, view, lambda run: recorder.add_cell(directory.root / run))
    with ExitStack() as stack:
        if placement.num_engines:
            pool = SharedPool(
                plan.cells[0].spec.evaluation.engine,
                placement.num_engines,
                use_gpu=placement.reserved,
                reserve=placement.reserved,
                verbose=context.verbose,
            )
            context = replace(context, pool=stack.enter_context(pool))
        events = stack.enter_context(event_queue(view.handle))
        view.bars = stack.enter_context(context.console.progress("cells"))
        trial = Trial(
            context=context,
            sweep=directory.path.name,
            events=events,
            reports=plan.spec.asha is not None,
            directory=os.getcwd(),
            python_path=tuple(sys.path),
        )
        models = list(plan.models.values())
        run_cells(plan.spec, models, trial.__call__, watch, placement.num_cells)
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
        run_cells(plan.spec, ready, trial.__call__, watch, placement.num_cells)


def place_cells(plan: Plan) -> Placement:
    """Divide the connected cluster among cells and engines.

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
    placement = divide_cluster(
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


def describe_placement(placement: Placement) -> str:
    """Describe a placement in words."""
    cells, engines = placement.num_cells, placement.num_engines
    shared = f"{plural(engines, 'warm engine')} for all"
    return f"{cells} at a time, {shared if engines else 'an engine for each that needs one'}"


def run_cells(
    spec: SweepSpec,
    cells: Sequence[PlannedCell],
    trial: Callable[[dict[str, Any]], None],
    watch: CellWatch,
    num_parallel: int,
) -> None:
    """Let Ray Tune run those of ``cells`` that are not finished, each by a call of ``trial``.

    Args:
        spec: rules of the sweep.
        cells: what to run.
        trial: called with ``{"run": name}`` in a process of its own.
        watch: stores and shows how each cell ends.
        num_parallel: cells that run at a time.
    """
    directory = watch.directory
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
            max_concurrent_trials=num_parallel,
            # A new process for each would load everything anew; a stopped one cannot be used again.
            reuse_actors=spec.asha is None,
            scheduler=_scheduler(spec.asha),
            trial_dirname_creator=lambda trial: str(trial.config["run"]),
        ),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=str(storage),
            failure_config=tune.FailureConfig(max_failures=spec.retries),
            callbacks=[watch],
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


class CellWatch(TrialProgressCallback):
    """Stores and shows how cells end; replaces Ray Tune's own lines about its trials."""

    def __init__(
        self, directory: SweepDirectory, view: SweepView, ended: Callable[[str], None]
    ) -> None:
        """Watch the cells of a sweep.

        Args:
            directory: of the sweep.
            view: where ends are shown.
            ended: called with the name of each run that has ended, whether it failed or not.
        """
        self.directory = directory
        self.view = view
        self.ended = ended

    def on_trial_result(self, *_: Any, **__: Any) -> None:
        """Print nothing: a cell reports its own progress."""

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
        # A trial that raises has recorded the cause itself.
        self._fail(trial.config["run"], "its process died")

    def _fail(self, run: str, otherwise: str) -> None:
        if self.directory.failure(run) is None:
            self.directory.fail(run, otherwise)
        self.view.failed(run, self.directory.failure(run) or otherwise)
        self.ended(run)
