"""MLflow tracking URIs: the default one, and which ones can be used."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from deft.platform.errors import UserError
from deft.workers.common.names import unknown_name
from deft.workers.common.secrets import has_secret, without_secrets

if TYPE_CHECKING:
    import requests

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
"""URI schemes of the databases that MLflow can use."""

ANSWER_TIMEOUT = 5.0
"""Seconds that a server may take to answer at the start of a command."""


def warn_if_unreachable(uri: str, notify: Callable[[str], None]) -> None:
    """Say at the start if MLflow cannot be reached: no run waits for it, but a typo is for ever."""
    if problem := why_unreachable(uri):
        notify(f"warning: {problem}; results are queued and delivered when it answers")


def default_tracking_uri(root: Path) -> str:
    """Return the URI of an SQLite database under the run root.

    Raises:
        UserError: MLflow would read another path out of the URI.
    """
    database = root.resolve() / "mlflow.db"
    # MLflow decodes %3F before SQLAlchemy cuts the path at a question mark: no quoting helps.
    if re.search("[?#]|%[0-9A-Fa-f]{2}", str(database)):
        raise UserError(
            f"--root {root}: the path {database} holds ?, # or %, which mean something "
            "else in MLflow's SQLite URI; choose another directory or give --tracking-uri"
        )
    return f"sqlite:///{database}"


def require_no_secret(uri: str) -> None:
    """Raise UserError if there is a password in the tracking URI ``uri``."""
    if has_secret(uri) or re.match(r"https?://[^/]*@", uri):
        raise UserError(
            f"tracking URI {without_secrets(uri)}: a password in it would reach logs and files. "
            "Give it by the environment: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, "
            "or MLFLOW_TRACKING_TOKEN, for a server; PGPASSWORD for PostgreSQL. Put an MLflow "
            "server before other databases that ask for one"
        )


def require_tracking_uri(uri: str) -> None:
    """Raise UserError if ``uri`` is not a valid MLflow tracking URI (no server is asked)."""
    require_no_secret(uri)
    shown = without_secrets(uri)
    expected = "expected http(s)://HOST:PORT, sqlite:///FILE or postgresql://USER@HOST/DATABASE"
    try:
        parts = urlsplit(uri)
        scheme, host, _ = parts.scheme, parts.hostname or "", parts.port
    except ValueError as error:
        raise UserError(f"tracking URI {shown}: {error}; {expected}") from None
    plugins = {plugin.name for plugin in entry_points(group="mlflow.tracking_store")}
    schemes = {"http", "https", "databricks", *DATABASES, *plugins}
    name = scheme.partition("+")[0] or uri
    if name not in schemes:
        raise UserError(f"tracking URI {shown}: {unknown_name('scheme', name, schemes)} {expected}")
    if scheme in ("http", "https") and not re.fullmatch(r"[\w.-]+|[0-9a-f:.%]+", host):
        raise UserError(f"tracking URI {shown}: invalid host name; {expected}")
    if name in DATABASES:
        try:
            _import_driver(uri)
        except ModuleNotFoundError as error:
            raise UserError(
                f"tracking URI {shown}: needs the Python package {error.name}, not installed here"
            ) from None
        except ValueError as error:
            raise UserError(f"tracking URI {shown}: {error}; {expected}") from None


def why_unreachable(uri: str) -> str:
    """Return why the MLflow server at ``uri`` cannot be used now; empty if it can, or is none."""
    if urlsplit(uri).scheme not in ("http", "https"):
        return ""
    import requests

    shown = without_secrets(uri)
    # Any MLflow answers this in JSON, be the experiment there or not.
    question = f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/get-by-name?experiment_name=deft"
    try:
        answer = requests.get(question, timeout=ANSWER_TIMEOUT, auth=_credentials())
        if answer.status_code in (401, 403):
            return (
                f"tracking URI {shown}: the server refuses access ({answer.status_code}); set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
            )
        answer.json()
    except requests.exceptions.JSONDecodeError:
        return f"tracking URI {shown}: a server answers, but it is not MLflow; check the address"
    except requests.RequestException as error:
        cause = type(error).__name__
        return f"tracking URI {shown}: no answer ({cause}); start the server, or check the address"
    return ""


def _credentials() -> Callable[[requests.PreparedRequest], requests.PreparedRequest]:
    """Return what adds the credentials of MLflow's environment variables to a request."""
    from requests.auth import HTTPBasicAuth

    def add(request: requests.PreparedRequest) -> requests.PreparedRequest:
        if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
            request.headers["Authorization"] = f"Bearer {token}"
        elif user := os.environ.get("MLFLOW_TRACKING_USERNAME"):
            password = os.environ.get("MLFLOW_TRACKING_PASSWORD", "")
            return HTTPBasicAuth(user, password)(request)
        return request

    return add


def _import_driver(uri: str) -> None:
    """Import a database's driver.

    Raises:
        ModuleNotFoundError: it is not installed.
        ValueError: the URI is malformed or names an unknown database.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    try:
        make_url(uri).get_dialect().import_dbapi()
    except (ArgumentError, NoSuchModuleError) as error:
        raise ValueError(str(error).replace(uri, "it")) from None
