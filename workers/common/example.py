"""A training example: the conversation before the last turn, and the turn to learn."""

from __future__ import annotations

from dataclasses import dataclass

IGNORE_INDEX = -100
"""Label of the positions that carry no loss (PyTorch's convention)."""


Message = dict[str, str]
"""One turn of a conversation: its role and its content."""


@dataclass(frozen=True)
class Example:
    """A prompt and the response to learn or to be graded against."""

    id: str
    prompt: tuple[Message, ...]
    """Everything before the final assistant turn; may hold earlier assistant turns."""
    response: str
    """The final assistant turn."""
    instruction: str = ""
    """What the task asks for beside the question; the prompt style decides whether it is said."""
