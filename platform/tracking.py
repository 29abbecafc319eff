"""MLflow: parameters, curves, results and everything needed to reproduce a run.

Metric names and tags are an interface: people filter and group by them in the MLflow UI.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deft.platform.errors import StageError, describe
from deft.platform.provenance import git_state, package_versions

if TYPE_CHECKING:
    from mlflow.entities import Metric

    from deft.platform.run_directory import RunDirectory

EXPERIMENT = "deft"
"""All runs share one MLflow experiment, so that any two can be compared."""

MODEL_TRAINING = {"mlflow.experimentKind": "custom_model_development"}
"""Makes the MLflow UI open on runs and their curves instead of on traces of LLM calls."""


def default_tracking_uri(root: Path) -> str:
    """An SQLite database under the run root."""
    return f"sqlite:///{root.resolve() / 'mlflow.db'}"


class Recorder:
    """The MLflow run of one run directory.

    `deliver` may be called again at any time: it sends the events that are new since the last call,
    and MLflow ignores a point that it already has.
    """

    def __init__(self, run: RunDirectory, tracking_uri: str) -> None:
        from mlflow import MlflowClient

        self.run = run
        self.client = MlflowClient(tracking_uri)
        self.run_id = self._find_or_create(tracking_uri)
        self._delivered = 0  # bytes of the events file

    def _find_or_create(self, tracking_uri: str) -> str:
        experiment = self.client.get_experiment_by_name(EXPERIMENT)
        if experiment is not None:
            experiment_id = experiment.experiment_id
        else:
            local = tracking_uri.startswith("sqlite:///")
            artifacts = (self.run.path.parent / "artifacts").resolve().as_uri() if local else None
            experiment_id = self.client.create_experiment(
                EXPERIMENT, artifact_location=artifacts, tags=MODEL_TRAINING
            )
        name = self.run.path.name
        found = self.client.search_runs([experiment_id], f"tags.`deft.run` = '{name}'")
        if found:
            run_id = str(found[0].info.run_id)
            self.client.update_run(run_id, status="RUNNING")
            return run_id
        tags = {"deft.run": name, "deft.directory": str(self.run.path.resolve())}
        created = self.client.create_run(experiment_id, run_name=name, tags=tags)
        run_id = str(created.info.run_id)
        self._log_batches(run_id, params=flatten(self.run.spec.model_dump(mode="json")))
        return run_id

    def try_deliver(self) -> str | None:
        """`deliver`; if MLflow fails, say why instead of raising: events stay on disk."""
        from mlflow.exceptions import MlflowException

        try:
            self.deliver()
        except MlflowException as error:
            return describe(error)
        return None

    def deliver(self) -> None:
        """Send every event that is new since the last call."""
        # Nothing is appended in between: events are written and delivered by one thread.
        size = self.run.events_size()
        self._log_batches(self.run_id, metrics=_metrics(self.run.events(self._delivered)))
        self._delivered = size

    def log(self, step: int, metrics: Mapping[str, float], time: int) -> None:
        """Log metrics of one step, measured at ``time`` (milliseconds since the epoch)."""
        event = {"step": step, "metrics": metrics, "time": time}
        self._log_batches(self.run_id, metrics=_metrics([event]))

    def describe_data(self) -> None:
        """Log what the prepare stage found: counts as metrics, the prompt format as tags."""
        prepared = self.run.manifest("prepare")
        assert prepared is not None
        counts = {f"data/{key}": n for key, n in prepared.items() if key.startswith("num_")}
        bad = {
            f"data/bad_records/{kind.replace(' ', '_')}": count
            for kind, count in prepared["bad_records"].items()
        }
        shared = {f"data/overlap/{name}": x["share"] for name, x in prepared["overlap"].items()}
        self.log(0, {**counts, **bad, **shared}, prepared["finished_at"])
        for tag, key in (
            ("deft.prompt_style", "prompt_style"),
            ("deft.prompt_hash", "format_hash"),
        ):
            self.client.set_tag(self.run_id, tag, prepared[key])
        for file in (self.run.path / "stages" / "prepare.json", prepared["bad_records_file"]):
            self.client.log_artifact(self.run_id, str(file), "data")

    def finish(self) -> None:
        """Send what is left: events, files, environment; and close the run."""
        self.deliver()
        for file in ("spec.json", "events.jsonl"):
            if (self.run.path / file).exists():
                self.client.log_artifact(self.run_id, str(self.run.path / file))
        for folder in ("figures", "predictions"):
            if (self.run.path / folder).is_dir():
                self.client.log_artifacts(self.run_id, str(self.run.path / folder), folder)
        git = git_state()
        if git:
            self.client.set_tag(self.run_id, "mlflow.source.git.commit", git["commit"])
            self.client.log_text(self.run_id, git["diff"], "code.diff")
        self.client.log_text(self.run_id, package_versions(), "packages.txt")
        self.client.set_terminated(self.run_id)

    def fail(self, error: BaseException) -> None:
        """Close the run as failed, with its cause as a tag, if MLflow can be reached."""
        from mlflow.exceptions import MlflowException

        with contextlib.suppress(MlflowException):
            self.client.set_tag(self.run_id, "deft.error", describe(error)[:4000])
            self.client.set_terminated(self.run_id, status="FAILED")

    def _log_batches(
        self,
        run_id: str,
        metrics: Iterable[Metric] = (),
        params: Mapping[str, Any] | None = None,
    ) -> None:
        from mlflow.entities import Param

        metric_list = list(metrics)
        param_list = [Param(key, str(value)) for key, value in (params or {}).items()]
        # MLflow takes at most 1000 metrics and 100 parameters in one call.
        for start in range(0, len(metric_list), 1000):
            self.client.log_batch(run_id, metrics=metric_list[start : start + 1000])
        for start in range(0, len(param_list), 100):
            self.client.log_batch(run_id, params=param_list[start : start + 100])


def start_recorder(run: RunDirectory, tracking_uri: str) -> Recorder:
    """Find or create the MLflow run of ``run``.

    Raises:
        StageError: MLflow cannot be used; better known now than after training.
    """
    # Read when mlflow is imported; what it would log it also raises.
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")
    from mlflow.exceptions import MlflowException

    try:
        return Recorder(run, tracking_uri)
    except MlflowException as error:
        raise StageError(f"MLflow cannot be used: {describe(error)}") from error


def _metrics(events: Iterable[Mapping[str, Any]]) -> Iterator[Metric]:
    from mlflow.entities import Metric

    for event in events:
        for name, value in event["metrics"].items():
            yield Metric(name, float(value), int(event["time"]), int(event["step"]))


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys; ``x.name`` is called ``x``, so that people can filter by it.

    Items of a list are keyed by their names, as in ``evaluation.benchmarks.figfont.size``.
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = prefix if key == "name" and prefix else f"{prefix}.{key}".lstrip(".")
        if isinstance(value, list) and all(isinstance(item, dict) for item in value):
            value = {item["name"]: {k: v for k, v in item.items() if k != "name"} for item in value}
        flat |= flatten(value, path) if isinstance(value, Mapping) else {path: value}
    return flat
