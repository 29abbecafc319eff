"""MLflow tracking URIs: the default one, and which ones can be used."""

from __future__ import annotations

import re
from importlib.metadata import entry_points
from pathlib import Path
from urllib.parse import urlsplit

from deft.platform.errors import UserError
from deft.workers.common.names import unknown_name
from deft.workers.common.secrets import has_secret, without_secrets

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
"""URI schemes of the databases that MLflow can use."""


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
