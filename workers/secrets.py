"""Passwords in addresses: found before they are written anywhere, and never shown."""

from __future__ import annotations

import re

_PASSWORD = re.compile(r"://[^@\s]*:[^@\s]+@")
"""Up to the @, for a password that was not percent-encoded may hold slashes."""
_NAMES = "(?:secret|password|token|credential|signature|api_?key|access_?key|account_?key)"
_SECRET_PARAMETER = re.compile(rf"([?&][^=&\s]*{_NAMES}[^=&\s]*=)[^&\s]+", re.IGNORECASE)
_SECRET_NAME = re.compile(rf"{_NAMES}(?!.*_(PATH|FILE|DIR)$)", re.IGNORECASE)


def has_secret(uri: str) -> bool:
    """Whether there is a password in ``uri``, or a parameter that is called like one."""
    return bool(_PASSWORD.search(uri) or _SECRET_PARAMETER.search(uri))


def is_secret_name(variable: str) -> bool:
    """Whether an environment variable is called like one that holds a secret itself."""
    return bool(_SECRET_NAME.search(variable))


def without_secrets(text: str) -> str:
    """``text`` without the users, passwords and secret parameters of the URIs in it."""
    return _SECRET_PARAMETER.sub(r"\1…", re.sub(r"://\S*@", "://…@", text))
