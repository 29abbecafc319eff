"""Matching brackets, and splitting outside of them."""

from __future__ import annotations

from collections.abc import Iterator

_CLOSING = {"{": "}", "(": ")", "[": "]"}
_OPENING_COMMANDS = (r"\{", r"\langle", r"\begin", r"\lfloor", r"\lceil")
_CLOSING_COMMANDS = (r"\}", r"\rangle", r"\end", r"\rfloor", r"\rceil")


def closing_position(text: str, start: int, limit: int = 100_000) -> int | None:
    """Find the bracket that closes the one at ``start``; None if none does within ``limit``.

    Other kinds of brackets, and characters behind a backslash, are skipped.
    """
    opening = text[start]
    closing = _CLOSING[opening]
    depth = 0
    position = start
    stop = min(len(text), start + limit)
    while position < stop:
        character = text[position]
        if character == "\\":
            position += 2
            continue
        depth += (character == opening) - (character == closing)
        if depth == 0:
            return position
        position += 1
    return None


def read_group(text: str, start: int, limit: int = 100_000) -> tuple[str, int]:
    """Return the content of the brace group that opens at ``start``, and the position after it.

    A group that does not close within ``limit`` characters goes that far, or to the end.
    """
    end = closing_position(text, start, limit)
    if end is None:
        stop = min(len(text), start + limit)
        return text[start + 1 : stop], stop
    return text[start + 1 : end], end + 1


def is_balanced(text: str) -> bool:
    """Check that no bracket closes before it opens, whatever its kind, and all are closed.

    Kinds are not told apart, since an interval such as ``[0, 1)`` mixes them.
    """
    depth = 0
    for character in text:
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
            if depth < 0:
                return False
    return depth == 0


def split_outside_brackets(text: str, separators: tuple[str, ...]) -> list[str]:
    """Split at the separators that stand outside all brackets and environments."""
    pieces, start = [], 0
    for position, separator in separator_positions(text, separators):
        if position < start:
            continue
        pieces.append(text[start:position])
        start = position + len(separator)
    pieces.append(text[start:])
    return pieces


def separator_positions(text: str, separators: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """Yield where a separator stands outside all brackets and environments, and which."""
    depth = 0
    position = 0
    while position < len(text):
        separator = _command_at(text, position, separators) if depth == 0 else None
        if separator is not None:
            yield position, separator
            position += len(separator)
        elif opening := next((c for c in _OPENING_COMMANDS if text.startswith(c, position)), ""):
            depth += 1
            position += len(opening)
            if opening == r"\begin" and text.startswith("{", position):
                position = read_group(text, position)[1]
        elif closing := next((c for c in _CLOSING_COMMANDS if text.startswith(c, position)), ""):
            depth = max(depth - 1, 0)
            position += len(closing)
            if closing == r"\end" and text.startswith("{", position):
                position = read_group(text, position)[1]
        elif text[position] == "\\":
            position += 2
        else:
            depth += (text[position] in "([{") - (text[position] in ")]}")
            depth = max(depth, 0)
            position += 1


def _command_at(text: str, position: int, commands: tuple[str, ...]) -> str | None:
    """Return the command at ``position``: ``\\in``, but not the beginning of ``\\int``."""
    command = next((c for c in commands if text.startswith(c, position)), None)
    if command and command[-1].isalpha():
        follower = text[position + len(command) : position + len(command) + 1]
        if follower.isascii() and follower.isalpha():
            return None
    return command
