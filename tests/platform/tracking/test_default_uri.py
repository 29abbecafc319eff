"""MLflow's default database lies under the run root, or the root is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from deft.platform.cli import app
from deft.platform.errors import UserError


@pytest.mark.parametrize("name", ["r?1", "r#1", "r%3F1", "r?1/inner"])
def test_root_that_a_uri_cannot_name_is_refused(tmp_path: Path, name: str) -> None:
    """Two roots would share one database, which would lie beside them."""
    options = ["--dataset", "figfont", "--model", "tiny", "--objective", "p"]
    with pytest.raises(UserError, match="choose another directory or give --tracking-uri"):
        app(["run", *options, "--root", str(tmp_path / name)], standalone_mode=False)
    assert list(tmp_path.iterdir()) == []
