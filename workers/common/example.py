"""A training example: the conversation before the last turn, and the turn to learn."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

IGNORE_INDEX = -100
"""Label of the positions that carry no loss (PyTorch's convention)."""

REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
"""What templates call the thinking of an assistant's turn; a message that has any has all."""


Message = dict[str, Any]
"""One turn of a conversation: its `role` and `content`, both texts, and where it has them
`tool_calls`, the `REASONING_KEYS`, `name`, `tool_call_id`, and `weight`, a number, 1 if not given:
an assistant's turn of weight 0 carries no loss."""


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


PLAIN_KEYS = ("role", "content")


def fields_beside_texts(example: Example) -> str:
    """Return as JSON what an example has beside roles and texts; empty if there is nothing."""
    turns = {
        index: more
        for index, message in enumerate(example.prompt)
        if (more := {key: value for key, value in message.items() if key not in PLAIN_KEYS})
    }
    if not turns and not example.final and not example.tools:
        return ""
    return json.dumps({"turns": turns, "final": example.final, "tools": example.tools})


def restore_example(
    id: str, prompt: Sequence[Message], response: str, instruction: str, beside: str
) -> Example:
    """Return the example that has these texts, and what `fields_beside_texts` made of the rest."""
    if not beside:
        return Example(id, tuple(prompt), response, instruction)
    fields = json.loads(beside)
    turns = [
        {**message, **fields["turns"].get(str(index), {})} for index, message in enumerate(prompt)
    ]
    return Example(id, tuple(turns), response, instruction, fields["final"], tuple(fields["tools"]))
