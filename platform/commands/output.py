"""Machine-readable output of commands: JSON or CSV alone on the standard output."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from rich.console import Console

from deft.platform.console import RunConsole
from deft.platform.records.results import write_csv


def console_for(*, machine_readable: bool) -> RunConsole:
    """Return the console of a command; all it prints goes to stderr if stdout is for machines."""
    return RunConsole(Console(stderr=True, highlight=False)) if machine_readable else RunConsole()


def print_json(value: BaseModel | Mapping[str, Any] | Sequence[Any]) -> None:
    """Print ``value`` as JSON; numbers that are not finite become null."""
    print(json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False))


def _plain(value: Any) -> Any:
    match value:
        case BaseModel():
            return _plain(value.model_dump(mode="json"))
        case Mapping():
            return {str(key): _plain(entry) for key, entry in value.items()}
        case list() | tuple():
            return [_plain(entry) for entry in value]
        case float():
            return value if math.isfinite(value) else None
    return value


def print_csv(rows: Sequence[BaseModel]) -> None:
    """Print rows as CSV with a line of their columns."""
    write_csv([row.model_dump() for row in rows], sys.stdout)
