"""Recording of a run's results and failures in MLflow."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from deft.platform.console import RunConsole
from deft.platform.errors import StageError, UserError, describe_error, root_cause
from deft.platform.records.manifests import EvaluateManifest, RecordManifest
from deft.platform.tracking.links import run_link
from deft.platform.tracking.recorder import DELIVERY_TIMEOUT, MlflowQueue, Recorder


@contextmanager
def record_failure(recorder: MlflowQueue, stage: str) -> Iterator[None]:
    """Record an exception of the block as the failure of its MLflow run.

    Raises:
        UserError: the input cannot be used.
        StageError: anything else went wrong in ``stage``.
    """
    try:
        yield
    except Exception as error:
        cause = root_cause(error)
        recorder.fail(cause)
        if isinstance(cause, UserError):
            raise cause from None
        raise StageError(f"{stage}: {describe_error(cause)}") from error


def record_results(
    recorder: Recorder[Any], manifest: EvaluateManifest, steps: Mapping[str, int]
) -> None:
    """Log ``<label>/<benchmark>/<metric>`` of every model, at the training step of its label.

    ``<label>/mean/<metric>`` is the mean over benchmarks.
    """
    for label, model in manifest.models.items():
        for benchmark, metrics in model.metrics.items():
            recorder.log_result(steps[label], label, benchmark, metrics, manifest.finished_at)
    for label, model in manifest.models.items():
        if model.means:
            named = {f"{label}/mean/{name}": value for name, value in model.means.items()}
            recorder.log(steps[label], named, manifest.finished_at)


def finish_record(recorder: Recorder[Any], console: RunConsole) -> None:
    """Close the MLflow run; without an answer from MLflow the record stage stays unfinished."""
    started = time.monotonic()
    with console.waiting("handing results to MLflow"):
        run_id = recorder.finish()
    if run_id is None:
        console.print(
            f"warning: MLflow took nothing for {DELIVERY_TIMEOUT:.0f} s; all results are in "
            f"{recorder.run.path}, and the same command delivers them when MLflow is there"
        )
        return
    link = run_link(recorder.tracking_uri, run_id)
    recorder.run.finish(RecordManifest(mlflow_run_id=run_id, link=link))
    seconds = time.monotonic() - started
    console.stage("record", f"{link} ({seconds:.0f} s)")
