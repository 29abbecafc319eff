"""Passwords in addresses: found before they are written anywhere, and never shown."""

from __future__ import annotations

import re

_NAMES = "(?:secret|password|token|credential|signature|api_?key|access_?key|account_?key)"
_PARAMETER = re.compile(rf"([?&][^=&?\s]{{0,40}}{_NAMES}[^=&?\s]{{0,40}}=)[^&\s]+", re.IGNORECASE)
_SECRET_NAME = re.compile(rf"{_NAMES}(?!.*_(PATH|FILE|DIR)$)", re.IGNORECASE)


def has_secret(uri: str) -> bool:
    """Tell whether ``uri`` holds a password, or a parameter that is called like one."""
    _, user, _ = _parts(uri)
    return bool(user.partition(":")[2] or _PARAMETER.search(uri))


def is_secret_name(variable: str) -> bool:
    """Tell whether an environment variable is called like one that holds a secret itself."""
    return bool(_SECRET_NAME.search(variable))


def without_secrets(text: str) -> str:
    """Return ``text`` without the users, passwords and secret parameters of the URIs in it."""
    return _PARAMETER.sub(r"\1…", re.sub(r"\S+", _without_user, text))


def _without_user(word: re.Match[str]) -> str:
    before, user, after = _parts(word[0])
    return f"{before}…{after}" if user else word[0]


def _parts(uri: str) -> tuple[str, str, str]:
    """Split a URI into what is before user and password, those two, and the rest from the @ on.

    They reach to the last @: a password that was not percent-encoded may hold anything.
    """
    start, end = uri.find("://") + 3, uri.rfind("@")
    return (uri[:start], uri[start:end], uri[end:]) if 3 <= start < end else (uri, "", "")
