"""Manifests: the record that each stage of a run leaves on disk when it has finished."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deft.evaluators.generation.job import PromptRecord
from deft.evaluators.spec import HELDOUT
from deft.platform.errors import UserError
from deft.workers.common.checksums import hash_parts
from deft.workers.common.clock import now_ms
from deft.workers.common.files import write_atomic
from deft.workers.data.prepare import Prepared

Stage = Literal["prepare", "train", "evaluate", "record"]
STAGES: tuple[Stage, ...] = get_args(Stage)
"""Stages of a run, in their order."""


class _Part(BaseModel):
    # NaN is a value here: a metric may have none.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")


class Manifest(_Part):
    """Base class of the manifests; each stage has one, with a version of its own."""

    stage: ClassVar[Stage]
    version: Literal[1] = 1
    """Version of the file's format."""
    finished_at: int = Field(default_factory=now_ms)
    """When the stage finished, in milliseconds since the epoch."""


AnyManifest = TypeVar("AnyManifest", bound=Manifest)


class BenchmarkOverlap(_Part):
    """Training examples that share text with the items of one benchmark."""

    num_overlapping: int
    share: float
    """Of the training examples."""
    ids: tuple[str, ...]
    """Of the first examples."""


class PrepareManifest(Manifest):
    """Data and model, as training and evaluation start from them."""

    stage = "prepare"
    prepared: Prepared
    items: dict[str, str]
    """Benchmark as the spec names it → file of its items."""
    overlap: dict[str, BenchmarkOverlap]
    """By benchmark."""


class TrainManifest(Manifest):
    """A trained model."""

    stage = "train"
    model: str
    """Its directory, relative to that of the run."""
    seconds: float
    step: int
    """The last optimizer step."""
    dtype: str | None = None
    """Of the parameters in training; None where the last start found all steps taken."""
    metrics: dict[str, float]
    """The last ones of training and, as ``validation/<metric>``, of validation."""


class BenchmarkResult(_Part):
    """What one model scored on one benchmark, and how it was prompted."""

    metrics: dict[str, float]
    primary_metric: str
    """The metric that models are compared by; ``avg`` stands for avg@n."""
    predictions: str
    """Table of graded responses, relative to the run's directory."""
    prompt: PromptRecord

    @property
    def primary_metric_name(self) -> str:
        """The metric that models are compared by: ``avg@n`` or the name of a score."""
        if self.primary_metric == "avg":
            return f"avg@{self.metrics['num_samples']:.0f}"
        return self.primary_metric

    @property
    def primary_key(self) -> str:
        """The name of that metric in ``metrics``."""
        return self.primary_metric_name.replace("@", "_at_")


class ModelResult(_Part):
    """Everything that was measured on one model."""

    directory: str
    heldout: dict[str, float] = {}
    """Metrics on held-out examples; empty if there are none."""
    benchmarks: dict[str, BenchmarkResult] = {}
    means: dict[str, float] = {}
    """Means over the benchmarks that the spec names; empty for a single one."""

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """Metrics by benchmark; held-out examples come first, as a benchmark of their own."""
        heldout = {HELDOUT: self.heldout} if self.heldout else {}
        return heldout | {name: result.metrics for name, result in self.benchmarks.items()}


class Timings(_Part):
    """Seconds that an evaluation took."""

    total: float = 0.0
    engine_start: float = 0.0
    """Until engines served the models."""
    work: float = 0.0
    """Generating and grading, summed over engines."""

    def __add__(self, other: Timings) -> Timings:
        return Timings(
            total=self.total + other.total,
            engine_start=self.engine_start + other.engine_start,
            work=self.work + other.work,
        )


class EvaluateManifest(Manifest):
    """The results of one or several models."""

    stage = "evaluate"
    models: dict[str, ModelResult]
    """By label: ``base`` and ``eval`` of `deft run`, ``eval`` alone of `deft evaluate`."""
    num_generated: int
    """Responses that were generated."""
    num_resumed: int
    """Responses that an interrupted evaluation had left."""
    timings: Timings
    items: dict[str, str] = {}
    """As in `PrepareManifest`; of `deft evaluate`, which has no prepare stage."""


class RecordManifest(Manifest):
    """A run that MLflow has everything of."""

    stage = "record"
    mlflow_run_id: str
    link: str = ""
    """Address of the run in MLflow's pages."""


CHECKSUM = "checksum"
"""Key under which a file has the hash of its other fields."""


def manifest_file(run: Path, stage: Stage) -> Path:
    """Return where ``stage`` of the run in directory ``run`` leaves its manifest."""
    return run / "stages" / f"{stage}.json"


def read_manifest(run: Path, kind: type[AnyManifest]) -> AnyManifest | None:
    """Read the manifest of a stage of the run in directory ``run``; None if it has not finished.

    Raises:
        UserError: there is one that cannot be read.
    """
    try:
        return load_manifest(manifest_file(run, kind.stage), kind)
    except FileNotFoundError:
        return None


def require_manifest(run: Path, kind: type[AnyManifest]) -> AnyManifest:
    """Read the manifest of a stage that is known to have finished.

    Raises:
        UserError: it is gone or cannot be read.
    """
    manifest = read_manifest(run, kind)
    if manifest is None:
        raise UserError(
            f"{manifest_file(run, kind.stage)}: no such file; run the command of this run again"
        )
    return manifest


def load_manifest(file: Path, kind: type[AnyManifest]) -> AnyManifest:
    """Read a manifest from ``file``.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is damaged, or of a version that this code does not know.
    """
    remedy = "delete it and run the same command again"
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not JSON ({error}); {remedy}") from None
    checksum = fields.pop(CHECKSUM, None) if isinstance(fields, dict) else None
    version, supported = _version(fields), kind.model_fields["version"].default
    if version != supported:
        written = "without a version" if version is None else f"of version {version}"
        raise UserError(
            f"{file}: a manifest {written}, this deft reads version {supported}; use the deft that "
            f"wrote it, or {remedy}"
        )
    if checksum not in (None, _checksum(fields)):
        raise UserError(f"{file}: damaged (its checksum is another's); {remedy}")
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(f"{file}: {key}: {first['msg']}; {remedy}") from None


def _version(fields: object) -> object:
    return fields.get("version") if isinstance(fields, dict) else None


def save_manifest(file: Path, manifest: Manifest) -> None:
    """Write ``manifest`` to ``file``, whole or not at all."""
    fields = json.loads(manifest.model_dump_json())
    stored = {**fields, CHECKSUM: _checksum(fields)}
    write_atomic(file, json.dumps(stored, indent=2, ensure_ascii=False) + "\n")


def _checksum(fields: object) -> str:
    return hash_parts(json.dumps(fields, sort_keys=True))
