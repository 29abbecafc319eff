"""The MLflow run of one evaluation of a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deft.evaluators.spec import HELDOUT
from deft.platform.config.spec import ModelEvaluationSpec
from deft.platform.records.manifests import EvaluateManifest, manifest_file
from deft.platform.tracking.recorder import Recorder, flatten, items_dataset, key_of_benchmark


class EvaluationRecorder(Recorder[ModelEvaluationSpec]):
    """The MLflow run of what `deft evaluate` does."""

    kind = "evaluation"
    command = "deft evaluate"

    def params(self) -> dict[str, Any]:
        """Return all settings."""
        return flatten(self.run.spec.model_dump(mode="json"))

    def description(self) -> str:
        """Name the model and the benchmarks."""
        spec = self.run.spec
        benchmarks = ", ".join(benchmark.name for benchmark in spec.evaluation.suite) or HELDOUT
        return (
            f"Evaluation of **{spec.model.name}** on {benchmarks}.\n\nDirectory: `{self.run.path}`"
        )

    def dataset_of(self, benchmark: str) -> dict[str, str] | None:
        """Return name and digest of a benchmark's items."""
        return key_of_benchmark(self.run.require_manifest(EvaluateManifest).items, benchmark)

    def describe_evaluation(self, model_dir: str, items: Mapping[str, str]) -> None:
        """Log the benchmarks' data, and which run trained the model, if one did."""
        self._outbox.append({"datasets": list(map(items_dataset, items.values()))})
        training = Path(model_dir).parent
        if manifest_file(training, "train").is_file():
            self._outbox.append({"tags": {"deft.trained_by": training.name}})
            self._outbox.append({"evaluates": str(training.resolve())})
