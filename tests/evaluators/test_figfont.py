"""The figfont items."""

from __future__ import annotations

from deft.evaluators.figfont import load_figfont


def test_items_are_the_papers_test_items() -> None:
    first, second = load_figfont(2)
    assert (first.id, first.response) == ("figfont/40000", "IGAD")
    assert second.id == "figfont/40001"
    assert first.prompt[-1]["content"].startswith("What word does this say?\n\n")
