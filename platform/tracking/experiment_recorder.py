"""The MLflow run of one experiment: its data, its curves, its model and its results."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from deft.evaluators.spec import HELDOUT
from deft.platform.config.spec import ExperimentSpec
from deft.platform.records.manifests import PrepareManifest, TrainManifest, manifest_file
from deft.platform.records.run_directory import RunDirectory
from deft.platform.tracking.recorder import (
    DELIVERY_TIMEOUT_AFTER_SIGNAL,
    Recorder,
    flatten,
    items_dataset,
    key_of_benchmark,
)
from deft.platform.tracking.tensorboard import TensorBoardDelivery
from deft.workers.catalogs.datasets import DATASETS
from deft.workers.data.prepare import Prepared
from deft.workers.dataset_spec import SourceSpec


class ExperimentRecorder(Recorder[ExperimentSpec]):
    """The MLflow run of what `deft run` does."""

    kind = "run"
    command = "deft run"

    def __init__(
        self,
        run: RunDirectory[ExperimentSpec],
        tracking_uri: str,
        notify: Callable[[str], None],
        *,
        sweep: str | None = None,
    ) -> None:
        """Prepare to send, see `Recorder`; ``sweep`` names the one that the run is a cell of."""
        super().__init__(run, tracking_uri, notify)
        self.sweep = sweep
        wanted = "tensorboard" in run.spec.tracking
        self._board = TensorBoardDelivery(run.path, notify) if wanted else None

    def __enter__(self) -> Self:
        super().__enter__()
        if self._board is not None:
            self._board.start()
        if self.sweep is not None:
            self._outbox.append({"sweep": self.sweep})
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        if self._board is not None:
            self._board.stop(DELIVERY_TIMEOUT_AFTER_SIGNAL)

    def params(self) -> dict[str, Any]:
        """Return all settings, and the objective's parameters one by one."""
        objective = self.run.spec.objective
        params = flatten(self.run.spec.model_dump(mode="json"))
        # Numbers on an axis of their own: what parallel coordinates are drawn by.
        params["objective.family"] = objective.name
        return params | {f"objective.{key}": value for key, value in objective.params.items()}

    def description(self) -> str:
        """Describe model, data, objective and the most important settings."""
        spec = self.run.spec
        training, info = spec.training, spec.objective.info
        lines = [
            f"**{spec.model.name}** fine-tuned on **{spec.dataset.name}** with "
            f"**{spec.objective}**, seed {spec.seed}."
        ]
        if info is not None:
            lines.append(
                f"Per token `{info.value}`, gate `{info.gate}`: {info.summary} ({info.source})"
            )
        settings = [
            f"batches of {training.batch_size} examples, learning rate "
            f"{training.learning_rate:g}, {training.num_workers} workers, "
            f"ZeRO-{training.resolved_zero_stage}"
        ]
        manifest = self.run.manifest(PrepareManifest)
        if manifest is not None:
            data = manifest.prepared
            sizes = [
                f"{data.num_examples:,} examples with {data.num_target_tokens:,} target tokens, "
                f"{data.num_validation_examples:,} held out"
            ]
            if spec.dataset.mixture:
                sizes += [f"  of them {source}" for source in data.sources]
            settings = sizes + settings
        lines.append("\n".join(f"- {setting}" for setting in settings))
        lines.append(f"Directory: `{self.run.path}`")
        return "\n\n".join(lines)

    def dataset_of(self, benchmark: str) -> dict[str, str] | None:
        """Return name and digest of a benchmark's items, or of the held-out rows."""
        manifest, spec = self.run.require_manifest(PrepareManifest), self.run.spec
        heldout = spec.evaluation.heldout
        if benchmark == HELDOUT and heldout is not None and heldout.file is None:
            return _rows_key(spec, manifest.prepared, "validation")
        return key_of_benchmark(manifest.items, benchmark)

    def describe_data(self) -> None:
        """Log the prepared data: counts, the prompt format, and the datasets."""
        manifest = self.run.require_manifest(PrepareManifest)
        data = manifest.prepared
        counts = {f"data/{key}": n for key, n in asdict(data).items() if key.startswith("num_")}
        bad = {
            f"data/bad_records/{kind.replace(' ', '_')}": count
            for kind, count in data.bad_records.items()
        }
        by_source = {
            f"data/source/{_metric_name(source.name)}/{key}": number
            for source in data.sources
            if self.run.spec.dataset.mixture
            for key, number in asdict(source).items()
            if key.startswith("num_")
        }
        shared = {f"data/overlap/{name}": x.share for name, x in manifest.overlap.items()}
        self.log(0, {**counts, **by_source, **bad, **shared}, manifest.finished_at)
        tags = {"deft.prompt_style": data.prompt_style, "deft.prompt_hash": data.format_hash}
        if data.model_revision is not None:
            tags["deft.model_revision"] = data.model_revision
        # The description knows the data now.
        self._outbox.append({"tags": {**tags, "mlflow.note.content": self.description()}})
        rows = _rows_datasets(self.run.spec, data)
        items = map(items_dataset, manifest.items.values())
        self._outbox.append({"datasets": [*rows, *items]})
        for file in (manifest_file(self.run.path, "prepare"), Path(data.bad_records_file)):
            self._send_files(file, "data")

    def log_model(self) -> None:
        """Log the model that was trained, by where it is: its weights are not copied."""
        train, spec = self.run.require_manifest(TrainManifest), self.run.spec
        tags = {
            "deft.run": self.run.path.name,
            "deft.directory": str((self.run.path / train.model).resolve()),
        }
        params = {"objective": str(spec.objective), "base_model": spec.model.name}
        params |= {"dataset": spec.dataset.name, "seed": str(spec.seed)}
        model = {"name": _model_name(self.run.path.name), "tags": tags, "params": params}
        self._outbox.append({"model": {**model, "step": train.step}})


def _model_name(name: str) -> str:
    """Replace the characters of ``name`` that MLflow allows in no model's name."""
    return re.sub(r"[/:.%\"']", "_", name)


def _metric_name(name: str) -> str:
    """Replace the characters of ``name`` that MLflow allows in no metric's name, and slashes."""
    return re.sub(r"[^\w. -]+", "_", name, flags=re.ASCII).strip()


def _rows_key(spec: ExperimentSpec, prepared: Prepared, context: str) -> dict[str, str]:
    """Return name and digest of a run's rows; the digest covers tokenizer, length and split."""
    name = spec.dataset.name.rstrip("/").rsplit("/", 1)[-1]
    return {"name": name, "digest": f"{Path(prepared.rows_dir).parent.name}-{context}"}


def _rows_datasets(spec: ExperimentSpec, prepared: Prepared) -> list[dict[str, Any]]:
    """Describe the rows that are trained on, and those that are held out, by data set."""
    datasets = []
    origins = [
        _origin(source, counts.revision)
        for source, counts in zip(spec.dataset.sources, prepared.sources, strict=True)
    ]
    for counts, origin in zip(prepared.sources, origins, strict=True):
        key = _rows_key(spec, prepared, "training")
        if spec.dataset.mixture:
            key["name"] = counts.name
        profile = {
            "num_rows": counts.num_examples,
            "num_tokens": counts.num_tokens,
            "num_target_tokens": counts.num_target_tokens,
        }
        datasets.append({**key, "context": "training", **origin, "profile": json.dumps(profile)})
    if prepared.num_validation_examples:
        # Of a mixture they are one set of rows: MLflow knows one source of each.
        mixture = _code_origin(f"mixture {spec.dataset.name}")
        datasets.append(
            {
                **_rows_key(spec, prepared, "validation"),
                "context": "validation",
                **(mixture if spec.dataset.mixture else origins[0]),
                "profile": json.dumps({"num_rows": prepared.num_validation_examples}),
            }
        )
    return datasets


def _origin(spec: SourceSpec, revision: str | None) -> dict[str, str]:
    """Say where the examples of a data set come from, as MLflow does."""
    path = spec.local_path
    if path is not None:
        return {"source_type": "local", "source": json.dumps({"uri": str(path.absolute())})}
    if spec.hub_id is None:
        return _code_origin(DATASETS[spec.name].source)
    pins = {"config_name": spec.config, "revision": revision}
    source = {"path": spec.hub_id, "split": spec.split}
    source |= {key: value for key, value in pins.items() if value is not None}
    return {"source_type": "hugging_face", "source": json.dumps(source)}


def _code_origin(name: str) -> dict[str, str]:
    return {
        "source_type": "code",
        "source": json.dumps({"tags": {"mlflow.source.name": name}}),
    }
