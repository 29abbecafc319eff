"""How an objective is named in a run file: a canonical name and its parameters.

Needs pydantic and the standard library only, so a laptop validates a sweep without torch.
"""

from __future__ import annotations

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
from deft.workers.common.names import unknown_name
from deft.workers.common.settings import Settings

_IMPORT_PATH = re.compile(r"(?:[^\W\d]\w*\.)*[^\W\d]\w*:[^\W\d]\w*")
_WITH_ARGUMENTS = re.compile(r"(?P<name>[^()]+)\((?P<arguments>.*)\)", re.DOTALL)


class ObjectiveSpec(Settings):
    """One objective and its parameters.

    Validates from a string (`DEFT`, `deft`, `GeneralFamily-0.5`, `GeneralFamily--1`,
    `IDFT(beta=0.5,gamma_max=3)`, `my_pkg.my_mod:my_objective`,
    `my_pkg.my_mod:my_objective(beta=0.5)`) or from a mapping (`{name: GeneralFamily, alpha: 0.5}`),
    whose parameters win over those in its name. Serializes to its canonical string, so that two
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
                raise ValueError(
                    f"{dict(value)!r} needs a name; add `name: DEFT` or another objective's"
                )
            nested = fields.pop("params", {})
            if not isinstance(nested, Mapping):
                raise ValueError(
                    f"params of {name} is {nested!r}; give a mapping of names to values"
                )
            if overlap := sorted(nested.keys() & fields.keys()):
                raise ValueError(
                    f"parameter {overlap[0]!r} of {name} is given twice; keep one of the two"
                )
            own: dict[str, Any] = {"name": name.strip(), "params": {}}
            if "(" in name:
                own |= _from_string(name.strip())
            return _resolve(own["name"], {**own["params"], **fields, **nested})
        if not isinstance(value, ObjectiveSpec):
            raise ValueError(
                f"expected one objective by its name or as {{name: …}}, got {value!r:.80}; the "
                "grid of a sweep compares several"
            )
        return value

    @field_validator("params")
    @classmethod
    def require_scalars(cls, value: Mapping[str, Any]) -> Mapping[str, Any]:
        for key in value:
            if not key.isidentifier():
                raise ValueError(
                    f"parameter name {key!r} is not an identifier; "
                    "use the name of one of the function's arguments"
                )
        return value

    @model_serializer
    def serialize_canonically(self) -> str:
        return str(self)

    @property
    def info(self) -> ObjectiveInfo | None:
        """Catalog entry, or None for an objective given by import path."""
        return CATALOG.get(self.name)

    def __str__(self) -> str:
        info = self.info
        if info is None:
            if not self.params:
                return self.name
            arguments = ",".join(f"{key}={json.dumps(self.params[key])}" for key in self.params)
            return f"{self.name}({arguments})"
        changed = {
            key: _number(float(value))
            for key, value in self.params.items()
            if key not in info.defaults or value != info.defaults[key]
        }
        if set(changed) == {info.parameter}:
            return f"{self.name}-{changed[str(info.parameter)]}"
        given = ",".join(f"{key}={value}" for key, value in changed.items())
        return f"{self.name}({given})" if given else self.name

    def __hash__(self) -> int:
        return hash(str(self))


def _number(value: float) -> str:
    """Return the shortest text that reads back as the same float (`1`, `-0.5`, `1e-05`)."""
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
            raise ValueError(f"{text!r}: {info.name} takes no parameter; write {info.name}")
        try:
            value = float(text[cut + 1 :])
        except ValueError:
            raise ValueError(
                f"{text!r}: expected a number for {info.parameter!r}, got {text[cut + 1 :]!r}; "
                f"write it as in {info.example}"
            ) from None
        return _resolve(info.name, {info.parameter: value})
    return _resolve(text, {})


def _arguments(text: str, whole: str) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    # A comma inside a JSON string is not a separator; one before `key=` is.
    for part in filter(None, re.split(r",\s*(?=[^\W\d]\w*\s*=)", text.strip())):
        key, equals, value = part.partition("=")
        if not equals:
            raise ValueError(
                f"{whole!r}: expected key=value, got {part!r}; name the function's argument"
            )
        try:
            arguments[key.strip()] = json.loads(value)
        except json.JSONDecodeError:
            raise ValueError(
                f"{whole!r}: the value of {key.strip()!r} is {value!r}; it must be a number, true, "
                'false or a "quoted string"'
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
                f"{name!r} is not an import path; write it as package.module:attribute"
            )
        return {"name": name, "params": dict(sorted(given.items()))}
    info = _lookup(name)
    if info is None:
        raise ValueError(
            unknown_name("objective", name, _distinct_spellings())
            + " An objective of your own is written package.module:attribute."
        )
    try:
        parameters = info.parameters.model_validate(dict(given))
    except ValidationError as error:
        raise ValueError("; ".join(_explain(info, dict(item)) for item in error.errors())) from None
    return {"name": info.name, "params": parameters.model_dump()}


def _distinct_spellings() -> list[str]:
    """List names and aliases, without aliases that differ from the name in case and "_" only."""

    def folded(spelling: str) -> str:
        return spelling.casefold().replace("_", "")

    return [
        spelling
        for info in CATALOG.values()
        for spelling in (info.name, *info.aliases)
        if spelling == info.name or folded(spelling) != folded(info.name)
    ]


def _explain(info: ObjectiveInfo, error: dict[str, Any]) -> str:
    key = error["loc"][0] if error["loc"] else None
    if error["type"] == "missing":
        return f"{info.name} needs its parameter {key!r}; write it as in {info.example}"
    if error["type"] == "extra_forbidden":
        names = ", ".join(map(repr, info.parameters.model_fields))
        known = f"its only one is {names}" if names else f"write {info.name}"
        if len(info.parameters.model_fields) > 1:
            known = f"there are {names}"
        return f"{info.name} has no parameter {key!r}; {known}"
    advice = error["msg"].removeprefix("Value error, ").replace("Input should", "it should")
    return f"{info.name}: parameter {key!r} is {error['input']!r}; {advice}"
