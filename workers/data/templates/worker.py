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
from collections.abc import Iterator
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


def render(template: Template, variables: dict[str, Any]) -> dict[str, Any]:
    """Render one conversation.

    Returns:
        ``text``, and ``blocks``: the first and the last character but one of each generated part.

    Raises:
        ValueError: there is too much of it, or a text in ``variables`` holds one of the marks.
    """
    marked = template.render(**variables)
    if len(marked) > MAX_CHARACTERS:
        raise ValueError(f"it writes {len(marked):,} characters, at most {MAX_CHARACTERS:,} fit")
    if OPEN not in marked:
        return {"text": marked, "blocks": []}
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
    return {"text": "".join(pieces), "blocks": blocks}


def reply_lines(request: dict[str, Any], seconds: float) -> Iterator[str]:
    """Yield the reply to each conversation of ``request`` in turn, a line of JSON."""
    date = datetime.fromisoformat(request["date"])
    for conversation in request["conversations"]:
        # SIGPROF keeps its default action: the kernel ends the process, whatever it is doing.
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            source = request["templates"][conversation["tools"] is not None]
            variables = {**request["variables"], **conversation, "documents": None}
            line = json.dumps(render(compile_template(source, date), variables))
        except MemoryError:
            line = json.dumps({"error": "it needs too much memory"})
        except TemplateError as error:
            line = json.dumps({"error": str(error)})
        except Exception as error:
            line = json.dumps({"error": f"{type(error).__name__}: {error}"})
        signal.setitimer(signal.ITIMER_PROF, 0)
        yield line


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
        for reply in reply_lines(json.loads(line), seconds):
            replies.write(f"{reply}\n")
            replies.flush()


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
