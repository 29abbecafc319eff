"""One MLflow run; every write to it is idempotent.

A response can be lost after the server has done its work. Whatever is created here is therefore
looked up before it is created again, and logging the same entry twice has no effect in MLflow.
"""

from __future__ import annotations

import glob
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelInput,
    LoggedModelOutput,
    Metric,
    Param,
    RunTag,
)
from mlflow.exceptions import MlflowException

from deft.platform.errors import describe_error
from deft.platform.tracking.outbox import Outbox, QueueEntry, RefusedError, read_delivered
from deft.workers.common.files import exclusive

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Run

EXPERIMENT = "deft"
"""The one MLflow experiment of all runs, so that any two can be compared."""

MODEL_TRAINING = {"mlflow.experimentKind": "custom_model_development"}
"""Experiment tag that makes the MLflow UI open on runs instead of on traces of LLM calls."""

PARENT = "mlflow.parentRunId"
"""The tag by which MLflow nests runs."""


class MlflowRun:
    """The MLflow run of one directory: a `deft.platform.tracking.outbox.Destination`.

    Attributes:
        run_id: MLflow's id of it.
    """

    def __init__(self, outbox: Outbox, tracking_uri: str) -> None:
        """Find the run, or create it.

        Raises:
            MlflowException: MLflow cannot be used now.
        """
        self._outbox = outbox
        with _one_at_a_time(tracking_uri):
            self.client = MlflowClient(tracking_uri)
            self.experiment_id = self._find_or_create_experiment(tracking_uri)
        self.run_id = self._find_run() or self._create_run()

    def _find_or_create_experiment(self, tracking_uri: str) -> str:
        experiment = self.client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            database = sqlite_file(tracking_uri)
            beside = _artifacts_beside(database) if database else None
            try:
                return self.client.create_experiment(
                    EXPERIMENT, artifact_location=beside, tags=MODEL_TRAINING
                )
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            # Another run was first.
            experiment = self.client.get_experiment_by_name(EXPERIMENT)
            assert experiment is not None
        return str(experiment.experiment_id)

    def _find_run(self) -> str | None:
        """Find the run of this directory; delete duplicates.

        Duplicates arise when a server is so slow to create a run that it is asked again.
        """
        delivered = self._outbox.delivered
        run_ids = [run.info.run_id for run in self._search(f"tags.`deft.id` = '{delivered.id}'")]
        if not run_ids:
            return None
        kept = delivered.run_id if delivered.run_id in run_ids else min(run_ids)
        for run_id in run_ids:
            if run_id != kept:
                self.client.delete_run(run_id)
        return kept

    def _create_run(self) -> str:
        delivered = self._outbox.delivered
        created = self.client.create_run(
            self.experiment_id,
            start_time=delivered.created_at,
            run_name=delivered.name,
            tags={"deft.id": delivered.id},
        )
        return str(created.info.run_id)

    def _search(self, condition: str) -> list[Run]:
        return list(self.client.search_runs([self.experiment_id], condition))

    def apply(self, entries: Sequence[QueueEntry]) -> None:
        """Send entries of an outbox: any number of metrics, or one of anything else.

        Raises:
            RefusedError: MLflow answers that it will not take one of them.
            Exception: MLflow cannot be used now.
        """
        try:
            if "metrics" in entries[0]:
                self._log_metrics(entries)
            else:
                for entry in entries:
                    self._apply(entry)
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE" or self._is_deleted():
                raise
            raise RefusedError(describe_error(error)) from error

    def _is_deleted(self) -> bool:
        return bool(self.client.get_run(self.run_id).info.lifecycle_stage == "deleted")

    def _apply(self, entry: QueueEntry) -> None:
        match entry:
            case {"params": params}:
                self._log(params=[Param(key, str(value)) for key, value in params.items()])
            case {"tags": tags}:
                self._set_tags(self.run_id, tags)
            case {"artifact": path, "folder": folder}:
                self._log_artifact(Path(path), folder)
            case {"datasets": datasets}:
                self.client.log_inputs(self.run_id, datasets=[_dataset(x) for x in datasets])
            case {"model": model}:
                self._log_model(model)
            case {"evaluates": directory}:
                self._link_to_training(Path(directory))
            case {"child": directory, "sweep": sweep}:
                self._adopt(Path(directory), sweep)
            case {"killed": directory, "time": time}:
                self._end_killed(Path(directory), time)
            case {"sweep": sweep}:
                self._join_sweep(self.client.get_run(self.run_id), sweep, self._parent_of(sweep))
            case {"status": status, "time": time}:
                self._set_status(status, time)

    def _log(self, **batch: Any) -> None:
        self.client.log_batch(self.run_id, **batch, synchronous=True)

    def _set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        batch = [RunTag(key, value) for key, value in tags.items()]
        self.client.log_batch(run_id, tags=batch, synchronous=True)

    def _log_metrics(self, entries: Sequence[QueueEntry]) -> None:
        metrics = []
        model = self._linked_model() if any(entry.get("of_model") for entry in entries) else None
        for entry in entries:
            linked: dict[str, Any] = {}
            if dataset := entry.get("dataset"):
                linked = {"dataset_name": dataset["name"], "dataset_digest": dataset["digest"]}
            for name, value in entry["metrics"].items():
                # MLflow would store 0 for NaN as a metric of a model.
                of = model if entry.get("of_model") and math.isfinite(value) else None
                metrics.append(
                    Metric(name, value, entry["time"], entry["step"], model_id=of, **linked)
                )
        self._log(metrics=metrics)

    def _log_artifact(self, path: Path, folder: str | None) -> None:
        if not path.is_absolute():
            path = self._outbox.directory / path
        if not path.exists():
            raise RefusedError(f"{path} is gone")
        self.client.log_artifact(self.run_id, str(path), folder)

    def _log_model(self, model: Mapping[str, Any]) -> None:
        """Create the logged model that this run trained, as its output."""
        logged = find_model(self.client, self.experiment_id, self.run_id)
        logged = logged or self.client.create_logged_model(
            self.experiment_id,
            name=model["name"],
            source_run_id=self.run_id,
            tags=model["tags"],
            params=model["params"],
            model_type="causal-lm",
        )
        if str(logged.status) != "READY":
            self.client.finalize_logged_model(logged.model_id, "READY")
        outputs = self.client.get_run(self.run_id).outputs
        linked = {output.model_id for output in outputs.model_outputs} if outputs else set()
        if logged.model_id not in linked:
            output = LoggedModelOutput(logged.model_id, model["step"])
            self.client.log_outputs(self.run_id, [output])

    def _linked_model(self) -> str | None:
        """Return the id of the logged model that this run trained or evaluates, if it has one."""
        run = self.client.get_run(self.run_id)
        outputs = [output.model_id for output in run.outputs.model_outputs] if run.outputs else []
        used = [model.model_id for model in run.inputs.model_inputs] if run.inputs else []
        return next(iter([*outputs, *used]), None)

    def _link_to_training(self, directory: Path) -> None:
        """Link the run in ``directory`` and its model, whose evaluation this run is."""
        training = self._run_in(directory)
        if training is None:
            return
        self._set_tags(self.run_id, {"deft.trained_by_run_id": training.info.run_id})
        model = find_model(self.client, self.experiment_id, training.info.run_id)
        if model is not None and self._linked_model() is None:
            self.client.log_inputs(self.run_id, models=[LoggedModelInput(model.model_id)])

    def _run_in(self, directory: Path) -> Run | None:
        """Find the MLflow run of a run directory, if this server has it."""
        delivered = read_delivered(directory)
        runs = self._search(f"tags.`deft.id` = '{delivered.id}'") if delivered else []
        return runs[0] if runs else None

    def _parent_of(self, sweep: str) -> str | None:
        """Return the id of the MLflow run of ``sweep`` itself; of several the latest."""
        condition = f"tags.`deft.sweep` = '{sweep}' and tags.`deft.kind` = 'sweep'"
        runs = self._search(condition)
        return str(runs[0].info.run_id) if runs else None

    def _adopt(self, directory: Path, sweep: str) -> None:
        """Make the run in ``directory`` a child of this run, a sweep's.

        One that MLflow does not know joins the sweep by itself when it is delivered.
        """
        child = self._run_in(directory)
        if child is not None:
            self._join_sweep(child, sweep, self.run_id)

    def _end_killed(self, directory: Path, time: int) -> None:
        """Mark the run in ``directory`` as killed: its process had no time to do so."""
        run = self._run_in(directory)
        if run is not None and run.info.status == "RUNNING":
            self.client.set_terminated(run.info.run_id, status="KILLED", end_time=time)

    def _join_sweep(self, run: Run, sweep: str, parent: str | None) -> None:
        """Make ``run`` a cell of ``sweep``; sweeps that it was of before stay in a tag."""
        before = run.data.tags.get("deft.sweep")
        tags = {"deft.sweep": sweep}
        if parent is not None:
            tags[PARENT] = parent
        elif before != sweep and PARENT in run.data.tags:
            self.client.delete_tag(run.info.run_id, PARENT)
        if before not in (None, sweep):
            earlier = run.data.tags.get("deft.earlier_sweeps", "").split(",")
            earlier = [name for name in [*earlier, before] if name and name != sweep]
            tags["deft.earlier_sweeps"] = ",".join(dict.fromkeys(earlier))
        self._set_tags(run.info.run_id, tags)

    def _set_status(self, status: str, time: int) -> None:
        if status == "RUNNING":
            if "deft.error" in self.client.get_run(self.run_id).data.tags:
                self.client.delete_tag(self.run_id, "deft.error")
            self.client.update_run(self.run_id, status=status)
            return
        self._find_run()  # a late duplicate must not be left over
        self.client.set_terminated(self.run_id, status=status, end_time=time)


def find_model(client: MlflowClient, experiment_id: str, run_id: str) -> LoggedModel | None:
    """Find the logged model that an MLflow run trained."""
    condition = f"source_run_id = '{run_id}'"
    models = client.search_logged_models([experiment_id], filter_string=condition)
    return models[0] if models else None


def sqlite_file(tracking_uri: str) -> Path | None:
    """Return the database that an SQLite URI names; None for any other URI."""
    if not tracking_uri.startswith("sqlite:///"):
        return None
    path = tracking_uri.removeprefix("sqlite:///").partition("?")[0]
    return Path(unquote(path)).absolute()


@contextmanager
def _one_at_a_time(tracking_uri: str) -> Iterator[None]:
    """Lock an SQLite store while it is opened, and make it if it is not there."""
    database = sqlite_file(tracking_uri)
    if database is None:
        yield
        return
    with exclusive(database.with_name(f".{database.name}.lock"), patience=math.inf):
        if not database.exists():
            _create_database(database)
        yield


def _create_database(database: Path) -> None:
    """Make an SQLite store that appears whole or not at all.

    MLflow makes its tables in dozens of steps. A store whose process was killed between two of them
    could not be opened any more.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    prefix = f".{database.name}.new-"
    for left in database.parent.glob(f"{glob.escape(prefix)}*"):  # by processes that were killed
        shutil.rmtree(left, ignore_errors=True)
    with TemporaryDirectory(prefix=prefix, dir=database.parent) as folder:
        aside = Path(folder) / database.name
        uri, artifacts = f"sqlite:///{quote(str(aside))}", _artifacts_beside(database)
        store = SqlAlchemyStore(uri, artifacts)  # type: ignore[no-untyped-call]
        store.engine.dispose()
        aside.replace(database)


def _artifacts_beside(database: Path) -> str:
    """Return the URI of the directory for the files of the runs in ``database``."""
    return (database.parent / "artifacts").as_uri()


def _dataset(described: Mapping[str, Any]) -> DatasetInput:
    entity = Dataset(
        name=described["name"],
        digest=described["digest"],
        source_type=described["source_type"],
        source=described["source"],
        profile=described["profile"],
    )
    return DatasetInput(entity, tags=[InputTag("mlflow.data.context", described["context"])])
