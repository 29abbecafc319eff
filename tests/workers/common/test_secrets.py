"""Passwords in addresses: which are found, and that nothing shows them."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from deft.workers.common.secrets import has_secret, is_secret_name, without_secrets
from deft.workers.spec import TrainingSpec


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIA:hunter2@bucket/path?region=us-east-1",
        "s3://AKIA:hun/ter2@bucket",  # not percent-encoded
        "abfs://:hunter2@account.blob.core.windows.net/box",
        "https://user:hunter2@mlflow.example.org",
        "postgresql://host/db?user=a&password=hunter2",
        "abfs://box@account/path?sas_token=hunter2&x=1",
        "s3://bucket?secret_access_key=hunter2",
    ],
)
def test_secrets_are_found_and_not_shown(uri: str) -> None:
    assert has_secret(uri)
    shown = without_secrets(f"connecting to {uri}: timed out")
    assert "hunter2" not in shown
    assert "ter2" not in shown
    assert shown.startswith("connecting to ")
    assert shown.endswith(" timed out")
    with pytest.raises(ValidationError, match="AWS_SECRET_ACCESS_KEY") as refusal:
        TrainingSpec(checkpoint_storage=uri)
    assert "hunter2" not in refusal.value.errors()[0]["msg"]


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/path?endpoint_override=127.0.0.1:9000&scheme=http",
        "gs://anonymous@bucket/path",
        "abfs://box@account.dfs.core.windows.net/path",
        "/mnt/a:b@c",
        "postgresql://user@host:5432/db",
        "postgresql://postgres:@/postgres?host=/tmp/socket",
        "sqlite:////runs/mlflow.db",
    ],
)
def test_addresses_without_secrets_are_let_through(uri: str) -> None:
    assert not has_secret(uri)
    assert TrainingSpec(checkpoint_storage=uri).checkpoint_storage == uri


def test_text_without_addresses_stays() -> None:
    text = "a@b.org wrote to c@d.org: 1/2 // 3"
    assert without_secrets(text) == text


def test_variables_that_hold_secrets_are_known_by_their_names() -> None:
    secret = ["HF_TOKEN", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY"]
    plain = ["HF_HUB_OFFLINE", "HF_TOKEN_PATH", "MLFLOW_TRACKING_URI", "AWS_DEFAULT_REGION"]
    assert list(filter(is_secret_name, [*secret, *plain])) == secret


def test_a_megabyte_of_anything_is_searched_at_once() -> None:
    for piece in ("://", "?", "://a:", "?token", "@", "secret"):
        text = piece * (2**20 // len(piece))
        assert not has_secret(text)
        assert without_secrets(text) == text
