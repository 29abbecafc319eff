"""The process that renders chat templates: a request per line of JSON in, a reply per line out.

A template comes with a model and is a program. Here it has the sandbox that transformers gives it,
and in addition a limit of CPU time for each conversation and a limit of memory. Whoever asks holds
what comes back to the tokenizer's own rendering, see `deft.workers.data.chat`.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

OPEN, CLOSE = "\ufdd0", "\ufdd1"
"""Around what a template marks as generated: noncharacters, which no text holds."""
MAX_CHARACTERS = 10_000_000
"""Longest rendering that is passed on, in characters."""


class GenerationBlocks(Extension):
    """Put marks around the text of ``{% generation %}…{% endgeneration %}``."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return the block's own nodes between two marks."""
        next(parser.stream)
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        opening, closing = (nodes.Output([nodes.TemplateData(mark)]) for mark in (OPEN, CLOSE))
        return [opening, *body, closing]


@lru_cache
def compile_template(source: str, date: datetime) -> Template:
    """Compile a chat template in transformers' dialect; ``date`` is what it takes for today."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlocks, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = date.strftime
    return environment.from_string(source)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def render(template: Template, variables: dict[str, Any]) -> tuple[str, list[tuple[int, int]]]:
    """Render a conversation.

    Returns:
        The text; and begin and end of each generated part, in characters.

    Raises:
        ValueError: there is too much of it, or a text in ``variables`` holds one of the marks.
    """
    marked = template.render(**variables)
    if len(marked) > MAX_CHARACTERS:
        raise ValueError(f"it writes {len(marked):,} characters, at most {MAX_CHARACTERS:,} fit")
    if OPEN not in marked:
        return marked, []
    pieces: list[str] = []
    blocks: list[tuple[int, int]] = []
    length = 0
    for number, part in enumerate(marked.split(OPEN)):
        inside, closing, outside = part.partition(CLOSE)
        if bool(closing) != bool(number) or CLOSE in outside:
            raise ValueError("its generation blocks overlap")
        if number:
            blocks.append((length, length + len(inside)))
        pieces += [inside, outside]
        length += len(inside) + len(outside)
    return "".join(pieces), blocks


def render_beginnings(
    message: dict[str, Any], request: dict[str, Any], seconds: float
) -> list[dict[str, Any]]:
    """Render the beginnings of one conversation, each within ``seconds``.

    Returns:
        For each beginning ``num_shared``, the number of characters that it has in common with the
        first one; ``rest``, what follows them; and ``blocks``. Or its ``error``.
    """
    source = message["templates"][request["tools"] is not None]
    date = datetime.fromisoformat(message["date"])
    replies: list[dict[str, Any]] = []
    whole = ""
    for number, opens_turn in request["beginnings"]:
        variables = {
            **message["variables"],
            "messages": request["messages"][:number],
            "tools": request["tools"],
            "documents": None,
            "add_generation_prompt": opens_turn,
        }
        # SIGPROF keeps its default action: the kernel ends the process, whatever it is doing.
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            text, blocks = render(compile_template(source, date), variables)
            shared = num_shared(whole, text) if replies else 0
            whole = whole if replies else text
            replies.append({"num_shared": shared, "rest": text[shared:], "blocks": blocks})
        except MemoryError:
            replies.append({"error": "it needs too much memory"})
        except TemplateError as error:
            replies.append({"error": str(error)})
        except Exception as error:
            replies.append({"error": f"{type(error).__name__}: {error}"})
        signal.setitimer(signal.ITIMER_PROF, 0)
    return replies


def num_shared(one: str, other: str) -> int:
    """Count the characters that two texts begin with alike."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def limit_memory(mib: int) -> None:
    """Allow the process ``mib`` MiB of address space beside what it has by now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + mib * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main(seconds: float, memory_mib: int) -> None:
    """Answer the requests on standard input until it is closed."""
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    limit_memory(memory_mib)
    for line in sys.stdin.buffer:
        message = json.loads(line)
        for request in message["requests"]:
            replies.write(json.dumps(render_beginnings(message, request, seconds)) + "\n")
            replies.flush()


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
