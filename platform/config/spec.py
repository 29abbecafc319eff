"""`ExperimentSpec`: one experiment, made of each package's settings; loads no torch and no ray."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from deft.evaluators.spec import EvaluationSpec
from deft.objectives.spec import ObjectiveSpec
from deft.workers.catalogs.datasets import SUFFIXES
from deft.workers.catalogs.prompt_styles import PROMPT_STYLES
from deft.workers.common.names import unknown_name
from deft.workers.common.settings import Settings
from deft.workers.data.datasets import digest_files
from deft.workers.dataset_spec import DatasetField, name_of, name_or_mixture
from deft.workers.modeling.model_identity import fingerprint, model_digest
from deft.workers.spec import ModelField, ModelSpec, TrainingSpec

Tracker = Literal["mlflow", "tensorboard"]
DEFAULT_TRACKING: tuple[Tracker, ...] = ("mlflow",)


def _is_default_tracking(tracking: Any) -> bool:
    return bool(tracking == DEFAULT_TRACKING)


def _is_fair(protocol: Any) -> bool:
    return bool(protocol == "fair")


class ExperimentSpec(Settings):
    """One training run, its evaluation, and the name both are recorded under."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")
    """What the run is called; dataset-model-objective if not given."""
    dataset: DatasetField
    """What to train on."""
    model: ModelField
    """What to train."""
    objective: ObjectiveSpec
    """The token-level training objective."""
    protocol: Literal["fair", "paper"] = Field(default="fair", exclude_if=_is_fair)
    """Which settings fill in for what a run file does not say: `fair` treats every objective alike,
    `paper` is arXiv 2602.11424 to the letter; see `deft.platform.config.presets`."""
    training: TrainingSpec = TrainingSpec()
    """How to train."""
    evaluation: EvaluationSpec = EvaluationSpec()
    """What to measure afterwards, on the base model and on the trained one."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of everything random: initial weights, order of the data, sampling."""
    tracking: tuple[Tracker, ...] = Field(default=DEFAULT_TRACKING, exclude_if=_is_default_tracking)
    """Where curves go: MLflow, which keeps everything, and beside it files for TensorBoard. It is
    the same run wherever they go."""

    @field_validator("tracking")
    @classmethod
    def require_mlflow(cls, tracking: tuple[Tracker, ...]) -> tuple[Tracker, ...]:
        if "mlflow" not in tracking:
            raise ValueError("MLflow keeps the results; give [mlflow, tensorboard]")
        return tracking

    @model_validator(mode="before")
    @classmethod
    def name_after_the_parts(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("name") is None:
            dataset = name_or_mixture(data.get("dataset"))
            parts = [dataset, data.get("model"), _canonical(data.get("objective"))]
            data = {**data, "name": name_of_parts(*parts)}
        return data

    def content_hash(self) -> str:
        """Return ten hexadecimal digits that change with any setting and any data file's content.

        Where a local model lies does not count, see `model_identity`.
        """
        settings = self.model_dump(mode="json")
        settings["model"]["name"] = model_identity(self.model)
        settings["training"]["reference"] = None
        settings.pop("tracking", None)
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for source in self.dataset.sources:
            if (path := source.local_path) is not None:
                digest.update(digest_files(path).encode())
        if self.training.reference is not None:
            digest.update(model_digest(Path(self.training.reference)).encode())
        digest.update(self.evaluation.data_digest().encode())
        return digest.hexdigest()[:10]

    @property
    def run_name(self) -> str:
        """Name of the run directory: the same spec is the same run."""
        return f"{self.name}-{self.content_hash()}"


class ModelEvaluationSpec(Settings):
    """The evaluation of a model as it is: what `deft evaluate` does."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")
    """What the evaluation is called; evaluation-model if not given."""
    model: ModelField
    """What to evaluate."""
    prompt_style: str = "chat"
    """Prompt style that the model was trained with, a name from `deft list prompts`."""
    evaluation: EvaluationSpec
    """What to measure, and how."""

    @model_validator(mode="before")
    @classmethod
    def name_after_the_model(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("name") is None:
            data = {**data, "name": f"evaluation-{_short_name(data.get('model'))}"[:80]}
        return data

    @model_validator(mode="after")
    def require_known_style(self) -> ModelEvaluationSpec:
        if self.prompt_style not in PROMPT_STYLES:
            problem = unknown_name("prompt style", self.prompt_style, PROMPT_STYLES)
            raise ValueError(f"prompt_style: {problem}")
        return self

    @property
    def run_name(self) -> str:
        """Name of the directory: it changes with any setting, and with the model in a directory."""
        digest = hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode())
        digest.update(self.evaluation.data_digest().encode())
        if Path(self.model.name).is_dir():
            digest.update(fingerprint(Path(self.model.name)).encode())
        return f"{self.name}-{digest.hexdigest()[:10]}"


def model_identity(model: ModelSpec) -> str:
    """Return what tells a model from others, wherever it lies.

    The model of a run, ``…/<run>/model``, is known by the run's name, which holds the hash of all
    that made it; the run need not have finished, nor even begun. Any other directory is known by
    its content, a name of the catalog or the hub by itself.
    """
    path = Path(model.name).absolute()
    is_run = path.name == "model" and re.fullmatch(r".+-[0-9a-f]{10}", path.parent.name)
    if is_run and (not path.exists() or (path.parent / "spec.json").is_file()):
        return f"{path.parent.name}/model"
    return model_digest(path) if model.local_path is not None else model.name


def _canonical(objective: Any) -> Any:
    """Return the objective's canonical name, so that all its spellings are the same run."""
    try:
        return str(ObjectiveSpec.model_validate(objective))
    except ValidationError:  # reported when the field itself is validated
        return objective


def name_of_parts(dataset: Any, model: Any, objective: Any) -> str:
    """Name a run that has no name of its own."""
    parts = [_short_name(dataset), _short_name(model), _objective_name(objective)]
    return "-".join(parts)[:80]


def _objective_name(objective: Any) -> str:
    """Return an objective's name and parameters, odd characters replaced, but not a minus sign."""
    name = name_of(objective) if isinstance(objective, dict) else objective
    stem = str(name).rsplit(":", 1)[-1]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.") or "run"


def _short_name(part: Any) -> str:
    """Return the last component of a name or path, with odd characters replaced by dashes.

    The model of a run, ``…/<run>/model``, is called after the run.
    """
    name = name_of(part) if isinstance(part, dict) else part
    path = re.sub(r"(?<=[^/])/model$", "", str(name).rstrip("/"))
    stem = path.rsplit("/", 1)[-1].rsplit(":", 1)[-1]
    stem = re.sub(rf"({'|'.join(map(re.escape, SUFFIXES))})$", "", stem)
    return re.sub(r"[^A-Za-z0-9._]+", "-", stem).strip("-.") or "run"
