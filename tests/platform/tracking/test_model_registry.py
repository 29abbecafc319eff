"""A run's model in MLflow's registry is the model that the run trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow import MlflowClient
from transformers import Qwen2ForCausalLM

from deft.platform.console import RunConsole
from deft.platform.errors import UserError
from deft.platform.records.manifests import RecordManifest
from deft.platform.records.run_directory import RunDirectory
from deft.platform.tracking.experiment_recorder import ExperimentRecorder
from deft.platform.tracking.model_registry import register_model
from deft.platform.tracking.uri import default_tracking_uri
from helpers import make_train_manifest


@pytest.fixture
def run(
    make_run: Callable[..., RunDirectory], save_small_model: Callable[[Path], None]
) -> RunDirectory:
    """Record a run that trained a model."""
    run = make_run()
    save_small_model(run.path / "model")
    run.finish(make_train_manifest(7))
    return run


@pytest.fixture
def own_tracking_uri() -> Iterator[None]:
    """MLflow's tracking URI belongs to the process: other tests shall not see this one's."""
    yield
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]


def test_registered_model_is_the_one_that_was_trained(
    run: RunDirectory,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    own_tracking_uri: None,
) -> None:
    uri = default_tracking_uri(tmp_path)
    with pytest.raises(UserError, match="not recorded in MLflow yet"):
        register_model(run.path, "reader", uri, RunConsole())
    with ExperimentRecorder(run, uri, print) as recorder:
        recorder.log_model()
        run.finish(RecordManifest(mlflow_run_id=recorder.finish()))
    for _ in range(2):
        register_model(run.path, "reader", uri, RunConsole())
    assert capfd.readouterr().out.count("upload") == 1
    client = MlflowClient(uri)
    (version,) = client.search_model_versions("name = 'reader'")
    model = client.get_logged_model(version.source.removeprefix("models:/"))
    assert (
        model.source_run_id == version.run_id == run.require_manifest(RecordManifest).mlflow_run_id
    )

    loaded = mlflow.transformers.load_model("models:/reader/1", return_type="components")
    ids = torch.tensor([[1, 2, 3]])
    trained = Qwen2ForCausalLM.from_pretrained(run.path / "model")
    assert torch.equal(loaded["model"](ids).logits, trained(ids).logits)
    assert not list(run.path.glob(".register-*"))
