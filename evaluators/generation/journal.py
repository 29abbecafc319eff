"""Responses on disk the moment they are generated, so that nothing is ever generated twice.

One JSON object a line, with the fields that graders read: `deft grade` takes such a file as it is.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Response:
    """What a model answered to one item, one of several times."""

    id: str
    """The item's."""
    sample: int
    response: str
    gold: str
    options: dict[str, str] | None
    finish_reason: str
    """``stop`` (the model ended it), ``length`` (cut off) or ``prompt_too_long`` (never asked)."""
    n_tokens: int
    """Generated tokens, the one that ends the response included."""

    @property
    def key(self) -> tuple[str, int]:
        return self.id, self.sample


def read_responses(path: Path) -> dict[tuple[str, int], Response]:
    """All whole lines of a journal; a last one that a crash tore is cut off."""
    if not path.exists():
        return {}
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
    responses = (Response(**json.loads(line)) for line in content[:whole].splitlines())
    return {response.key: response for response in responses}


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
