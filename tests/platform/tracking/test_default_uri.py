"""The default database lies under the run root, whatever the root is called, or is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from deft.platform.errors import UserError
from deft.platform.tracking.recorder import default_tracking_uri


@pytest.mark.parametrize("name", ["r \u00fc n", "a;b", "a&b=c", "50%", "100%x"])
def test_default_uri_names_the_path(tmp_path: Path, name: str) -> None:
    uri = default_tracking_uri(tmp_path / name)
    assert uri == f"sqlite:///{tmp_path / name / 'mlflow.db'}"


@pytest.mark.parametrize("name", ["r?1", "r#1", "r%3F1", "r?1/inner"])
def test_root_that_a_uri_cannot_name_is_refused(tmp_path: Path, name: str) -> None:
    """Two roots would share one database, which would lie beside them."""
    with pytest.raises(UserError, match="choose another directory or give --tracking-uri"):
        default_tracking_uri(tmp_path / name)
