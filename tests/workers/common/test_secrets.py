"""Passwords in addresses: which are found, and that nothing shows them."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from deft.workers.common.secrets import (
    has_secret,
    is_secret_name,
    secret_setting,
    without_secrets,
)
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


@pytest.mark.parametrize(
    "text",
    [
        "a@b.org wrote to c@d.org: 1/2 // 3",
        "--set KEY=VALUE: expected key=value, as in training.max_steps=10",
        "max_tokens=128, tokens_per_second=3, eos_token='<|im_end|>', sort_key=3",
        "HF_TOKEN_PATH=/home/a/.cache/token and key 'prompt' is missing",
        "training.token: unknown key; did you mean tokens?",
        "RuntimeError: gloo: connection closed by peer [127.0.0.1]:4711; the basic authorization",
        "sk-learn 1.4, hf_transfer and dapi, global-batch-size-per-device",
        "declare it by @objective(token_local=False); token_ids=[3], 'token_accuracy': 0.19",
        "token: the last one, password: must be set, --token-file x1y2z3a4b5",
        "pass: 3, key: prompt, sort_key: a, keys=12, auth: none; see pass=1 of 2",
        "python:3.11-slim@sha256:0123abcd and git@github.com:org/name.git at 10:30",
        "TokenCleaning-0.5: 3.1, 'TokenCleaning': 2",
        "compass=3 and bypass: on; ('tokens', '12'), token <|im_start|>, key sort_by_length_first",
        "unknown key training.max_steps2; token embedding/layer_0.Weight12, tokens%3D12",
    ],
)
def test_text_without_secrets_stays(text: str) -> None:
    assert without_secrets(text) == text
    assert not has_secret(text)


FORMS = {
    "user and password": "postgresql://user:{0}@host:5432/db",
    "parameter": "https://host/path?user=a&password={0}&x=1",
    "first parameter": "mssql+pyodbc://host/db?pwd={0}",
    "short parameter": "https://host/path?key={0}&x=1",
    "authentication": "https://host/path?a=1&auth={0}",
    "percent-encoded connection": "mssql+pyodbc:///?odbc_connect={0}",
    "shared access signature": "https://a.blob.core.windows.net/c?sv=2022-11-02&ss=b&sig={0}",
    "fragment": "https://host/callback#access_token={0}",
    "connection string": "Server=db;Uid=a;Pwd={0};Encrypt=yes",
    "account key": "DefaultEndpointsProtocol=https;AccountName=a;AccountKey={0};Suffix=b",
    "libpq": "host=db user=a password={0} connect_timeout=3",
    "variable": "WANDB_API_KEY={0}",
    "export": "export AWS_SECRET_ACCESS_KEY={0}",
    "argument": "--token={0}",
    "JSON": '{{"user": "a", "api_key": "{0}"}}',
    "Python": "{{'passwd': '{0}', 'x': 1}}",
    "YAML": "password: '{0}'",
    "bearer": "Authorization: Bearer {0}",
    "header of a dictionary": "{{'Authorization': 'Basic {0}'}}",
    "header of a service": "X-Api-Key: {0}",
    "parameter of a list": "https://host/path?password[]={0}&x=1",
    "code of a callback": "https://host/callback?code={0}7&x=1",
    "name in one": "PGPASSWORD={0}",
    "name that ends in key": "OPENAI_KEY={0}",
    "name that ends in pass": "DB_PASS={0}",
    "short name": "key={0}7",
    "license": "license_key={0}",
    "option": "--password {0}",
    "option with a dash": "serve --api-key {0}",
    "user of curl": "curl -u a:{0}",
    "user and host": "a:{0}@host",
    "user and host without scheme": "//a:{0}@host:22/x",
    "login": "machine host login a password {0}7",
    "sentence": "the password is {0}7",
    "assignment": "password => '{0}'",
    "escaped JSON": r"{{\"password\": \"{0}\"}}",
    "Python 2": "{{u'password': u'{0}'}}",
    "YAML without quotes": "passphrase: {0}7",
    "flow of YAML": "{{secretKey: {0}, x: 1}}",
    "XML": "<password>{0}</password>",
    "cookie": "Cookie: session={0}\n",
    "private key": "-----BEGIN RSA PRIVATE KEY-----\n{0}\n-----END RSA PRIVATE KEY-----",
    "bearer in an address": "https://host/?x=Bearer%20{0}",
    "parameter within an address": "https://host/?next=https%3A%2F%2Fb%3Fpassword%3D{0}%26x%3D1",
    "block of YAML": "password: >-\n  {0}7\n",
    "pair": "[('X-Token', '{0}7')]",
    "attribute": '<add key="ApiKey" value="{0}7"/>',
    "name in one that ends in pass": "SSHPASS={0}7",
    "session in an address": "https://host/path;jsessionid={0}7",
    "Oracle": "jdbc:oracle:thin:a/{0}@//host:1521/db",
    "refusal": "Incorrect API key provided: {0}Aa17",
    "refusal of a token": "the token '{0}Aa17' has expired",
    "call": "Token('{0}Aa17')",
}
"""How secrets are written, by what the form is called."""

plain = st.text(string.ascii_letters + string.digits, min_size=8, max_size=40)


@given(secret=plain, form=st.sampled_from(sorted(FORMS)), before=plain, after=plain)
def test_no_secret_in_any_form_is_shown(secret: str, form: str, before: str, after: str) -> None:
    # What else there is must be something else, or it could not be told that it is shown.
    secret, before, after = f"Zq{secret}", f"b{before} ", f" a{after}"
    shown = without_secrets(before + FORMS[form].format(secret) + after)
    assert secret not in shown, form
    assert has_secret(FORMS[form].format(secret)), form
    assert shown.startswith(before)
    assert shown.endswith(after)


@given(words=st.lists(plain, min_size=2, max_size=4), quote=st.sampled_from("'\""))
def test_a_quoted_secret_may_hold_blanks(words: list[str], quote: str) -> None:
    words = [f"Zq{word}" for word in words]
    value = f"{quote}{' '.join(words)}{quote}"
    for text in (f"password={value}, port=1", f"{quote}passphrase{quote}: {value}, port=1"):
        shown = without_secrets(text)
        assert not any(word in shown for word in words)
        assert shown.endswith(", port=1")


@pytest.mark.parametrize(
    "secret",
    [
        "hf_abcdefghijklmnopqrst",
        "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
        "sk-proj-abcdefghijklmnopqrst",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P",
        "AKIAABCDEFGHIJ234567",
        "AIzaabcdefghijklmnopqrstuvwxyz0123456789",
        "sk_live_abcdefghijklmnopqrstuvwx",
        "pypi-AgEIcHlwaS5vcmcabcdefghijklmnop",
        "SG.abcdefghijklmnopqrstuv.abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG",
        "hvs.CAESIabcdefghijklmnopqrstuvwxyz",
        "glrt-abcdefghijklmnopqrst",
    ],
)
def test_what_is_known_as_a_secret_by_itself_is_not_shown(secret: str) -> None:
    assert without_secrets(f"401 for {secret} at once") == "401 for … at once"


def test_secrets_of_the_environment_are_known_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEATHER_SERVICE_TOKEN", "correct horse")
    monkeypatch.setenv("STORE", "redis://default:battery-staple@host:6379")
    text = "refused: correct horse (battery-staple)"
    assert without_secrets(text) == "refused: … (…)"
    assert has_secret("the correct horse it is")
    assert without_secrets("host?p=correct%20horse") == "host?p=…"


def test_directories_that_a_shell_keeps_are_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PWD", "/home/someone/experiments")
    monkeypatch.setenv("OLDPWD", "/home/someone/before")
    uri = "sqlite:////home/someone/experiments/runs/mlflow.db"
    assert not has_secret(uri)
    assert without_secrets(f"{uri} /home/someone/before") == f"{uri} /home/someone/before"


def test_secrets_in_nested_settings_are_found() -> None:
    deepspeed = {"comet": {"enabled": True, "api_key": "abc"}}
    assert secret_setting({"training": {"deepspeed": deepspeed}}) == (
        *("training", "deepspeed", "comet", "api_key"),
    )
    extra = ["--extra-index-url=https://user:abc@host/simple"]
    assert secret_setting({"pip": {"packages": extra}}) == ("pip", "packages", 0)
    plain = {"max_tokens": 3, "prompt_style": "chat", "stop": ["key: a"], "deepspeed": {"a": None}}
    assert secret_setting(plain) is None


def test_variables_that_hold_secrets_are_known_by_their_names() -> None:
    secret = ["HF_TOKEN", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY"]
    plain = ["HF_HUB_OFFLINE", "HF_TOKEN_PATH", "MLFLOW_TRACKING_URI", "AWS_DEFAULT_REGION"]
    assert list(filter(is_secret_name, [*secret, *plain])) == secret


def test_a_megabyte_of_anything_is_searched_at_once() -> None:
    pieces = ["://", "?", "://a:", "?token", "@", "secret", "a=", "x-", '"a":', "'", "a:", "--a "]
    pieces += ["<a>", "-", "a.", "\\'", "Cookie ", "password ", "token a", "%26", "a%3D", "'a', "]
    for piece in (*pieces, "thin:", ": >\n "):
        text = piece * (2**18 // len(piece))
        assert not has_secret(text)
        assert without_secrets(text) == text
