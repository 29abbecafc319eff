"""A report as a list of sections, and its two renderings: one page of HTML, one file of Markdown.

Both are made of the same texts, so that they tell the same numbers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, get_args

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from deft.workers.common.text import printable

Mark = Literal["better", "worse", "not distinguishable", "failed"]

SYMBOLS: dict[Mark, str] = {
    "better": "▲",
    "worse": "▼",
    "not distinguishable": "≈",
    "failed": "✕",
}
assert set(SYMBOLS) == set(get_args(Mark))


@dataclass(frozen=True)
class TableEntry:
    """One cell of a table."""

    text: str
    details: tuple[str, ...] = ()
    """Smaller lines below."""
    mark: Mark | None = None
    """A conclusion, shown as its symbol before `change`, or with its word if that is empty."""
    change: str = ""
    """The difference that the conclusion is about."""
    strong: bool = False
    link: str = ""
    """Address that the text leads to; only those of web pages and of files beside the report."""

    @property
    def href(self) -> str:
        """The link, if nothing but opening a page can come of it."""
        return self.link if re.match(r"https?://|(\.\./)+[\w.-]|\w+\.html$", self.link) else ""

    @property
    def conclusion(self) -> str:
        """Symbol and difference; empty without a mark."""
        return f"{SYMBOLS[self.mark]} {self.change or self.mark}" if self.mark else ""

    @property
    def lines(self) -> list[str]:
        """The texts that are not empty, from top to bottom."""
        return [text for text in (self.text, *self.details, self.conclusion) if text]


@dataclass(frozen=True)
class Table:
    """Rows under columns; the first column names the row."""

    kind: ClassVar = "table"
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | TableEntry]]
    text_columns: frozenset[str] = frozenset()
    """Columns of words, set to the left; the others hold numbers."""

    @property
    def entries(self) -> list[list[TableEntry]]:
        """Rows with plain strings wrapped as entries."""
        return [[TableEntry(e) if isinstance(e, str) else e for e in row] for row in self.rows]


@dataclass(frozen=True)
class Picture:
    """A figure; its numbers stand in a table beside it."""

    kind: ClassVar = "picture"
    name: str
    """Of the file, and of the ids in the SVG."""
    caption: str
    description: str
    """Text for screen readers."""
    svg: str
    png: bytes
    pdf: bytes = b""
    """The same for a paper, where there is one."""
    csv: str = ""
    """The numbers of the figure."""
    panels: str = ""
    """Its panels below each other, for narrow pages: parts of `svg`, which stands before them."""


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar = "text"
    text: str
    lead: str = ""
    """Its first words, set strongly."""


@dataclass(frozen=True)
class BulletList:
    """A list."""

    kind: ClassVar = "points"
    items: Sequence[Text]


@dataclass(frozen=True)
class Listing:
    """Text as it was written."""

    kind: ClassVar = "listing"
    caption: str
    text: str

    @property
    def fence(self) -> str:
        """Code fence: more backticks than the text has in a row."""
        return "`" * (1 + max([2, *map(len, re.findall(r"`+", self.text))]))


Block = Table | Picture | Text | BulletList | Listing


@dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        return re.sub(r"\W+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True)
class Document:
    title: str
    subtitle: str
    sections: Sequence[Section] = field(default_factory=list)
    links: Sequence[TableEntry] = ()
    """What else there is to read of the same subject."""

    @property
    def pictures(self) -> list[Picture]:
        return [b for s in self.sections for b in s.blocks if isinstance(b, Picture)]

    def to_html(self) -> str:
        """Render one self-contained page."""
        return _environment().get_template("report.html.j2").render(document=self)

    def to_markdown(self) -> str:
        """Render GitHub Markdown; pictures are expected in ``figures/``."""
        return _environment().get_template("report.md.j2").render(document=self)


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=select_autoescape(enabled_extensions=("html.j2",)),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=_visible,
    )
    environment.filters["md"] = escape_markdown
    return environment


def _visible(value: object) -> object:
    """Escape control characters in texts, since Markdown is read in terminals; keep pictures."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def escape_markdown(text: str) -> str:
    """Escape ``text`` so that Markdown shows it literally, on one line, in tables too."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", " ".join(text.split()))
