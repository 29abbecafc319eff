"""Matching brackets, and splitting outside of them."""

from __future__ import annotations

import re
from collections.abc import Iterator

_TOKEN = re.compile(r"\\(?:begin|end)\s*\{[^{}]*\}|\\[a-zA-Z]+|\\.|.", re.DOTALL)
_OPENING = frozenset(("(", "[", "{", r"\{", r"\langle", r"\lfloor", r"\lceil"))
_CLOSING = frozenset((")", "]", "}", r"\}", r"\rangle", r"\rfloor", r"\rceil"))


def read_group(text: str, start: int, limit: int = 100_000) -> tuple[str, int]:
    """Return the content of the brace group that opens at ``start``, and the position after it.

    A group that does not close within ``limit`` characters goes that far, or to the end.
    """
    stop = min(len(text), start + limit)
    depth = 0
    for token in re.finditer(r"\\.|[{}]", text[start:stop], re.DOTALL):
        depth += (token.group() == "{") - (token.group() == "}")
        if depth == 0:
            return text[start + 1 : start + token.start()], start + token.end()
    return text[start + 1 : stop], stop


def is_balanced(text: str) -> bool:
    """Check that no bracket closes before it opens, whatever its kind, and all are closed.

    Kinds are not told apart, since an interval such as ``[0, 1)`` mixes them.
    """
    depth = 0
    for character in re.findall(r"[()\[\]{}]", text):
        depth += 1 if character in "([{" else -1
        if depth < 0:
            return False
    return depth == 0


def split_outside_brackets(text: str, separators: tuple[str, ...]) -> list[str]:
    """Split at the separators that stand outside all brackets and environments."""
    pieces, start = [], 0
    for position, separator in separator_positions(text, separators):
        pieces.append(text[start:position])
        start = position + len(separator)
    return [*pieces, text[start:]]


def separator_positions(text: str, separators: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """Yield where a separator stands outside all brackets and environments, and which."""
    depth = 0
    for match in _TOKEN.finditer(text):
        token = match.group()
        if depth == 0 and token in separators:
            yield match.start(), token
        elif token in _OPENING or token.startswith(r"\begin"):
            depth += 1
        elif token in _CLOSING or token.startswith(r"\end"):
            depth = max(depth - 1, 0)
