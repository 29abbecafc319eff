"""Chat templates rendered in a process of their own, so that none can hang or fill the machine."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from deft.workers.common.example import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATE_DATE = datetime(2024, 7, 26)
"""The day that templates are told. Left alone, they write the day on which they run, and no prompt
could be reproduced on the next."""
MAX_SECONDS = 5.0
"""CPU seconds that a template may take for one conversation."""
MAX_MEMORY = 1024
"""Memory that a template may take, in MiB."""
MAX_STRIKES = 3
"""Conversations over a limit after which a template is not tried again."""
MAX_REASON = 300
"""Characters of a template's own error that a message repeats."""


Beginning = tuple[int, bool]
"""So many of the first turns, and whether what opens the model's turn follows."""


@dataclass(frozen=True)
class Conversation:
    """What a template is given."""

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] = ()
    """JSON schemas of the functions that the model may call."""
    opens_turn: bool = False
    """Whether what opens the model's turn follows, the "generation prompt"."""


@dataclass(frozen=True)
class Rendering:
    """What a template made of a conversation or a beginning of it."""

    whole: str
    """The text of the first beginning that was asked for."""
    num_shared: int
    """Characters that this text and ``whole`` begin with alike."""
    rest: str
    """What follows them in this text."""
    blocks: list[tuple[int, int]]
    """Begin and end, in characters, of each part that the template marks as generated."""

    @property
    def text(self) -> str:
        """Return the text."""
        return self.whole[: self.num_shared] + self.rest


def template_variables() -> dict[str, Any]:
    """Return what is given to templates beside the conversation and the special tokens."""
    return {
        "date_string": TEMPLATE_DATE.strftime("%d %b %Y"),
        "strftime_now": TEMPLATE_DATE.strftime,
    }


def template_name(tokenizer: PreTrainedTokenizerBase) -> str:
    """Name the template of ``tokenizer`` in a message."""
    where = tokenizer.name_or_path
    return f"the chat template of {where}" if where else "the chat template"


def render_each(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation]
) -> list[Rendering | ValueError]:
    """Render ``conversations`` by the tokenizer's chat template.

    Returns:
        For each conversation its rendering, or the error to raise for it.
    """
    wholes = [
        [(len(conversation.messages), conversation.opens_turn)] for conversation in conversations
    ]
    return [renderings[0] for renderings in render_beginnings(tokenizer, conversations, wholes)]


def render_beginnings(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    beginnings: Sequence[Sequence[Beginning]],
) -> list[list[Rendering | ValueError]]:
    """Render several beginnings of each of ``conversations``, as `render_each` does."""
    if not conversations:
        return []
    # A tokenizer may have a template of its own for conversations with tools.
    templates = {
        has_tools: tokenizer.get_chat_template(None, [{}] if has_tools else None)
        for has_tools in {bool(conversation.tools) for conversation in conversations}
    }
    date = template_variables()["date_string"]
    variables = {**tokenizer.special_tokens_map, "date_string": date}
    requests = [
        {
            "messages": list(conversation.messages),
            "tools": list(conversation.tools) or None,
            "beginnings": list(wanted),
        }
        for conversation, wanted in zip(conversations, beginnings, strict=True)
    ]
    return [
        [_to_rendering(tokenizer, reply, replies[0].get("rest", "")) for reply in replies]
        for replies in _PROCESS.ask(templates, variables, requests)
    ]


def _to_rendering(
    tokenizer: PreTrainedTokenizerBase, reply: Mapping[str, Any], whole: str
) -> Rendering | ValueError:
    if "error" in reply:
        reason = " ".join(str(reply["error"]).split())
        return ValueError(
            f"{template_name(tokenizer)} refuses the conversation: {reason:.{MAX_REASON}}"
        )
    blocks = [(begin, end) for begin, end in reply["blocks"]]
    if not reply["num_shared"]:
        return Rendering(reply["rest"], 0, reply["rest"], blocks)
    return Rendering(whole, reply["num_shared"], reply["rest"], blocks)


def render(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> Rendering:
    """Render one conversation.

    Raises:
        ValueError: the template fails, or takes too much time or memory.
    """
    (rendering,) = render_each(tokenizer, [conversation])
    if isinstance(rendering, ValueError):
        raise rendering
    return rendering


class RenderingProcess:
    """One process of `deft.workers.data.templates.worker`, started when it is first needed.

    It belongs to the process that started it: a fork of that one starts its own.
    """

    def __init__(self, *, seconds: float = MAX_SECONDS, memory_mib: int = MAX_MEMORY) -> None:
        """Keep the limits; nothing is started yet."""
        self._limits = (str(seconds), str(memory_mib))
        self._lock = threading.Lock()
        self._owner = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._strikes: dict[str, list[str]] = {}
        """What became of the conversations that a template took too much for."""

    def ask(
        self,
        templates: Mapping[bool, str],
        variables: Mapping[str, Any],
        requests: Sequence[Mapping[str, Any]],
    ) -> list[list[dict[str, Any]]]:
        """Render beginnings of conversations.

        Args:
            templates: the template for conversations with tools (True) and without (False).
            variables: what templates are given beside the conversation.
            requests: ``messages``, ``tools`` and ``beginnings`` of each conversation.

        Returns:
            For each beginning of each conversation ``num_shared``, ``rest`` and ``blocks``, as in
            `Rendering`, or its ``error``.
        """
        if self._owner != os.getpid():
            self._lock, self._owner, self._process = threading.Lock(), os.getpid(), None
        replies: list[list[dict[str, Any]]] = []
        with self._lock:
            while len(replies) < len(requests):
                request = requests[len(replies)]
                strikes = self._strikes.setdefault(templates[bool(request["tools"])], [])
                if len(strikes) < MAX_STRIKES:
                    process = self._started()
                    _send(process, templates, variables, requests[len(replies) :])
                    replies += _receive(process, len(requests) - len(replies))
                    if len(replies) == len(requests):
                        break
                    request = requests[len(replies)]
                    strikes = self._strikes.setdefault(templates[bool(request["tools"])], [])
                    strikes.append(self._ended())
                replies.append([{"error": strikes[-1]}] * len(request["beginnings"]))
        return replies

    def close(self) -> None:
        """End the process, unless it belongs to the process that this one was forked from."""
        if self._process is not None and self._owner == os.getpid():
            self._ended()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            path = os.pathsep.join(folder for folder in sys.path if folder)
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "deft.workers.data.templates.worker", *self._limits],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": path},
                # Ctrl-C is for the owner; without it, the closed pipe ends the process.
                start_new_session=True,
            )
        return self._process

    def _ended(self) -> str:
        """End the process, and say why it gave no reply."""
        assert self._process is not None
        process, self._process = self._process, None
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):  # what could not be flushed into a dead process
                    stream.close()
        process.kill()
        if process.wait() == -signal.SIGPROF:
            return f"it takes more than {self._limits[0]} seconds"
        return "its process ended, for want of memory or by a crash"


def _send(
    process: subprocess.Popen[bytes],
    templates: Mapping[bool, str],
    variables: Mapping[str, Any],
    requests: Sequence[Mapping[str, Any]],
) -> None:
    message = {
        "templates": [templates.get(has_tools) for has_tools in (False, True)],
        "date": TEMPLATE_DATE.isoformat(),
        "variables": dict(variables),
        "requests": requests,
    }
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # then there is no reply either
        process.stdin.write(json.dumps(message, default=str).encode() + b"\n")
        process.stdin.flush()


def _receive(process: subprocess.Popen[bytes], number: int) -> list[list[dict[str, Any]]]:
    """Read up to ``number`` replies: fewer if the process ends."""
    assert process.stdout is not None
    replies: list[list[dict[str, Any]]] = []
    while len(replies) < number:
        line = process.stdout.readline()
        if not line.endswith(b"\n"):
            break
        replies.append(json.loads(line))
    return replies


_PROCESS = RenderingProcess()
atexit.register(_PROCESS.close)
