"""Write the parts of the documents that come from the code: `make docs`.

A page holds what is written by hand around them, and each between two markers.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

import deft
from deft.platform.commands.compare import ComparedModel, RunComparison
from deft.platform.commands.show_results import objectives_markdown
from deft.platform.config.schema import run_schema, setting_fields
from deft.platform.errors import StageError, UserError
from deft.platform.records.results import MetricRow, RunResults
from deft.sweeps.results_table import SweepResults

DOCS = Path(__file__).resolve().parent


def settings_markdown() -> str:
    """Format all settings of a run file as Markdown tables, one for each section of the file."""
    sections: dict[str, list[str]] = {}
    for key, field in setting_fields(run_schema()):
        section, _, setting = key.partition(".")
        rows = sections.setdefault(section, [])
        meaning = " ".join(field.get("description", "").split())
        if setting:
            cells = (f"`{setting}`", default_of(field), meaning)
            rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        else:
            rows.append(f"### {section}\n\n{meaning}")
    return "\n\n".join(map(table, sections.values()))


def table(section: list[str]) -> str:
    """Put the head of a table between a section's heading and its rows."""
    heading, *rows = section
    return "\n".join(
        [heading, "", "| key | default | meaning |", "|---|---|---|", *rows] if rows else [heading]
    )


def default_of(field: Mapping[str, Any]) -> str:
    """Format the default of a setting; empty where it is required or made of parts."""
    default = find_default(field)
    if isinstance(default, dict) and default:
        return ""
    return f"`{json.dumps(default)}`" if default is not MISSING else ""


MISSING = object()
"""Stands for the default of a setting that has none."""


def find_default(field: Mapping[str, Any]) -> Any:
    """Return the default of a setting, which may stand in one of its spellings."""
    if "default" in field:
        return field["default"]
    spellings: Iterator[Any] = (find_default(each) for each in field.get("anyOf", ()))
    return next((each for each in spellings if each is not MISSING), MISSING)


FUNCTIONS = ("run", "sweep", "evaluate", "compare", "load_results")
"""Functions of `deft`, in the order of the page."""
RECORDS = (RunResults, MetricRow, SweepResults, RunComparison, ComparedModel)
ERRORS = (UserError, StageError)
SECTION = re.compile(r"^(Args|Returns|Raises):\n", re.MULTILINE)
"""Beginning of a section of a docstring in Google's style."""
ENTRY = re.compile(r"^    (\w+): ((?:.*\n?)(?:^ {5,}.*\n?)*)", re.MULTILINE)
"""A name in a section, and what is said of it."""


def python_markdown() -> str:
    """Format the functions of `deft` and what they return, from signatures and docstrings."""
    functions = (function_markdown(name, getattr(deft, name)) for name in FUNCTIONS)
    errors = (f"### {kind.__name__}\n\n{one_line(inspect.getdoc(kind))}" for kind in ERRORS)
    return "\n\n".join([*functions, *map(record_markdown, RECORDS), *errors])


def function_markdown(name: str, function: Callable[..., Any]) -> str:
    """Format one function: signature, purpose, arguments, result and errors."""
    signature = inspect.signature(function)
    arguments, keyword_only = [], False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            arguments.append("    *,")
            keyword_only = True
        arguments.append(f"    {str(parameter).replace(chr(39), '')},")
    returns = signature.return_annotation
    code = "\n".join([f"def {name}(", *arguments, f") -> {returns}"])
    purpose, *sections = SECTION.split(f"{inspect.getdoc(function)}\n")
    parts = [f"### {name}", f"```python\n{code}\n```", markdown_of(purpose.strip())]
    for title, text in zip(sections[::2], sections[1::2], strict=True):
        if title == "Returns":
            parts.append(f"Returns `{returns}`: {one_line(text)}")
        else:
            head = {"Args": "argument", "Raises": "error"}[title]
            rows = (f"| `{key}` | {one_line(said)} |" for key, said in ENTRY.findall(text))
            parts.append("\n".join([f"| {head} | meaning |", "|---|---|", *rows]))
    return "\n\n".join(parts)


def record_markdown(record: type[BaseModel]) -> str:
    """Format one record: what it is, its fields, and its methods."""
    rows = [
        f"| `{name}` | `{type_of(record, name)}` | {one_line(field.description or '')} |"
        for name, field in record.model_fields.items()
    ]
    methods = [
        f"`{name}()`: {one_line(inspect.getdoc(method))}"
        for name, method in vars(record).items()
        if inspect.isfunction(method) and not name.startswith("_")
    ]
    table = "\n".join(["| field | type | meaning |", "|---|---|---|", *rows])
    return "\n\n".join(
        [f"### {record.__name__}", one_line(inspect.getdoc(record)), table, *methods]
    )


def type_of(record: type[BaseModel], name: str) -> str:
    """Return the type of a field, without the modules of its parts."""
    kind = record.model_fields[name].annotation
    text = kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)
    return re.sub(r"(?:\w+\.)+(\w+)", r"\1", text).replace("|", "\\|")


def one_line(text: str | None) -> str:
    """Return a docstring's text as Markdown of one line."""
    return " ".join(markdown_of(text or "").split())


def markdown_of(text: str) -> str:
    """Return a docstring's text as Markdown."""
    return text.replace("``", "`")


GENERATED: dict[str, tuple[str, Callable[[], str]]] = {
    "objectives.md": ("objectives", objectives_markdown),
    "python.md": ("python", python_markdown),
    "settings.md": ("settings", settings_markdown),
}
"""By page: the name in its markers, and what stands between them."""


def generated_page(page: str) -> str:
    """Return the text of a page, with its generated part made anew."""
    marker, content = GENERATED[page]
    before, _, after = re.split(rf"<!-- /?{marker} -->\n", (DOCS / page).read_text())
    return f"{before}<!-- {marker} -->\n{content()}\n<!-- /{marker} -->\n{after}"


if __name__ == "__main__":
    for page in GENERATED:
        (DOCS / page).write_text(generated_page(page))
