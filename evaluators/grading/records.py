"""What a record must hold to be graded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any


def check_record(grader: str, record: Mapping[str, Any]) -> None:
    """Raise unless ``record`` has what ``grader`` reads.

    Raises:
        ValueError: names the field, what was expected and what was found.
    """
    _require(record, "response", (str,), "a string")
    if record.get("finish_reason") is not None:
        _require(record, "finish_reason", (str,), "a string such as stop or length")
    if record.get("question") is not None:
        _require(record, "question", (str,), "a string")
    match grader:
        case "math" | "math_verify":
            _require(record, "gold", (str, int, float), "a string or a number")
        case "figfont":
            _require(record, "gold", (str,), "a string")
        case "chain_sum":
            _require(record, "gold", (str,), "an integer as a string")
            if not re.fullmatch(r"-?\d+", record["gold"]):
                raise ValueError(f"gold: expected an integer, found {_show(record['gold'])}")
        case "medical":
            _check_options(record)


def _check_options(record: Mapping[str, Any]) -> None:
    _require(record, "options", (dict,), "an object from option letter to option text")
    options = record["options"]
    for letter, text in options.items():
        if not (len(letter) == 1 and letter.isascii() and letter.isalpha()):
            raise ValueError(f"options: expected single letters as keys, found {letter!r}")
        if not isinstance(text, str):
            raise ValueError(f"options.{letter}: expected a string, found {_show(text)}")
    if len({letter.upper() for letter in options}) < max(len(options), 1):
        raise ValueError("options: expected one or more distinct letters")
    _require(record, "gold", (str,), "the letter of an option")
    if record["gold"].strip().upper() not in {letter.upper() for letter in options}:
        raise ValueError(
            f"gold: expected one of the options {', '.join(options)}, found {record['gold']!r}"
        )


def _require(record: Mapping[str, Any], name: str, types: tuple[type, ...], expected: str) -> None:
    if name not in record:
        raise ValueError(f"{name}: missing; expected {expected}")
    value = record[name]
    if not isinstance(value, types) or isinstance(value, bool):
        raise ValueError(f"{name}: expected {expected}, found {_show(value)}")


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
