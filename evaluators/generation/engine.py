"""What generates: token ids in, token ids out.

An engine holds no tokenizer. Text is made and read by its caller with the tokenizer of the model
that is loaded, so that a swap of weights can never leave another model's vocabulary behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from deft.evaluators.generation.model_dir import Architecture

Start = Literal["started", "swapped"]


@dataclass(frozen=True)
class Request:
    """One response to generate."""

    prompt: list[int]
    seed: int
    """Of its sampling, which makes it independent of the other requests."""


@dataclass(frozen=True)
class Decoding:
    """How responses are drawn, and what ends them."""

    max_tokens: int
    """Generated tokens at most; the engine's context may end a response earlier."""
    temperature: float
    """0 for greedy decoding."""
    top_p: float
    stop_token_ids: list[int]
    reached_stop: Callable[[Sequence[int]], bool] | None = None
    """Told what has been generated so far: whether the response is over, see `stop_check`."""


@dataclass(frozen=True)
class Generation:
    """Tokens generated for one request, the stop token included."""

    token_ids: list[int]
    finish_reason: str
    """``stop``, ``length`` or ``prompt_too_long``."""


class Engine(Protocol):
    """At most one model, inside this process."""

    def load(self, model_path: Path, architecture: Architecture) -> Start:
        """Serve the model at ``model_path``, whose architecture the caller has read.

        A running engine takes over the weights of a model of the same architecture in place;
        otherwise one is started.

        Raises:
            RuntimeError: the model cannot be served, or memory does not suffice.
        """

    def generate(
        self, requests: Sequence[Request], decoding: Decoding
    ) -> Iterator[tuple[int, Generation]]:
        """Yield the index of each request and what was generated for it, as soon as it is done."""
