"""How an objective is named in a run file: a canonical name and its parameters.

Needs pydantic and the standard library only, so a laptop validates a sweep without torch.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic import (
    Field,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from deft.objectives.catalog import CATALOG, ObjectiveInfo
from deft.workers.common.settings import Settings

_IMPORT_PATH = re.compile(r"(?:[^\W\d]\w*\.)*[^\W\d]\w*:[^\W\d]\w*")
_WITH_ARGUMENTS = re.compile(r"(?P<name>[^()]+)\((?P<arguments>.*)\)", re.DOTALL)


class ObjectiveSpec(Settings):
    """One objective and its parameters.

    Validates from a string (`DEFT`, `deft`, `GeneralFamily-0.5`, `GeneralFamily--1`,
    `my_pkg.my_mod:my_objective`, `my_pkg.my_mod:my_objective(beta=0.5)`) or from a mapping
    (`{name: GeneralFamily, alpha: 0.5}`). Serialises to its canonical string, so that two
    spellings of one objective hash alike.
    """

    name: str
    """Canonical name from the catalog, or the import path `package.module:attribute`."""
    params: Mapping[str, bool | int | float | str] = Field(default_factory=dict)
    """Every parameter of the objective, defaults filled in, in the catalog's order."""

    @model_validator(mode="before")
    @classmethod
    def resolve_spelling(cls, value: Any) -> Any:
        if isinstance(value, str):
            return _from_string(value.strip())
        if isinstance(value, Mapping):
            fields = {str(key): item for key, item in value.items()}
            name = fields.pop("name", None)
            if not isinstance(name, str):
                raise ValueError(f"an objective needs a name (a string); got {dict(value)!r}")
            nested = fields.pop("params", {})
            if not isinstance(nested, Mapping):
                raise ValueError(f"params of objective {name!r} must be a mapping; got {nested!r}")
            if overlap := sorted(nested.keys() & fields.keys()):
                raise ValueError(f"parameter {overlap[0]!r} of objective {name!r} is given twice")
            return _resolve(name.strip(), {**fields, **nested})
        return value

    @field_validator("params")
    @classmethod
    def require_scalars(cls, value: Mapping[str, Any]) -> Mapping[str, Any]:
        for key in value:
            if not key.isidentifier():
                raise ValueError(f"parameter name {key!r} is not an identifier")
        return value

    @model_serializer
    def serialize_canonically(self) -> str:
        return str(self)

    @property
    def info(self) -> ObjectiveInfo | None:
        """The catalog's entry, or None for an objective given by import path."""
        return CATALOG.get(self.name)

    def __str__(self) -> str:
        info = self.info
        if info is None:
            if not self.params:
                return self.name
            arguments = ",".join(f"{key}={json.dumps(self.params[key])}" for key in self.params)
            return f"{self.name}({arguments})"
        if info.parameter is None:
            return self.name
        value = self.params[info.parameter]
        if value == info.default:
            return self.name
        return f"{self.name}-{_number(float(value))}"

    def __hash__(self) -> int:
        return hash(str(self))


def _number(value: float) -> str:
    """Shortest text that reads back as the same float (`1`, `-0.5`, `1e-05`)."""
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)


def _from_string(text: str) -> dict[str, Any]:
    if match := _WITH_ARGUMENTS.fullmatch(text):
        return _resolve(match["name"].strip(), _arguments(match["arguments"], text))
    if ":" in text or _lookup(text):
        return _resolve(text, {})
    # Names may hold "-" and a value may be negative: try every cut, the longest name first.
    cuts = [index for index, character in enumerate(text) if character == "-" and index]
    for cut in reversed(cuts):
        info = _lookup(text[:cut])
        if info is None:
            continue
        if info.parameter is None:
            raise ValueError(f"objective {info.name!r} takes no parameter; got {text!r}")
        try:
            value = float(text[cut + 1 :])
        except ValueError:
            raise ValueError(
                f"objective {text!r}: expected a number for {info.parameter!r} after "
                f"{text[:cut]!r}-, got {text[cut + 1 :]!r}"
            ) from None
        return _resolve(info.name, {info.parameter: value})
    return _resolve(text, {})


def _arguments(text: str, whole: str) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    # A comma inside a JSON string is not a separator; one before `key=` is.
    for part in filter(None, re.split(r",\s*(?=[^\W\d]\w*\s*=)", text.strip())):
        key, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"objective {whole!r}: expected key=value, got {part!r}")
        try:
            arguments[key.strip()] = json.loads(value)
        except json.JSONDecodeError:
            raise ValueError(
                f"objective {whole!r}: the value of {key.strip()!r} must be a number, true, "
                f'false or a "quoted string"; got {value!r}'
            ) from None
    return arguments


def _lookup(name: str) -> ObjectiveInfo | None:
    if name in CATALOG:
        return CATALOG[name]
    return next((info for info in CATALOG.values() if name in info.aliases), None)


def _resolve(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    if ":" in name:
        if not _IMPORT_PATH.fullmatch(name):
            raise ValueError(
                f"objective {name!r} is not an import path; expected package.module:attribute"
            )
        return {"name": name, "params": dict(sorted(given.items()))}
    info = _lookup(name)
    if info is None:
        known = [
            spelling for entry in CATALOG.values() for spelling in (entry.name, *entry.aliases)
        ]
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        raise ValueError(
            f"unknown objective {name!r}; did you mean {close[0]!r}? "
            "(`deft list objectives` shows all; your own is given as package.module:attribute)"
        )
    try:
        parameters = info.parameters.model_validate(dict(given))
    except ValidationError as error:
        raise ValueError("; ".join(_explain(info, dict(item)) for item in error.errors())) from None
    return {"name": info.name, "params": parameters.model_dump()}


def _explain(info: ObjectiveInfo, error: dict[str, Any]) -> str:
    key = error["loc"][0] if error["loc"] else None
    if error["type"] == "missing":
        return f"objective {info.name!r} needs its parameter {key!r}, as in {info.example!r}"
    if error["type"] == "extra_forbidden":
        expected = f"only {info.parameter!r}" if info.parameter else "no parameter"
        return f"objective {info.name!r} has no parameter {key!r}; it takes {expected}"
    message = error["msg"].removeprefix("Value error, ")
    return f"objective {info.name!r}: {key} = {error['input']!r} is refused: {message}"
