"""Text from anywhere: make it printable, and tell whether it is UTF-8."""

from __future__ import annotations

import unicodedata


def printable(text: str) -> str:
    """Escape everything in ``text``, but line feeds, that acts on a terminal or is invisible.

    Data comes from anywhere, and a terminal obeys escape sequences.
    """
    return "".join(
        letter
        if letter == "\n" or unicodedata.category(letter) not in ("Cc", "Cf", "Zl", "Zp", "Cs")
        else letter.encode("unicode_escape").decode()
        for letter in text
    )


def has_surrogates(text: str) -> bool:
    """Tell whether ``text`` cannot be UTF-8: it holds half of a pair, or undecoded bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def plural(count: int, noun: str) -> str:
    """Format a count and its noun: ``1 item``, ``1,200 items``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
