"""What all MLflow runs of this platform share: a queue on disk, and a thread that delivers it.

Metric names and tags are an interface: people filter and group by them in the MLflow UI. Nothing
here waits for MLflow but the end of a run, for a limited time; see `deft.platform.tracking.outbox`.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self

from deft.platform.errors import describe_error
from deft.platform.records.manifests import EvaluateManifest
from deft.platform.records.results import is_bound, metric_rows, save_csv
from deft.platform.records.run_directory import AnySpec, RunDirectory
from deft.platform.tracking.outbox import DeliveryThread, Destination, Outbox
from deft.platform.tracking.provenance import git_state, package_versions
from deft.platform.tracking.system_metrics import SystemMetricsThread
from deft.platform.tracking.uri import require_tracking_uri
from deft.workers.common.clock import now_ms
from deft.workers.common.files import write_atomic

DELIVERY_TIMEOUT = 60.0
"""Seconds without progress after which the end of a run no longer waits for MLflow."""

DELIVERY_TIMEOUT_AFTER_FAILURE = 15.0
"""The same where the run itself failed."""

DELIVERY_TIMEOUT_AFTER_SIGNAL = 5.0
"""The same where the command was asked to end: `docker stop` kills after ten."""


class MlflowQueue:
    """An outbox and the thread that delivers it to MLflow, for as long as a block runs."""

    def __init__(
        self, directory: Path, name: str, tracking_uri: str, notify: Callable[[str], None]
    ) -> None:
        """Prepare to send; nothing is sent before the block is entered.

        Args:
            directory: where the queue lies.
            name: of the MLflow run.
            tracking_uri: of MLflow.
            notify: called once with a message that MLflow cannot be reached, and why.

        Raises:
            UserError: the URI can never be used.
        """
        require_tracking_uri(tracking_uri)
        _limit_client_retries()
        self.tracking_uri = tracking_uri
        self._outbox = Outbox(directory, name)

        def connect() -> Destination:
            # Importing MLflow takes seconds, so it is done in the delivery thread.
            from deft.platform.tracking.mlflow_run import MlflowRun

            return MlflowRun(self._outbox, tracking_uri)

        self._delivery = DeliveryThread(self._outbox, connect, notify)

    def _start(self, tags: Mapping[str, str], params: Mapping[str, Any]) -> None:
        self._outbox.append({"status": "RUNNING", "time": now_ms()})
        self._outbox.append({"tags": {**tags, **_origin()}})
        self._outbox.append({"params": dict(params)})
        self._delivery.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, KeyboardInterrupt):
            self._end("KILLED", DELIVERY_TIMEOUT_AFTER_SIGNAL)
        self._delivery.stop()

    def fail(self, error: BaseException) -> None:
        """Close the run as failed, with its cause as a tag."""
        self._outbox.append({"tags": {"deft.error": describe_error(error)[:4000]}})
        self._end("FAILED", DELIVERY_TIMEOUT_AFTER_FAILURE)

    def _send_files(self, path: Path, folder: str | None = None) -> None:
        """Queue a file, or every file below a directory, by paths that outlive a move of it."""
        if path.is_dir():
            for child in sorted(path.iterdir()):
                self._send_files(child, f"{folder}/{path.name}" if folder else path.name)
        elif path.exists():
            inside = path.is_relative_to(self._outbox.directory)
            kept = path.relative_to(self._outbox.directory) if inside else path.absolute()
            self._outbox.append({"artifact": str(kept), "folder": folder})

    def _finish(self, time: int | None = None) -> str | None:
        """Queue the regular end of the run; return its id as `_end` does."""
        return self._end("FINISHED", DELIVERY_TIMEOUT, time)

    def _end(self, status: str, patience: float, time: int | None = None) -> str | None:
        """Queue the end of the run; return its MLflow id, or None if not all was delivered."""
        self._outbox.append({"status": status, "time": time or now_ms()})
        return self._outbox.delivered.run_id if self._delivery.flush(patience) else None


class Recorder(MlflowQueue, ABC, Generic[AnySpec]):
    """The MLflow run of one run directory, for as long as the block runs.

    Everything it is given is on disk when a method returns. MLflow gets it when it can.
    """

    kind: str
    """Value of the tag `deft.kind`."""
    command: str
    """The command that made the run."""

    def __init__(
        self, run: RunDirectory[AnySpec], tracking_uri: str, notify: Callable[[str], None]
    ) -> None:
        """Prepare to send, see `MlflowQueue`; the caller holds the lock of ``run``."""
        super().__init__(run.path, run.path.name, tracking_uri, notify)
        self.run = run
        self._system = SystemMetricsThread(lambda step, use: self.log(step, use, now_ms()))

    def __enter__(self) -> Self:
        tags = {
            "deft.run": self.run.path.name,
            "deft.kind": self.kind,
            "deft.directory": str(self.run.path.resolve()),
            "mlflow.source.name": self.command,
            "mlflow.note.content": self.description(),
        }
        self._start(tags, self.params())
        self._system.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._system.stop()
        super().__exit__(*error)

    @abstractmethod
    def description(self) -> str:
        """Describe the run in a few lines of Markdown, for people who find it in MLflow."""

    @abstractmethod
    def params(self) -> dict[str, Any]:
        """Return the run's settings as MLflow parameters."""

    @abstractmethod
    def dataset_of(self, benchmark: str) -> dict[str, str] | None:
        """Return name and digest of the data that a benchmark, or the loss, is measured on."""

    def log(
        self,
        step: int,
        metrics: Mapping[str, float],
        time: int,
        *,
        dataset: Mapping[str, str] | None = None,
        of_model: bool = False,
    ) -> None:
        """Log metrics of one step.

        Args:
            step: the optimizer step.
            metrics: name → value.
            time: when they were measured, in milliseconds since the epoch.
            dataset: name and digest of what they were measured on.
            of_model: whether they are of the model that this run trained or evaluates.
        """
        entry = {"step": step, "time": time, "metrics": dict(metrics), "of_model": of_model}
        self._outbox.append({**entry, "dataset": dict(dataset)} if dataset else entry)

    def log_result(
        self, step: int, label: str, benchmark: str, metrics: Mapping[str, float], time: int
    ) -> None:
        """Log ``<label>/<benchmark>/<metric>``, linked to the data and, if trained, the model.

        Intervals and counts would each get a chart of their own: they are in `results.csv`.
        """
        prefixed = {
            f"{label}/{benchmark}/{name}": value
            for name, value in metrics.items()
            if not is_bound(name) and not name.startswith("num_")
        }
        dataset = self.dataset_of(benchmark)
        self.log(step, prefixed, time, dataset=dataset, of_model=label == "eval")

    def describe_code(self) -> None:
        """Log the commit, the uncommitted diff and the packages of the process that does it."""
        git = git_state()
        if git:
            self._outbox.append({"tags": {"mlflow.source.git.commit": git["commit"]}})
            write_atomic(self.run.path / "code.diff", git["diff"])
        write_atomic(self.run.path / "packages.txt", package_versions())

    def finish(self) -> str | None:
        """Queue files, environment and the end of the run, and wait for MLflow to take them.

        Returns:
            Id of the MLflow run; None if MLflow took nothing for `DELIVERY_TIMEOUT` seconds.
        """
        last = self.run.manifest(EvaluateManifest)
        if last is not None:
            rows = [row.model_dump() for row in metric_rows(last.models)]
            save_csv(rows, self.run.path / "results.csv")
        for name in ("spec.json", "events.jsonl", "results.csv", "code.diff", "packages.txt"):
            self._send_files(self.run.path / name)
        for name in ("figures", "predictions"):
            self._send_files(self.run.path / name)
        return self._finish(last.finished_at if last else None)


def _limit_client_retries() -> None:
    """Let MLflow's client fail fast and log little: the delivery thread retries and warns once."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    # What was sent may have been done: the thread looks before it asks for a run a second time.
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    # Read when mlflow is imported; what it would log it also raises.
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    logging.getLogger("urllib3").setLevel(logging.ERROR)


def _origin() -> dict[str, str]:
    origin = {"mlflow.source.type": "LOCAL"}
    # In a container the user may have no name.
    with contextlib.suppress(KeyError, OSError):
        origin["mlflow.user"] = getpass.getuser()
    return origin


def items_key(file: str) -> dict[str, str]:
    """Return name and digest of the items in a file that `prepare_items` named by its content."""
    name, _, digest = Path(file).stem.rpartition("-")
    return {"name": name, "digest": digest}


def items_dataset(file: str) -> dict[str, Any]:
    """Describe the items of a benchmark as an MLflow dataset."""
    with Path(file).open("rb") as lines:
        profile = {"num_rows": sum(1 for _ in lines)}
    return {
        **items_key(file),
        "context": "evaluation",
        "source_type": "local",
        "source": json.dumps({"uri": file}),
        "profile": json.dumps(profile),
    }


def key_of_benchmark(items: Mapping[str, str], benchmark: str) -> dict[str, str] | None:
    """Return name and digest of a benchmark's items, if they are among the files ``items``."""
    keys = map(items_key, items.values())
    return next((key for key in keys if key["name"] == benchmark), None)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted keys; ``x.name`` becomes ``x``, so that people can filter.

    Items of a list are keyed by their names, as in ``evaluation.benchmarks.figfont.size``; a list
    whose items have no names of their own stays one value.
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = prefix if key == "name" and prefix else f"{prefix}.{key}".lstrip(".")
        if isinstance(value, list) and all(isinstance(item, dict) for item in value):
            names = [item.get("name") for item in value]
            if None not in names and len(set(names)) == len(names):
                items = [{k: v for k, v in item.items() if k != "name"} for item in value]
                value = dict(zip(names, items, strict=True))
        flat |= flatten(value, path) if isinstance(value, Mapping) else {path: value}
    return flat
