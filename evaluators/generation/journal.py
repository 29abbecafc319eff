"""A journal of responses, written as they are generated, so that none is generated twice.

One JSON object a line, with the fields that graders read: `deft grade` takes such a file as it is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from deft.workers.common.files import atomic_file, drop_torn_line


@dataclass(frozen=True)
class Response:
    """One sample of a model's response to an item."""

    id: str
    """Id of the item."""
    sample: int
    response: str
    gold: str
    options: dict[str, str] | None
    finish_reason: str
    """``stop`` (the model ended it), ``length`` (cut off) or ``prompt_too_long`` (never asked)."""
    n_tokens: int
    """Generated tokens, the one that ends the response included."""
    question: str = ""
    """Text of the item's question: a bare number is a percentage only where it asks for one."""
    opens_thought: bool = False
    """Whether the prompt ended within a thought that the response goes on with."""

    @property
    def key(self) -> tuple[str, int]:
        """Item id and sample."""
        return self.id, self.sample


def read_responses(path: Path) -> dict[tuple[str, int], Response]:
    """Read a journal, after cutting off a last line that a crash left without its end."""
    drop_torn_line(path)
    if not path.exists():
        return {}
    responses = (Response(**json.loads(line)) for line in path.read_bytes().splitlines())
    return {response.key: response for response in responses}


def read_journals(own: Path, others: Iterable[Path]) -> dict[tuple[str, int], Response]:
    """Read a journal as `read_responses` does, and those that other processes may append to."""
    responses = read_responses(own)
    for path in others:
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        complete = (Response(**json.loads(line)) for line in lines if line.endswith(b"\n"))
        responses |= {response.key: response for response in complete}
    return responses


def write_journal(path: Path, responses: Iterable[Response]) -> None:
    """Write a journal anew; it appears whole or not at all."""
    with atomic_file(path) as file:
        file.writelines(json.dumps(asdict(response)).encode() + b"\n" for response in responses)


class ResponseJournal:
    """Appends responses; each is in the file, whole, when `append` returns."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def append(self, response: Response) -> None:
        """Add one line. It outlives this process; `close` makes it outlive the machine."""
        line = json.dumps(asdict(response)).encode() + b"\n"
        while line:
            line = line[os.write(self._descriptor, line) :]

    def close(self) -> None:
        """Flush to disk and close."""
        os.fsync(self._descriptor)
        os.close(self._descriptor)

    def __enter__(self) -> ResponseJournal:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
