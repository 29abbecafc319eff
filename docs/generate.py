"""Write the parts of the documents that come from the code: `make docs`.

A page holds what is written by hand around them, and each between two markers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from deft.platform.commands.show_results import objectives_markdown
from deft.platform.config.schema import run_schema, setting_fields

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


GENERATED: dict[str, tuple[str, Callable[[], str]]] = {
    "objectives.md": ("objectives", objectives_markdown),
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
