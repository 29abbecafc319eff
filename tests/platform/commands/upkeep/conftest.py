"""A run root with a finished run, a failed one, and one that trains."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deft.platform.records.run_directory import RunDirectory


@pytest.fixture
def root(tmp_path: Path, finished: Any) -> Path:
    """Copy the finished run and its sweep."""
    return Path(shutil.copytree(finished.root, tmp_path / "root", symlinks=True))


@pytest.fixture
def add_run(root: Path, make_run: Callable[..., RunDirectory[Any]]) -> Callable[..., Path]:
    """Add a run whose data are prepared: (seed, error) → its directory."""

    def add(seed: int, error: str = "") -> Path:
        run = make_run(seed)
        path = Path(shutil.move(run.path, root / run.path.name))
        if error:
            entries = [{"tags": {"deft.error": error}}, {"status": "FAILED", "time": 1}]
            (path / "mlflow").mkdir()
            lines = "".join(json.dumps(entry) + "\n" for entry in entries)
            (path / "mlflow" / "outbox.jsonl").write_text(lines)
        return path

    return add
