"""The figfont benchmark: 5,000 words drawn as Figlet ASCII art (arXiv 2602.11424)."""

from __future__ import annotations

from deft.workers.chat import Example
from deft.workers.figfont import TEST_START, figfont_examples


def load_figfont(size: int) -> list[Example]:
    """Generate the first ``size`` test items."""
    return list(figfont_examples(TEST_START, size))
