"""Tasks of the driver on a real Ray cluster."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray

from deft.platform.errors import UserError
from deft.platform.run.cluster import run_task
from deft.workers.common.hub import NotOnThisNodeError


def test_what_one_node_has_not_is_looked_for_on_the_others(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One node stands in for two: its first attempt fails."""
    nodes, tried = ray.nodes(), tmp_path / "tried"
    monkeypatch.setattr(ray, "nodes", lambda: 2 * nodes)

    def work() -> str:
        if not tried.exists():
            tried.touch()
            raise NotOnThisNodeError("not here")
        return "there"

    assert run_task(work, stage="test") == "there"

    def nowhere() -> str:
        raise NotOnThisNodeError("not here")

    with pytest.raises(UserError, match="model: not here"):
        run_task(nowhere, stage="test", refusal="model: ")
