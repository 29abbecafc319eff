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
from urllib.parse import quote

MASK = "…"
"""What a secret is replaced by."""

WORDS = frozenset(
    {
        *("secret", "password", "passwd", "passphrase", "passcode", "pwd", "token", "jwt"),
        *("credential", "credentials", "creds", "signature", "apikey", "authorization"),
        *("odbcconnect", "odbc connect", "shared access", "api key", "access key", "account key"),
        *("shared key", "private key", "auth key", "license key", "signing key", "master key"),
        *("encryption key", "service key"),
    }
)
"""Words in the names of secrets, in lower case."""

ENDINGS = ("password", "passwords", "passwd", "passphrase", "apikey")
"""What the names of secrets end in where they are written in one, as PGPASSWORD."""

SHORT_NAMES = frozenset({"key", "auth", "sig", "sas", "pw", "pass", "hmac", "csrf", "xsrf"})
"""Names of secrets in addresses; elsewhere, and as a last word, they mean other things as well."""

SHORT_ENDINGS = ("pass", "pw")
"""What such names end in where they are written in one, as SSHPASS."""

AMBIGUOUS_NAMES = frozenset({"code", "session", "sessionid", "jsessionid", "phpsessid", "sid"})
"""Names in addresses that may mean other things even there."""

VARIABLE = re.compile(r"[A-Z][A-Z\d]*(?:_[A-Z\d]+)*_(?:KEY|PASS|PW|AUTH|SAS|PAT)")
"""Names of environment variables that hold secrets by their last word alone."""

OF_TEXT = frozenset({"eos", "bos", "pad", "unk", "sep", "cls", "mask", "stop", "special", "per"})
"""Words before ``token`` in the names of what a tokenizer knows."""

ABOUT = frozenset({"path", "file", "dir", "name", "id", "url", "uri", "type", "mode", "expiry"})
"""Last words of names of what is about a secret, and is none."""

DIRECTORIES = frozenset({"PWD", "OLDPWD"})
"""Variables in which a shell keeps directories, though ``pwd`` is short for password as well."""

MIN_KNOWN_LENGTH = 6
"""Characters of the shortest value of an environment variable that is looked for everywhere."""

_QUOTED = r"""\\?(?:'[^'\n]{0,1000}'|"[^"\n]{0,1000}")"""
_VALUE = rf"""(?:[bru]?{_QUOTED}|[^\s,;&#'")\]}}]{{1,4000}})"""
_NAME = r"(?<![\w.-])([\w.-]{1,60})"
_IN_ADDRESS = re.compile(r"[?&#;]\s{0,4}([\w.-]{1,60})(?:\[\w{0,20}\])?=([^&#;\s'\"]+)")
_SETTING = re.compile(rf"{_NAME}\\?['\"]?\s{{0,4}}=>?\s{{0,4}}({_VALUE})")
_ENTRY = re.compile(
    rf"""{_NAME}(\\?['"])?\s{{0,4}}:\s{{0,4}}(?:[|>][+-]?\s{{1,80}})?({_VALUE})"""
    r"(?=([ \t]{0,4}\S?))"
)
_PAIR = re.compile(rf"""['"]([\w.-]{{1,60}})['"](?:,|\s{{1,4}}value=)\s{{0,4}}({_QUOTED})""")
_ENCODED = re.compile(
    r"(?i)(?:%3f|%26|%3b|(?<![\w.%-]))([\w.-]{1,60})%3d((?:(?!%26|%3b)[^\s&'\"]){1,4000})"
)
_OPTION = re.compile(rf"(?<!\S)--([\w-]{{1,60}})\s{{1,4}}(?!-)({_VALUE})")
_ELEMENT = re.compile(r"<([\w.:-]{1,60})>([^<\s]{1,1000})<")
_SENTENCE = re.compile(r"(?i)\b(?:password|passwd|passphrase)(?:\s{1,4}is)?\s{1,4}(\S{1,400})")
_REFUSAL = re.compile(
    r"(?i)\b(?:token|key|secret|credentials?)(?:\s{1,4}(?:is|was|provided|given))?"
    r"(?:\s{1,4}|:\s{0,4}|\()['\"`]?([\w.+/=~-]{12,400})"
)
_LOGIN = re.compile(
    r"(?<![\w.:/@%+-])(?://)?[\w.%+-]{1,60}:([^\s@/:'\"]{1,200})@(?!sha\d+:)[A-Za-z\d\[]"
    r"|\bthin:[^\s/@]{1,60}/([^\s@]{1,200})@"
    r"|(?<!\S)(?:-u|--user)\s{1,4}['\"]?[^\s:'\"]{1,100}:([^\s'\"]{1,400})"
)
_HEADER = re.compile(
    r"(?i)(?:\bauthorization['\"]?\s{0,4}[:=]\s{0,4}['\"]?(?:(?:bearer|basic|token|digest)\s{1,4})?"
    r"|\bbearer(?:\s|%20|\+){1,4}"
    r"|\bx-[\w-]{0,20}(?:key|token|secret)['\"]?\s{0,4}:\s{0,4}['\"]?)"
    r"([\w.~+/=:-]{6,4000})"
)
_COOKIE = re.compile(
    r"(?i)\b(?:set-)?cookie['\"]?\s{0,4}:\s{0,4}['\"]?([^\s=]{1,100}=[^\r\n'\"]{1,4000})"
)
_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----([^-]{1,20000})")
_OWN_FORM = re.compile(
    r"\b((?:hf_|gh[pousr]_|github_pat_|sk-|[rs]k_(?:live|test)_|xox[abprs]-|dapi|gsk_|nvapi-|r8_"
    r"|gl(?:pat|dt|rt|ptt|ft|cbt|soat|imt|agent|ffct)-|npm_|pypi-|dckr_pat_|wandb_v1_|AIza|ya29\."
    r"|hvs\.|shp(?:at|ss|ca|pa)_|ATATT3)[\w-]{16,255}"
    r"|(?:AKIA|ASIA)[A-Z\d]{16}|SG\.[\w-]{16,40}\.[\w-]{16,80}"
    r"|eyJ[\w-]{8,2000}\.[\w-]{8,4000}\.[\w-]{8,1000})"
    r"|(?:hooks\.slack\.com/services/|discord(?:app)?\.com/api/webhooks/|api\.telegram\.org/bot)"
    r"([\w/:-]{16,200})"
)
_MIXED = re.compile(r"(?=.*[A-Z])(?=.*[a-z])(?=.*\d.*\d)[^/]{12,}|[\da-f]{32,}")
_RANDOM = re.compile(r"(?=.*[A-Za-z])(?=.*\d)(?!\.{0,2}/)[\w.+/=~-]{8,400}")


def is_secret_name(name: str) -> bool:
    """Tell whether a setting or an environment variable is called like one that holds a secret."""
    words = _words(name)
    if not words or words[-1] in ABOUT:
        return False
    if VARIABLE.fullmatch(name) and "PUBLIC" not in name:
        return True
    if any(word.endswith(ENDINGS) for word in words):
        return True
    pairs = [" ".join(pair) for pair in pairwise(words)]
    found = WORDS.intersection([*words, *pairs])
    if found == {"token"}:
        place = words.index("token")
        is_last = place == len(words) - 1 or name.isupper()
        return is_last and (place == 0 or words[place - 1] not in OF_TEXT)
    return bool(found)


def _is_secret(name: str, value: str) -> bool:
    """Tell whether ``name`` is called like a secret, or may be and has a value that looks so."""
    if is_secret_name(name):
        return True
    last = " ".join(_words(name)[-1:])
    return (last in SHORT_NAMES or last.endswith(SHORT_ENDINGS)) and _looks_random(value)


def _looks_random(value: str) -> bool:
    return _RANDOM.fullmatch(value.strip("'\"\\")) is not None


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
    """Yield begin and end of every secret but the passwords before the @ of an address."""
    for match in _IN_ADDRESS.finditer(text):
        name, value = match[1].lower(), match[2]
        ambiguous = name in AMBIGUOUS_NAMES and _looks_random(value)
        if name in SHORT_NAMES or ambiguous or _is_secret(match[1], value):
            yield match.span(2)
    for match in _SETTING.finditer(text):
        if match[2].strip("'\"\\") and _is_secret(match[1], match[2]):
            yield match.span(2)
    for match in _ENTRY.finditer(text):
        name, quotation_mark, value, next_one = match.groups()
        # After an unquoted name there may be a sentence: "token: unknown key".
        alone = name.lower() != "token" and next_one.strip() in ("", ",", ";", "}", ")", "]")
        is_value = quotation_mark or value[-1] in "'\"" or alone or _looks_random(value)
        if is_value and value.strip("'\"\\") and _is_secret(name, value):
            yield match.span(3)
    for match in _REFUSAL.finditer(text):
        if _MIXED.fullmatch(match[1]):
            yield match.span(1)
    for match in _PAIR.finditer(text):
        if is_secret_name(match[1]) and _looks_random(match[2]):
            yield match.span(2)
    for pattern in (_OPTION, _ELEMENT, _ENCODED):
        for match in pattern.finditer(text):
            if is_secret_name(match[1]):
                yield match.span(2)
    for match in _SENTENCE.finditer(text):
        if _looks_random(match[1]):
            yield match.span(1)
    for pattern in (_LOGIN, _HEADER, _COOKIE, _PRIVATE_KEY, _OWN_FORM):
        for match in pattern.finditer(text):
            yield match.span(match.lastindex or 0)
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
    values |= {quote(value, safe="") for value in values}
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
