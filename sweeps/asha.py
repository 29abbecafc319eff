"""Cells as trials of Ray Tune, whose ASHA stops those that others are ahead of."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from typing import Any

from ray import tune
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import ASHAScheduler

from deft.sweeps.spec import AshaSpec
from deft.sweeps.watch import CellWatch

MAX_REPORTS = 1_000_000
"""Upper bound of the held-out losses that a cell reports."""

TRIAL_RESOURCES = {"memory": 1.0}
"""A trial only waits for its training workers, which reserve devices themselves; but Ray Tune wants
something reserved: a byte of memory."""


def run_with_asha(
    runs: Sequence[str],
    trial: Callable[[dict[str, Any]], None],
    watch: CellWatch,
    asha: AshaSpec,
    *,
    num_parallel: int,
    retries: int,
) -> None:
    """Run cells, see `run_on_actors`, and stop early those that ``asha`` says."""
    storage = watch.directory.path / "tune"
    # Read by Ray Tune; what it would print is shown by the view.
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_PRINT_ALL_TRIAL_ERRORS"] = "0"
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    # An interrupt ends this process at once; whatever is finished is on disk.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    tuner = tune.Tuner(
        tune.with_resources(trial, tune.PlacementGroupFactory([TRIAL_RESOURCES])),
        param_space={"run": tune.grid_search(list(runs))},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=num_parallel,
            scheduler=ASHAScheduler(
                time_attr="step",
                metric="nll",
                mode="min",
                grace_period=asha.grace_steps,
                reduction_factor=asha.reduction_factor,
                max_t=MAX_REPORTS,
            ),
            trial_dirname_creator=lambda trial: str(trial.config["run"]),
        ),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=str(storage),
            failure_config=tune.FailureConfig(max_failures=retries),
            callbacks=[TrialWatch(watch)],
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    finally:
        # Which cells are finished is known from their directories.
        shutil.rmtree(storage, ignore_errors=True)


class TrialWatch(TrialProgressCallback):
    """Tells a `CellWatch` what Ray Tune's trials do, in place of Ray Tune's own lines."""

    def __init__(self, watch: CellWatch) -> None:
        self._watch = watch

    def on_trial_result(self, *_: Any, **__: Any) -> None:
        """Print nothing: a cell reports its own progress."""

    def __getstate__(self) -> dict[str, Any]:
        # Ray Tune stores its callbacks to restore an experiment; here cells restore themselves.
        return {}

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._watch.completed(trial.config["run"])

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._watch.retried(trial.config["run"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._watch.failed(trial.config["run"])
