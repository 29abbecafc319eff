"""One MLflow run, written so that everything may be sent any number of times.

An answer can be lost after the server did what it was asked to: whatever is made here is found
again instead of made twice, and whatever is logged is, in MLflow's own terms, one and the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
"""All runs share one MLflow experiment, so that any two can be compared."""

MODEL_TRAINING = {"mlflow.experimentKind": "custom_model_development"}
"""Makes the MLflow UI open on runs and their curves instead of on traces of LLM calls."""

PARENT = "mlflow.parentRunId"
"""The tag by which MLflow nests runs."""


class MlflowRun:
    """The MLflow run of one directory: a `deft.platform.tracking.outbox.Destination`.

    Attributes:
        run_id: MLflow's id of it.
    """

    def __init__(self, outbox: Outbox, tracking_uri: str) -> None:
        """Find the run, or make it.

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
            beside = (database.parent / "artifacts").as_uri() if database else None
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
        """The run of this directory; of several all but one are removed.

        There are several where a server was so slow to make one that it was asked again.
        """
        delivered = self._outbox.delivered
        found = [run.info.run_id for run in self._search(f"tags.`deft.id` = '{delivered.id}'")]
        if not found:
            return None
        kept = delivered.run_id if delivered.run_id in found else min(found)
        for run_id in found:
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
                # Of a model, MLflow would keep 0 for what is no number.
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
        """Make the logged model that this run trained, as its output."""
        found = find_model(self.client, self.experiment_id, self.run_id)
        logged = found or self.client.create_logged_model(
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
        known = {output.model_id for output in outputs.model_outputs} if outputs else set()
        if logged.model_id not in known:
            output = LoggedModelOutput(logged.model_id, model["step"])
            self.client.log_outputs(self.run_id, [output])

    def _linked_model(self) -> str | None:
        """Id of the logged model that this run trained or evaluates; None if it is not known."""
        run = self.client.get_run(self.run_id)
        made = [output.model_id for output in run.outputs.model_outputs] if run.outputs else []
        used = [model.model_id for model in run.inputs.model_inputs] if run.inputs else []
        return next(iter([*made, *used]), None)

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
        """The MLflow run of a run directory, if it is known here."""
        delivered = read_delivered(directory)
        found = self._search(f"tags.`deft.id` = '{delivered.id}'") if delivered else []
        return found[0] if found else None

    def _parent_of(self, sweep: str) -> str | None:
        """Id of the run of ``sweep`` itself; of several of that name the latest."""
        condition = f"tags.`deft.sweep` = '{sweep}' and tags.`deft.kind` = 'sweep'"
        found = self._search(condition)
        return str(found[0].info.run_id) if found else None

    def _adopt(self, directory: Path, sweep: str) -> None:
        """Make the run in ``directory`` a child of this run, a sweep's.

        One that MLflow does not know joins the sweep by itself when it is delivered.
        """
        child = self._run_in(directory)
        if child is not None:
            self._join_sweep(child, sweep, self.run_id)

    def _join_sweep(self, run: Run, sweep: str, parent: str | None) -> None:
        """Make ``run`` a cell of ``sweep``; sweeps that it was of before stay in a tag."""
        before = run.data.tags.get("deft.sweep")
        tags = {"deft.sweep": sweep}
        if parent is not None:
            tags[PARENT] = parent
        elif before != sweep and PARENT in run.data.tags:
            self.client.delete_tag(run.info.run_id, PARENT)
        if before not in (None, sweep):
            known = run.data.tags.get("deft.earlier_sweeps", "").split(",")
            earlier = [name for name in [*known, before] if name and name != sweep]
            tags["deft.earlier_sweeps"] = ",".join(dict.fromkeys(earlier))
        self._set_tags(run.info.run_id, tags)

    def _set_status(self, status: str, time: int) -> None:
        if status == "RUNNING":
            if "deft.error" in self.client.get_run(self.run_id).data.tags:
                self.client.delete_tag(self.run_id, "deft.error")
            self.client.update_run(self.run_id, status=status)
            return
        self._find_run()  # a twin that came late must not be left over
        self.client.set_terminated(self.run_id, status=status, end_time=time)


def find_model(client: MlflowClient, experiment_id: str, run_id: str) -> LoggedModel | None:
    """The logged model that an MLflow run trained."""
    condition = f"source_run_id = '{run_id}'"
    found = client.search_logged_models([experiment_id], filter_string=condition)
    return found[0] if found else None


def sqlite_file(tracking_uri: str) -> Path | None:
    """The database that an SQLite URI names; None for any other URI."""
    if not tracking_uri.startswith("sqlite:///"):
        return None
    return Path(tracking_uri.removeprefix("sqlite:///").partition("?")[0]).absolute()


@contextmanager
def _one_at_a_time(tracking_uri: str) -> Iterator[None]:
    """Open an SQLite store alone: MLflow makes its tables then, which two at once would spoil."""
    database = sqlite_file(tracking_uri)
    if database is None:
        yield
        return
    with exclusive(database.with_name(f".{database.name}.lock"), patience=math.inf):
        yield


def _dataset(found: Mapping[str, Any]) -> DatasetInput:
    entity = Dataset(
        name=found["name"],
        digest=found["digest"],
        source_type=found["source_type"],
        source=found["source"],
        profile=found["profile"],
    )
    return DatasetInput(entity, tags=[InputTag("mlflow.data.context", found["context"])])
