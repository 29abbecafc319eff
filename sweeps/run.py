"""From a plan to a finished sweep: Ray runs the cells, which share warm engines."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any

import ray

from deft.evaluators.generation.shared_pool import SharedPool
from deft.platform.records.root_use import using
from deft.platform.run.cluster import event_queue, require_workers
from deft.platform.run.context import RunContext
from deft.platform.run.driver import require_importable
from deft.platform.run.evaluation import require_engine
from deft.platform.run.ray_train import STOP_GRACE
from deft.platform.run.training_slots import TrainingSlots
from deft.platform.signals import received_signal
from deft.platform.tracking.links import run_link
from deft.platform.tracking.sweep_recorder import SweepRecorder
from deft.platform.tracking.uri import require_tracking_uri, warn_if_unreachable
from deft.sweeps.asha import run_with_asha
from deft.sweeps.cell_pool import run_on_actors
from deft.sweeps.cells import Plan, PlannedCell
from deft.sweeps.directory import SweepDirectory
from deft.sweeps.placement import Placement, divide_cluster
from deft.sweeps.progress import SweepView
from deft.sweeps.report.write import write_report
from deft.sweeps.spec import SweepSpec
from deft.sweeps.trial import Trial
from deft.sweeps.watch import CellWatch
from deft.workers.common.files import exclusive
from deft.workers.common.stop_request import request_stop
from deft.workers.common.text import plural


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
    with using(context.root), context.cluster(), directory.locked():
        warn_if_unreachable(context.tracking_uri, console.print)
        placement = place_cells(plan)
        warn_of_shared_sqlite(context)
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
                with console.waiting("writing the report"):
                    report = write_report(directory.path, directory.root, console)
            except KeyboardInterrupt:
                ray.shutdown()  # or a cell could say that it runs after it was marked
                for run in filter(directory.is_begun, cells):
                    recorder.end_cell(directory.root / run)
                raise
            except Exception as error:
                recorder.fail(error)
                raise
            failed = sum(directory.failure(run) is not None for run in cells)
            recorder.log_metrics({"cells": len(cells), "failed_cells": failed})
            recorder.log_artifacts(report)
            with console.waiting("handing the report to MLflow"):
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
    slots = TrainingSlots(directory.path / "slots", placement.num_training)
    context = replace(context, slots=slots)
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
        view.shown_in(stack.enter_context(context.console.progress("cells")))
        events, _ = stack.enter_context(event_queue(view.handle))
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
    placement = divide_cluster(
        [node["Resources"] for node in ray.nodes() if node["Alive"]],
        num_workers=max(spec.training.num_workers for spec in specs),
        tensor_parallel=specs[0].evaluation.engine.tensor_parallel,
        generates=bool(generating),
        measures=any(spec.evaluation.heldout is not None for spec in specs),
    )
    limit = plan.spec.max_concurrent or placement.num_cells
    return replace(placement, num_cells=min(placement.num_cells, limit))


def warn_of_shared_sqlite(context: RunContext) -> None:
    """Warn if cells on several nodes will write to one SQLite file, whose locks may not hold."""
    num_nodes = sum(node["Alive"] for node in ray.nodes())
    if num_nodes > 1 and context.tracking_uri.startswith("sqlite"):
        context.console.print(
            f"warning: {num_nodes} nodes would write to MLflow's SQLite file; on a network file "
            "system it may lock up or be damaged. Start `mlflow server` on one node and give its "
            "address as --tracking-uri"
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
    """Run those of ``cells`` that are not finished, each by a call of ``trial``.

    Ray Tune runs them where ASHA may stop some; it takes hundreds of milliseconds for each.

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
    try:
        if spec.asha is None:
            run_on_actors(runs, trial, watch, num_parallel=num_parallel, retries=spec.retries)
        else:
            run_with_asha(
                runs, trial, watch, spec.asha, num_parallel=num_parallel, retries=spec.retries
            )
    except KeyboardInterrupt:
        if received_signal() == signal.SIGTERM:
            stop_cells(directory, runs)
        raise


def stop_cells(directory: SweepDirectory, runs: Sequence[str]) -> None:
    """Let those of ``runs`` that train store a checkpoint, for `STOP_GRACE` seconds at most."""
    request_stop()
    deadline = time.monotonic() + STOP_GRACE
    for run in filter(directory.is_training, runs):
        lock = directory.root / run / ".lock"
        patience = max(deadline - time.monotonic(), 0.0)
        with suppress(BlockingIOError), exclusive(lock, patience=patience):
            pass
