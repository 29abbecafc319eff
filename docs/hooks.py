"""Hooks of mkdocs: the first page, and links that leave the documents."""

from __future__ import annotations

import re
from typing import Any

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((\.\./[^)]*)\)")
"""A link to a file outside `docs/`, which GitHub shows and a site does not have."""


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Turn links to files of the repository into their text and path."""

    def as_text(match: re.Match[str]) -> str:
        label, path = match[1], match[2].removeprefix("../")
        return f"`{path}`" if label.strip("`") == path else f"{label} (`{path}`)"

    return LINK.sub(as_text, markdown)
