"""A report's text is from anywhere: data, causes of failures, what people call things."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from deft.sweeps.report.document import (
    BulletList,
    Document,
    Listing,
    Picture,
    Section,
    Table,
    TableEntry,
    Text,
)

HOSTILE = {
    "tags": '<script>alert(1)</script><img src=x onerror="alert(1)">',
    "attributes": '" onmouseover="alert(1)" \' x=\'',
    "terminal": "\x1b[2J\x1b]0;owned\x07\x08\x9b31m\u202e",
    "markdown": "[a](javascript:alert(1)) ![b](c) | **d** `e` ~~~ # f",
    "template": "{{ document }} {% raw %} {# #}",
    "huge": "a b" * 300_000,
}
TAGS = {"script", "img", "iframe", "object", "embed", "link"}


def document(text: str) -> Document:
    """``text`` wherever there is a text."""
    entry = TableEntry(text, details=(text,), mark="better", change=text, link=text)
    picture = Picture("figure", text, text, "<svg></svg>", b"")
    blocks = [
        Text(text, lead=text),
        BulletList([Text(text)]),
        Table(text, [text, f"{text}2"], [[entry, text]], frozenset({text})),
        picture,
        Listing(text, text),
    ]
    return Document(text, text, [Section(text, blocks)])


class Page(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_no_text_acts_in_a_page_or_a_terminal(text: str) -> None:
    html, markdown = document(text).to_html(), document(text).to_markdown()
    page, harmless = Page(html), Page(document("harmless").to_html())
    assert not page.tags & TAGS
    assert page.attributes == harmless.attributes
    for rendered in (html, markdown):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", rendered)
    # Only what is fenced in stands as it was.
    outside = re.sub(r"^(`{3,})\n.*?\n\1$", "", markdown, flags=re.DOTALL | re.MULTILINE)
    assert set(re.findall(r"<\w+", outside)) <= {"<br"}
    assert not re.search(r"(?<!\\)\]\((?!figures/)", outside)


def test_a_listing_cannot_close_its_fence() -> None:
    markdown = Document("t", "s", [Section("x", [Listing("c", "```\n<b>\n````")])]).to_markdown()
    assert "`````\n```\n<b>\n````\n`````" in markdown
