"""Token landscapes of a sweep's base models, computed once for each and kept in the cache."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from deft.platform.errors import StageError, UserError
from deft.platform.records.manifests import PrepareManifest
from deft.sweeps.report.read_sweep import CellResult
from deft.workers.common.files import atomic_file
from deft.workers.modeling.model_identity import fingerprint

NUM_ROWS = 48
"""Number of examples whose tokens are drawn."""

DEVICE_TIMEOUT = 600
"""Seconds to wait for a free device and the statistics."""


class LandscapeError(Exception):
    """A landscape cannot be drawn."""


def token_landscapes(
    cell: CellResult, objectives: Sequence[str], cache: Path
) -> tuple[dict[str, Any], list[str]]:
    """Compute how objectives weight the base model's tokens, on examples of the cell's data.

    Args:
        cell: one that is finished.
        objectives: names.
        cache: where statistics of tokens are kept.

    Returns:
        Objective → `TokenLandscape`; and those that are not described by a gate alone.

    Raises:
        LandscapeError: model or data are gone, or cannot be used.
    """
    from deft.objectives import get_objective
    from deft.objectives.base import TOP_K, TokenStats
    from deft.objectives.diagnostics import LANDSCAPE_STATISTICS, landscapes

    try:
        resolved = [get_objective(name) for name in objectives]
    except ValueError as error:
        raise LandscapeError(str(error)) from None
    drawn = [each for each in resolved if each.is_described_by_gate and each.top_k == TOP_K]
    needs = LANDSCAPE_STATISTICS.union(*(objective.needs for objective in drawn))
    data = cell.require_manifest(PrepareManifest).prepared
    rows_dir = data.validation_dir if data.num_validation_examples else data.rows_dir
    columns = _statistics(data.model_dir, rows_dir, sorted(needs), cache)
    stats = TokenStats(**columns)
    others = [str(each.spec) for each in resolved if each not in drawn]
    return landscapes(stats, drawn), others


def _statistics(model_dir: str, rows_dir: str, needs: Sequence[str], cache: Path) -> dict[str, Any]:
    """Return the fields of `TokenStats` of `NUM_ROWS` examples, by a Ray task if not cached."""
    import torch

    try:
        # A local model may be overwritten in place; rows are named after their content.
        parts = "\0".join([fingerprint(Path(model_dir)), rows_dir, *needs, str(NUM_ROWS)])
    except FileNotFoundError:
        raise LandscapeError(f"{model_dir} is gone") from None
    file = cache / "landscapes" / f"{hashlib.sha256(parts.encode()).hexdigest()[:12]}.npz"
    columns = _cached(file)
    if columns is None:
        if not Path(rows_dir).is_dir():
            raise LandscapeError(f"{rows_dir} is gone")
        columns = _compute(model_dir, rows_dir, needs)
        with atomic_file(file) as out:
            np.savez(out, **columns)
    return {name: torch.tensor(column) for name, column in columns.items()}


def _cached(file: Path) -> dict[str, Any] | None:
    """Read a file of columns, whose format has checksums; None if it is damaged or not there."""
    try:
        with np.load(file) as kept:
            return {name: kept[name] for name in kept.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def _compute(model_dir: str, rows_dir: str, needs: Sequence[str]) -> dict[str, Any]:
    import ray

    from deft.platform.run.cluster import ray_cluster, require_workers

    def work() -> dict[str, Any]:
        from deft.workers.modeling.token_statistics import token_statistics

        stats = token_statistics(model_dir, rows_dir, needs, num_rows=NUM_ROWS)
        columns = {field.name: getattr(stats, field.name) for field in fields(stats)}
        return {name: column.numpy() for name, column in columns.items() if column is not None}

    try:
        with ray_cluster(verbose=False):
            gpus = 1 if require_workers(0) else 0
            task = ray.remote(num_gpus=gpus)(work).remote()
            try:
                result: dict[str, Any] = ray.get(task, timeout=DEVICE_TIMEOUT)
            except ray.exceptions.GetTimeoutError:
                ray.cancel(task, force=True)
                raise LandscapeError(f"no free device within {DEVICE_TIMEOUT} s") from None
            return result
    except (UserError, StageError, OSError, RuntimeError, ray.exceptions.RayError) as error:
        raise LandscapeError(" ".join(str(error).split())[:300]) from error
