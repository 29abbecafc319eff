"""MLflow's model registry: a run's model under a name that it can be loaded and served by."""

from __future__ import annotations

import os
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from deft.platform.console import RunConsole
from deft.platform.errors import StageError, UserError, describe_error
from deft.platform.records.find import trained_model
from deft.platform.records.manifests import manifest_file
from deft.platform.tracking.outbox import read_delivered
from deft.platform.tracking.uri import require_tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel


NEEDED = ("torch", "transformers", "accelerate")
"""Packages that are needed to load the model where it is served."""


def register_model(run: Path, name: str, tracking_uri: str, console: RunConsole) -> None:
    """Upload the model of the run in directory ``run`` and register it as ``name``.

    A model that is in MLflow already is not uploaded again, nor registered twice by one name.

    Raises:
        UserError: the run has no model, or MLflow does not know it yet.
        StageError: MLflow cannot be used.
    """
    require_tracking_uri(tracking_uri)
    delivered = read_delivered(run)
    model_dir = trained_model(run)
    if delivered is None or not manifest_file(run, "record").is_file():
        raise UserError(f"{run}: not recorded in MLflow yet; the command that ran it records it")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")
    import mlflow
    from mlflow.exceptions import MlflowException

    mlflow.set_tracking_uri(tracking_uri)  # a version's source is looked up where this points
    client = mlflow.MlflowClient()
    try:
        model = _logged_model(client, delivered.id)
        if model is None:
            raise UserError(f"{run}: MLflow at {tracking_uri} does not know the run")
        _upload(client, model, model_dir, console)
        number = _register(client, model, name)
    except MlflowException as error:
        raise StageError(f"MLflow: {describe_error(error)}") from error
    console.stage("register", f"{run.name} is version {number} of {name}: models:/{name}/{number}")


def _logged_model(client: MlflowClient, run_key: str) -> LoggedModel | None:
    from deft.platform.tracking.mlflow_run import EXPERIMENT, find_model

    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return None
    runs = client.search_runs([experiment.experiment_id], f"tags.`deft.id` = '{run_key}'")
    return find_model(client, experiment.experiment_id, runs[0].info.run_id) if runs else None


def _upload(client: MlflowClient, model: LoggedModel, directory: Path, console: RunConsole) -> None:
    if any(file.path == "MLmodel" for file in client.list_logged_model_artifacts(model.model_id)):
        return
    import mlflow.transformers

    size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
    console.stage("upload", f"{size / 1e6:,.1f} MB")
    # MLflow copies what it packs; a run's disk can hold its model, the system's may not.
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".register-") as aside:
        mlflow.transformers.save_model(
            transformers_model=str(directory),
            path=f"{aside}/model",
            task="text-generation",
            pip_requirements=[f"{name}=={version(name)}" for name in NEEDED],
        )
        client.log_model_artifacts(model.model_id, f"{aside}/model")


def _register(client: MlflowClient, model: LoggedModel, name: str) -> str:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    for registered in client.search_model_versions(f"name = '{name}'"):
        if registered.source == model.model_uri:
            return str(registered.version)
    created = client.create_model_version(
        name, model.model_uri, run_id=model.source_run_id, model_id=model.model_id
    )
    return str(created.version)
