"""Conversations as people store them: OpenAI's messages, ShareGPT's, parts of text, tool calls."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from deft.workers.common.example import REASONING_KEYS, Message
from deft.workers.common.text import has_surrogates

ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
}
"""What roles are called, and what they are."""

TURN_KEYS = {
    *("role", "from", "content", "value", "name", "tool_call_id", "tool_calls", "function_call"),
    *("weight", "train", *REASONING_KEYS),
}
"""The keys of a turn that are read."""


MAX_WEIGHT = 1000
"""Largest weight of a turn or record; larger ones are something else that is called so."""


class BadValueError(Exception):
    """A value that cannot be used; ``kind`` is one of a few words to count by."""

    def __init__(self, kind: str, message: str) -> None:
        """Keep both."""
        super().__init__(message)
        self.kind = kind


def require_key(fields: Mapping[str, Any], key: str) -> Any:
    """Return the value of ``key``; name the nearest key if it is missing."""
    if key in fields:
        return fields[key]
    keys = list(map(str, fields))
    near = get_close_matches(key, keys, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    choices = f"There are: {', '.join(keys)}." if keys else "There is nothing in it."
    raise BadValueError("missing field", f"key {key!r} is missing; {hint}{choices}")


def require_text(value: Any, name: str) -> str:
    """Return a text that is not empty; parts of text are joined."""
    if isinstance(value, list):
        value = "".join(_part_text(part, name) for part in value)
    if not isinstance(value, str):
        got = "null" if value is None else f"{type(value).__name__} {value!r:.80}"
        raise BadValueError("wrong type", f"{name} must be a text, got {got}")
    if not value.strip():
        raise BadValueError("empty text", f"{name} must not be empty, got {value!r:.80}")
    if has_surrogates(value):
        raise BadValueError("invalid UTF-8", f"{name} holds half of a surrogate pair")
    return value


def _part_text(part: Any, name: str) -> str:
    if isinstance(part, str):
        return part
    is_text = isinstance(part, Mapping) and part.get("type", "text") == "text"
    if is_text and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type", part) if isinstance(part, Mapping) else part
    raise BadValueError(
        "wrong type", f"{name} has a part that is no text, {kind!r:.80}; only texts can be trained"
    )


def is_empty(value: Any) -> bool:
    """Return whether there is nothing in a value: null, white space, or an empty list."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, list | dict) and not value)


def read_conversation(value: Any, name: str) -> tuple[Message, ...]:
    """Read a list of turns.

    Args:
        value: turns with `role` and `content`, or with `from` and `value`; or JSON that says so.
        name: what messages call it.

    Returns:
        The turns; a system turn without text is none.

    Raises:
        BadValueError: it is something else.
    """
    turns = _from_json(value)
    if not isinstance(turns, list) or not turns:
        got = type(value).__name__ if not isinstance(turns, list) else "none"
        raise BadValueError("wrong type", f"{name!r} must be a list of turns, got {got}")
    return tuple(
        message
        for number, turn in enumerate(turns, start=1)
        if (message := _read_turn(turn, number)) is not None
    )


def _from_json(value: Any) -> Any:
    """Return what a text of JSON says: tables hold lists and objects that way."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _read_turn(turn: Any, number: int) -> Message | None:
    if not isinstance(turn, Mapping):
        got = type(turn).__name__
        raise BadValueError("wrong type", f"turn {number} must be an object, got {got}")
    is_sharegpt = "role" not in turn and "from" in turn
    role_key, content_key = ("from", "value") if is_sharegpt else ("role", "content")
    role_name = require_text(require_key(turn, role_key), f"role of turn {number}").strip().lower()
    if role_name not in ROLES:
        raise BadValueError(
            "unknown role", f"role of turn {number} is {role_name!r}; there are: {', '.join(ROLES)}"
        )
    message: Message = {"role": ROLES[role_name]}
    content = turn.get(content_key)
    # OpenAI's first form of a call was one for each turn.
    calls_key = "function_call" if is_empty(turn.get("tool_calls")) else "tool_calls"
    calls = _read_calls(content if role_name == "function_call" else turn.get(calls_key), number)
    if calls:
        message["tool_calls"] = calls
    may_be_empty = calls or (message["role"] == "tool" and content_key in turn)
    if role_name == "function_call" or (may_be_empty and is_empty(content)):
        message["content"] = ""
    elif message["role"] == "system" and content_key in turn and is_empty(content):
        return None
    else:
        content = require_key(turn, content_key)
        message["content"] = require_text(content, f"content of turn {number}")
    for key in ("name", "tool_call_id"):
        if not is_empty(turn.get(key)):
            message[key] = require_text(turn[key], f"{key} of turn {number}")
    if message["role"] == "assistant":
        message |= _read_reasoning(turn, number)
        weight = read_weight(turn, f"turn {number}")
        if weight != 1:
            message["weight"] = weight
    return message


def _read_reasoning(turn: Mapping[str, Any], number: int) -> Message:
    """Read the thinking of a turn, and give it every name that a template may know it by."""
    texts = {
        require_text(turn[key], f"{key} of turn {number}")
        for key in REASONING_KEYS
        if not is_empty(turn.get(key))
    }
    if len(texts) > 1:
        names = ", ".join(key for key in REASONING_KEYS if not is_empty(turn.get(key)))
        raise BadValueError(
            "two reasonings", f"turn {number} has different texts in {names}; give one of them"
        )
    return {key: text for text in texts for key in REASONING_KEYS}


def read_weight(fields: Mapping[str, Any], name: str) -> float:
    """Read what the loss is multiplied by: `weight` times `train`, 1 where they are not given."""
    return math.prod(
        _number(fields[key], f"{key} of {name}")
        for key in ("weight", "train")
        if not is_empty(fields.get(key))
    )


def _number(value: Any, name: str) -> float:
    number = {"true": 1.0, "false": 0.0}.get(str(value).strip().lower(), value)
    try:
        weight = float(number)
    except (TypeError, ValueError, OverflowError):
        weight = -1.0
    if not 0 <= weight <= MAX_WEIGHT:
        raise BadValueError(
            "weight",
            f"{name} is {value!r:.80}; give what the loss is multiplied by, a number from 0 to "
            f"{MAX_WEIGHT:,}, or true or false",
        )
    return weight


def _read_calls(value: Any, number: int) -> list[dict[str, Any]]:
    """Read tool calls: OpenAI's, or objects of `name` and `arguments`, perhaps as JSON."""
    calls = _from_json(value)
    if is_empty(calls):
        return []
    if isinstance(calls, Mapping):
        calls = [calls]
    if not isinstance(calls, list):
        raise BadValueError(
            "wrong type", f"tool_calls of turn {number} must be a list, got {value!r:.80}"
        )
    return [_read_call(call, number) for call in calls]


def _read_call(call: Any, number: int) -> dict[str, Any]:
    call = _from_json(call)
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise BadValueError(
            "wrong type",
            f"a tool call of turn {number} must have a function with a name, got {call!r:.80}",
        )
    arguments = _from_json(function.get("arguments", function.get("parameters", {})))
    if not isinstance(arguments, Mapping):
        raise BadValueError(
            "wrong type", f"arguments of a tool call of turn {number} must be an object of JSON"
        )
    _require_encodable(call, f"a tool call of turn {number}")
    identity = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    called = {"name": function["name"], "arguments": dict(arguments)}
    return {"type": "function", **identity, "function": called}


def read_tools(value: Any) -> tuple[Mapping[str, Any], ...]:
    """Read JSON schemas of functions, perhaps as JSON, or each of them as JSON."""
    tools = _from_json(value)
    if is_empty(tools):
        return ()
    if isinstance(tools, Mapping):
        tools = [tools]
    schemas = [_from_json(tool) for tool in tools] if isinstance(tools, list) else []
    for schema in schemas:
        function = schema.get("function", schema) if isinstance(schema, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            schemas = []
            break
    if not schemas:
        raise BadValueError(
            "wrong type", f"'tools' must be a list of functions with names, got {value!r:.80}"
        )
    _require_encodable(schemas, "'tools'")
    return tuple(
        schema if "function" in schema else {"type": "function", "function": schema}
        for schema in schemas
    )


def _require_encodable(value: Any, name: str) -> None:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        raise BadValueError("wrong type", f"{name} must be an object of JSON") from None
    if has_surrogates(text):
        raise BadValueError("invalid UTF-8", f"{name} holds half of a surrogate pair")


def unread_keys(turns: Any) -> Iterator[str]:
    """Yield the keys of turns that nothing reads and that hold something."""
    turns = _from_json(turns)
    if isinstance(turns, Sequence) and not isinstance(turns, str):
        for turn in turns:
            if isinstance(turn, Mapping):
                yield from (
                    str(key)
                    for key, value in turn.items()
                    if key not in TURN_KEYS and not is_empty(value)
                )
