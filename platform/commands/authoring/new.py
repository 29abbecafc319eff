"""`deft new`: commented files to start from, for an objective, a benchmark and a sweep."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from deft.platform.commands.authoring import starters
from deft.platform.errors import UserError
from deft.workers.common.files import write_atomic

Kind = Literal["objective", "benchmark", "sweep"]

SUFFIXES: dict[Kind, str] = {"objective": ".py", "benchmark": ".py", "sweep": ".yaml"}
PLACEHOLDER = "MODULE"
"""What stands in the files for their own import path."""

NEXT: dict[Kind, tuple[str, ...]] = {
    "objective": (
        "deft check MODULE:doubt",
        "deft run --dataset figfont --model tiny --objective MODULE:doubt",
    ),
    "benchmark": ("deft evaluate --model smollm2-135m --benchmarks MODULE:sums",),
    "sweep": ("deft sweep FILE --dry-run", "deft sweep FILE"),
}
"""Commands to try on a new file."""


def write_new(kind: Kind, file: Path) -> list[str]:
    """Write a file to start from, and return the commands to try on it.

    Raises:
        UserError: there is a file already, or it could not be imported under this name.
    """
    suffix = SUFFIXES[kind]
    if file.suffix != suffix:
        raise UserError(f"{file}: expected a name that ends in {suffix}; give {file.stem}{suffix}")
    if file.exists():
        raise UserError(f"{file}: there is such a file already; give another name")
    module = _module_of(file) if suffix == ".py" else ""
    starter = Path(starters.__path__[0]) / f"{kind}{suffix}"
    write_atomic(file, starter.read_text(encoding="utf-8").replace(PLACEHOLDER, module))
    return [step.replace(PLACEHOLDER, module).replace("FILE", str(file)) for step in NEXT[kind]]


def _module_of(file: Path) -> str:
    """Return the import path of a module in the current folder or below it.

    Raises:
        UserError: it lies elsewhere, or its name is no identifier.
    """
    path = file.absolute()
    if not path.is_relative_to(os.getcwd()):
        raise UserError(
            f"{file}: modules are imported from the current folder or below it; give a path there, "
            "or change to its folder first"
        )
    parts = path.relative_to(os.getcwd()).with_suffix("").parts
    for part in parts:
        if not part.isidentifier():
            raise UserError(
                f"{file}: {part} cannot be imported, it is no Python identifier; give a name of "
                "letters, digits and _"
            )
    return ".".join(parts)
