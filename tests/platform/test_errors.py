"""What is said of an error."""

from __future__ import annotations

import errno

import mlflow
import pytest
from mlflow.exceptions import MlflowException

from deft.platform.errors import describe_error


def test_a_full_disk_is_answered_with_what_to_do() -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "/runs/cache/a")
    assert describe_error(full).startswith("/runs/cache/a: No space left on device; free some, ")
    missing = FileNotFoundError(errno.ENOENT, "No such file or directory", "/a")
    assert describe_error(missing) == (
        "FileNotFoundError: [Errno 2] No such file or directory: '/a'"
    )


def test_passwords_in_the_addresses_that_libraries_cite_are_not_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    client = mlflow.MlflowClient("http://user:hunter2@127.0.0.1:9")
    with pytest.raises(MlflowException) as caught:
        client.get_experiment_by_name("deft")
    assert "hunter2" in str(caught.value)
    assert "hunter2" not in describe_error(caught.value)
    assert "127.0.0.1" in describe_error(caught.value)
