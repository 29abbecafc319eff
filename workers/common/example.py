"""A training example: the conversation before the last turn, and the turn to learn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

IGNORE_INDEX = -100
"""Label of the positions that carry no loss (PyTorch's convention)."""

REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
"""What templates call the thinking of an assistant's turn; a message that has any has all."""


Message = dict[str, Any]
"""One turn of a conversation: its `role` and `content`, both texts, and where it has them
`tool_calls`, the `REASONING_KEYS`, `name`, `tool_call_id`, and `weight`, a number, 1 if not given:
what the loss of an assistant's turn is multiplied by."""


@dataclass(frozen=True)
class Example:
    """A prompt and the response to learn or to be graded against."""

    id: str
    prompt: tuple[Message, ...]
    """Everything before the final assistant turn; may hold earlier assistant turns."""
    response: str
    """The text of the final assistant turn; empty if the turn is tool calls alone."""
    instruction: str = ""
    """What the task asks for beside the question; the prompt style decides whether it is said."""
    final: Mapping[str, Any] = field(default_factory=dict)
    """What the final turn has beside role and content, as a `Message` has it."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """JSON schemas of the functions that the model may call."""
