"""Secrets: refused where they would be written down, masked in what is said.

They are known by the name before them, by the form of an address around them, by their own form,
and, whatever is around them, by being the value of an environment variable that is called like one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

MASK = "…"
"""What a secret is replaced by."""

WORDS = frozenset(
    {
        *("secret", "password", "passwd", "passphrase", "pwd", "token", "credential"),
        *("credentials", "signature", "apikey", "authorization", "odbcconnect"),
        *("api key", "access key", "account key", "shared key", "private key", "auth key"),
        *("odbc connect", "shared access"),
    }
)
"""Words in the names of secrets, in lower case."""

SHORT_NAMES = frozenset({"key", "auth", "sig", "sas", "pw", "pass"})
"""Whole names of secrets in addresses and connection strings; elsewhere they mean other things."""

OF_TEXT = frozenset({"eos", "bos", "pad", "unk", "sep", "cls", "mask", "stop", "special", "per"})
"""Words before ``token`` in the names of what a tokenizer knows."""

ABOUT = frozenset({"path", "file", "dir", "name", "id", "url", "uri", "type", "mode", "expiry"})
"""Last words of names of what is about a secret, and is none."""

DIRECTORIES = frozenset({"PWD", "OLDPWD"})
"""Variables in which a shell keeps directories, though ``pwd`` is short for password as well."""

MIN_KNOWN_LENGTH = 6
"""Characters of the shortest value of an environment variable that is looked for everywhere."""

_VALUE = r"""(?:'[^'\n]{0,1000}'|"[^"\n]{0,1000}"|[^\s,;&#'")\]}]{1,4000})"""
_IN_ADDRESS = re.compile(r"[?&#;]\s{0,4}([\w.-]{1,60})=([^&#;\s'\"]+)")
_SETTING = re.compile(rf"(?<![\w.-])([\w.-]{{1,60}})['\"]?\s{{0,4}}=\s{{0,4}}({_VALUE})")
_ENTRY = re.compile(
    r"""['"]([\w.-]{1,60})['"]\s{0,4}:\s{0,4}"""
    r"""('[^'\n]{0,1000}'|"[^"\n]{0,1000}"|[^\s,'"}\]]{1,1000})"""
    r"""|(?<![\w.-])([\w.-]{1,60}):\s{0,4}('[^'\n]{0,1000}'|"[^"\n]{0,1000}")"""
)
_HEADER = re.compile(
    r"(?i)(?:\bauthorization['\"]?\s{0,4}[:=]\s{0,4}['\"]?(?:(?:bearer|basic|token|digest)\s{1,4})?"
    r"|\bbearer\s{1,4}|\bx-[\w-]{0,20}(?:key|token|secret)['\"]?\s{0,4}:\s{0,4}['\"]?)"
    r"([\w.~+/=:-]{6,4000})"
)
_OWN_FORM = re.compile(
    r"\b((?:hf_|gh[pousr]_|github_pat_|glpat-|sk-|xox[abprs]-|dapi)[\w-]{16,255}"
    r"|eyJ[\w-]{8,2000}\.[\w-]{8,4000}\.[\w-]{8,1000})"
)


def is_secret_name(name: str) -> bool:
    """Tell whether a setting or an environment variable is called like one that holds a secret."""
    words = _words(name)
    if not words or words[-1] in ABOUT:
        return False
    pairs = [" ".join(pair) for pair in pairwise(words)]
    found = WORDS.intersection([*words, *pairs])
    if found == {"token"}:
        return words.index("token") == 0 or words[words.index("token") - 1] not in OF_TEXT
    return bool(found)


def _words(name: str) -> list[str]:
    """Split a name at case changes and at what is no letter."""
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    return re.sub(r"[\W_\d]+", " ", parted).lower().split()


def has_secret(text: str) -> bool:
    """Tell whether there is a secret in a setting, such as an address with a password."""
    return _password(text) or any(True for _ in _spans(text))


def without_secrets(text: str) -> str:
    """Return ``text`` with a mask for each secret, and for the users in addresses."""
    text = re.sub(r"\S+", _without_user, text)
    pieces, end = [], 0
    for start, stop in sorted(_spans(text)):
        if stop > end:
            pieces += [text[end : max(start, end)], MASK if start >= end else ""]
            end = stop
    return "".join([*pieces, text[end:]])


def secret_setting(settings: Any, path: tuple[str | int, ...] = ()) -> tuple[str | int, ...] | None:
    """Find a secret in nested settings; return the keys that lead to it, None if there is none."""
    if isinstance(settings, Mapping):
        children = list(settings.items())
    elif isinstance(settings, Sequence) and not isinstance(settings, str):
        children = list(enumerate(settings))
    else:
        named = bool(path) and is_secret_name(str(path[-1]))
        is_secret = isinstance(settings, str) and settings and (named or has_secret(settings))
        return path if is_secret else None
    deeper = (secret_setting(value, (*path, key)) for key, value in children)
    return next((keys for keys in deeper if keys is not None), None)


def _spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield begin and end of every secret but the passwords before an @."""
    for match in _IN_ADDRESS.finditer(text):
        if match[1].lower() in SHORT_NAMES or is_secret_name(match[1]):
            yield match.span(2)
    for match in _SETTING.finditer(text):
        if is_secret_name(match[1]) and match[2].strip("'\""):
            yield match.span(2)
    for match in _ENTRY.finditer(text):
        name, group = (1, 2) if match[1] else (3, 4)
        if is_secret_name(match[name]) and match[group].strip("'\""):
            yield match.span(group)
    for pattern in (_HEADER, _OWN_FORM):
        for match in pattern.finditer(text):
            yield match.span(1)
    for value in _known_values():
        for match in re.finditer(re.escape(value), text):
            yield match.span()


def _known_values() -> set[str]:
    """Return the secrets in this process's environment."""
    values = {
        value
        for name, value in os.environ.items()
        if name not in DIRECTORIES and is_secret_name(name)
    }
    for value in os.environ.values():
        if "://" in value and "@" in value:
            values.add(_parts(value)[1].partition(":")[2])
    return {value for value in values if len(value) >= MIN_KNOWN_LENGTH}


def _password(uri: str) -> bool:
    _, user, _ = _parts(uri)
    return bool(user.partition(":")[2])


def _without_user(word: re.Match[str]) -> str:
    before, user, after = _parts(word[0])
    return f"{before}{MASK}{after}" if user else word[0]


def _parts(uri: str) -> tuple[str, str, str]:
    """Split a URI into what is before user and password, those two, and the rest from the @ on.

    They reach to the last @: a password that was not percent-encoded may hold anything.
    """
    start, end = uri.find("://") + 3, uri.rfind("@")
    return (uri[:start], uri[start:end], uri[end:]) if 3 <= start < end else (uri, "", "")
