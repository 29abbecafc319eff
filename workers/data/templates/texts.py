"""The texts of a conversation, and whether a rendering holds all of them.

A template may leave out what it does not know: the system turn, a role, the parts of a content, a
tool call, the thinking of earlier turns. A model would then be trained on something else than the
record says, and nothing would tell.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from deft.workers.common.example import REASONING_KEYS, Example, Message
from deft.workers.data.templates.rendering import Conversation, render, template_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

THINKING_TAG = re.compile(r"</?think>")
"""Templates may take a text apart at these, and write them themselves."""

DROPS_THINKING = " (templates may drop thinking from earlier turns)"


def conversation_texts(
    conversation: Conversation, first_turn: int = 1
) -> list[tuple[str, str, str]]:
    """Return every text of ``conversation``, as it may stand in a rendering.

    Args:
        conversation: some turns.
        first_turn: number of the first of them.

    Returns:
        For each text its place, what it is, and the text.
    """
    texts: list[tuple[str, str, str]] = []
    for number, message in enumerate(conversation.messages, start=first_turn):
        place, role = f"turn {number}", message["role"]
        parts = THINKING_TAG.split(message["content"])
        name = f"the {role} text{DROPS_THINKING if len(parts) > 1 else ''}"
        texts += [(place, name, part) for part in parts]
        reasoning = next((message[key] for key in REASONING_KEYS if message.get(key)), "")
        texts.append((place, f"the reasoning{DROPS_THINKING}", reasoning))
        for call in message.get("tool_calls") or ():
            texts += [(place, "a tool call", text) for text in call_texts(call)]
    for tool in conversation.tools:
        function = tool.get("function", tool)
        texts.append(("tools", "a tool", str(function.get("name", ""))))
    return [(place, name, text.strip()) for place, name, text in texts if text.strip()]


def example_texts(example: Example) -> Iterator[str]:
    """Yield every text of an example as it is, those of tools as well."""
    for message in (*example.prompt, {"content": example.response, **example.final}):
        yield message["content"]
        yield from (message[key] for key in REASONING_KEYS[:1] if message.get(key))
        yield from _leaves(message.get("tool_calls") or ())
    yield from _leaves(example.tools)


def call_texts(call: Mapping[str, Any]) -> Iterator[str]:
    """Yield a tool call's name, and the keys and texts of its arguments."""
    function = call.get("function", call)
    yield str(function.get("name", ""))
    yield from _leaves(function.get("arguments", {}))


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield str(key)
            yield from _leaves(inner)
    elif isinstance(value, Sequence):
        for inner in value:
            yield from _leaves(inner)


class MissingTextError(ValueError):
    """A text that is not in a rendering; ``number`` of those before it are."""

    number = 0


def require_texts(
    tokenizer: PreTrainedTokenizerBase,
    conversation: Conversation,
    rendered: str,
    *,
    first_turn: int = 1,
) -> None:
    """Raise MissingTextError unless every text of ``conversation`` is in ``rendered``."""
    for number, (place, name, text) in enumerate(conversation_texts(conversation, first_turn)):
        if text not in rendered and not any(form in rendered for form in _escaped(text)):
            error = MissingTextError(
                f"{place}: {template_name(tokenizer)} leaves out or changes "
                f"{name}; take it out of the record, or choose another prompt_style"
            )
            error.number = number
            raise error


def _escaped(text: str) -> tuple[str, str]:
    """Return ``text`` as JSON spells it inside of quotation marks."""
    return json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]


def with_marks(conversation: Conversation) -> Conversation:
    """Return ``conversation`` with a word in place of each text that occurs nowhere else.

    A short text such as "a" is found in any rendering; whether the template writes its place is
    seen by a word like this.
    """
    numbers = iter(range(10**9))

    def mark(_: str) -> str:
        return f"Qz{next(numbers)}Zq"

    return Conversation(
        [_marked(message, mark) for message in conversation.messages],
        conversation.tools,
        conversation.opens_turn,
    )


def _marked(message: Message, mark: Callable[[str], str]) -> Message:
    marked = dict(message)
    if message["content"]:
        marked["content"] = mark("")
    if reasoning := [key for key in REASONING_KEYS if message.get(key)]:
        marked |= dict.fromkeys(reasoning, mark(""))
    return marked


def shape(conversation: Conversation) -> tuple[Any, ...]:
    """Return what a template may tell conversations apart by, apart from their texts."""
    turns = tuple(
        (message["role"], *sorted(key for key, value in message.items() if value))
        for message in conversation.messages
    )
    return (turns, bool(conversation.tools), conversation.opens_turn)


def _as_given(message: Message) -> Message:
    return message


def _with_parts(message: Message) -> Message:
    return {**message, "content": [{"type": "text", "text": message["content"]}]}


def _with_json_arguments(message: Message) -> Message:
    if not message.get("tool_calls"):
        return message
    calls = [copy.deepcopy(call) for call in message["tool_calls"]]
    for call in calls:
        called = call.get("function", call)
        called["arguments"] = json.dumps(called.get("arguments", {}))
    return {**message, "tool_calls": calls}


FORMS: tuple[Callable[[Message], Message], ...] = (_as_given, _with_parts, _with_json_arguments)
"""The ways to put the same message in which templates expect it: some know a content as a list of
parts only, some the arguments of a tool call as a text of JSON only."""


def fit_template(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> Conversation:
    """Return ``conversation`` in the first of the `FORMS` of which the template writes every text.

    Raises:
        ValueError: there is none; the message says what the template leaves out.
    """
    key = (str(tokenizer.chat_template), shape(conversation))
    if key not in _FITTING:
        if len(_FITTING) > MAX_REMEMBERED:
            _FITTING.clear()
        _FITTING[key] = _fitting_form(tokenizer, conversation)
    chosen = _FITTING[key]
    if isinstance(chosen, ValueError):
        raise ValueError(*chosen.args)
    messages = [FORMS[chosen](message) for message in conversation.messages]
    return replace(conversation, messages=messages)


_FITTING: dict[tuple[str, tuple[Any, ...]], int | ValueError] = {}
MAX_REMEMBERED = 10_000
"""Shapes of conversations of which the fitting form is remembered."""


def _fitting_form(
    tokenizer: PreTrainedTokenizerBase, conversation: Conversation
) -> int | ValueError:
    marked = with_marks(conversation)
    errors: list[ValueError] = []
    for number, form in enumerate(FORMS):
        formed = replace(marked, messages=list(map(form, marked.messages)))
        try:
            require_texts(tokenizer, marked, render(tokenizer, formed).text)
        except ValueError as error:
            errors.append(error)
        else:
            return number
    # The form of which most is written is what the template takes.
    missing = [error for error in errors if isinstance(error, MissingTextError)]
    return max(missing, key=lambda error: error.number, default=errors[0])
