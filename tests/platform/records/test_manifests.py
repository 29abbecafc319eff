"""Manifests come back from disk as they were, and bad ones are refused in one message."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from deft.platform.errors import UserError
from deft.platform.records.manifests import (
    BenchmarkOverlap,
    Manifest,
    ModelResult,
    RecordManifest,
    TrainManifest,
    load_manifest,
    manifest_file,
    read_manifest,
    require_manifest,
    save_manifest,
)
from helpers import (
    make_benchmark_result,
    make_evaluate_manifest,
    make_prepare_manifest,
    make_train_manifest,
)

TINY = math.nextafter(0.1, 1.0)
RESULT = make_benchmark_result({"avg_at_1": TINY, "mean_tokens": math.inf}, "predictions/a.parquet")
OVERLAP = BenchmarkOverlap(num_overlapping=3, share=1 / 3, ids=("a:3", "b:4"))


@pytest.mark.parametrize(
    "manifest",
    [
        make_prepare_manifest({"gsm8k": "/cache/gsm8k.jsonl"}, {"gsm8k": OVERLAP}),
        make_train_manifest(7),
        make_evaluate_manifest({"eval": ModelResult(directory="/m", benchmarks={"a": RESULT})}),
        RecordManifest(mlflow_run_id="0123"),
    ],
    ids=lambda manifest: manifest.stage,
)
def test_manifest_is_read_as_it_was_written(manifest: Manifest, tmp_path: Path) -> None:
    save_manifest(manifest_file(tmp_path, manifest.stage), manifest)
    assert read_manifest(tmp_path, type(manifest)) == manifest


def test_metric_without_a_value_stays_one(tmp_path: Path) -> None:
    train = make_train_manifest(7).model_copy(update={"metrics": {"nll": math.nan}})
    save_manifest(manifest_file(tmp_path, "train"), train)
    assert math.isnan(require_manifest(tmp_path, TrainManifest).metrics["nll"])


def write_changed(file: Path, **changes: Any) -> None:
    """Write a train manifest with fields replaced, or left out where the value is None."""
    fields = json.loads(make_train_manifest(7).model_dump_json()) | changes
    file.write_text(json.dumps({key: x for key, x in fields.items() if x is not None}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "a manifest of version 2, this deft reads version 1; use the deft that"),
        ({"version": None}, "a manifest without a version, this deft reads version 1"),
        ({"step": "last"}, "step: Input should be a valid integer"),
        ({"seconds": None}, "seconds: Field required; delete it and run the same command again"),
        ({"loss": 1.0}, "loss: Extra inputs are not permitted"),
    ],
)
def test_manifest_of_another_version_or_shape_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    file = tmp_path / "train.json"
    write_changed(file, **changes)
    with pytest.raises(UserError) as refusal:
        load_manifest(file, TrainManifest)
    assert str(refusal.value).startswith(f"{file}: {message}")


@pytest.mark.parametrize("text", ["", "{", "[1]", "null"])
def test_file_that_is_no_manifest_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "train.json"
    file.write_text(text)
    with pytest.raises(UserError, match=r"run the same command again"):
        load_manifest(file, TrainManifest)


def test_missing_manifest_of_a_finished_stage_is_named(tmp_path: Path) -> None:
    assert read_manifest(tmp_path, TrainManifest) is None
    with pytest.raises(UserError, match=r"stages/train\.json: no such file"):
        require_manifest(tmp_path, TrainManifest)
