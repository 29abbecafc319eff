"""The interface of engines: token ids in, token ids out.

An engine holds no tokenizer. Its caller encodes and decodes text with the tokenizer of the loaded
model, so that a swap of weights can never leave another model's vocabulary behind.
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
    """Seed of its sampling, which makes it independent of the other requests."""
    allowed_token_ids: tuple[int, ...] = ()
    """Tokens that may be generated; empty for all."""


@dataclass(frozen=True)
class Decoding:
    """Sampling parameters and ends of responses."""

    max_tokens: int
    """Most generated tokens; the engine's context may end a response earlier."""
    temperature: float
    """0 for greedy decoding."""
    top_p: float
    stop_token_ids: list[int]
    reached_stop: Callable[[Sequence[int]], bool] | None = None
    """Called with the tokens generated so far; True ends the response, see `stop_check`."""


@dataclass(frozen=True)
class Generation:
    """Tokens generated for one request, the stop token included."""

    token_ids: list[int]
    finish_reason: str
    """``stop``, ``length`` or ``prompt_too_long``."""


def split_by_length(requests: Sequence[Request], context: int) -> tuple[list[int], list[int]]:
    """Return the indices of requests that leave room in ``context`` tokens, and of the others."""
    fitting: list[int] = []
    too_long: list[int] = []
    for index, request in enumerate(requests):
        (fitting if len(request.prompt) < context else too_long).append(index)
    return fitting, too_long


@dataclass(frozen=True)
class Continuation:
    """A text whose end is scored."""

    token_ids: list[int]
    start: int
    """Number of tokens that are only read, at least one; those after them are scored."""


@dataclass(frozen=True)
class Likelihood:
    """What the model says of a continuation."""

    logp: float
    """Sum of the log-probabilities of its tokens, in nats."""
    is_greedy: bool
    """Whether greedy decoding would have generated it."""


class Engine(Protocol):
    """Generates with at most one model at a time, inside this process."""

    def load(self, model_path: Path, architecture: Architecture) -> Start:
        """Serve the model at ``model_path``, whose architecture the caller has read.

        A running engine loads the weights of a model of the same architecture in place; for any
        other architecture an engine is started.

        Raises:
            RuntimeError: the model cannot be served, or memory does not suffice.
        """

    def generate(
        self, requests: Sequence[Request], decoding: Decoding
    ) -> Iterator[tuple[int, Generation]]:
        """Yield the index of each request and what was generated for it, as soon as it is done."""

    def score(self, continuations: Sequence[Continuation]) -> Iterator[tuple[int, Likelihood]]:
        """Yield the index of each text and its likelihood; none is as long as `context_length`."""

    @property
    def context_length(self) -> int:
        """Most tokens of a prompt and its response."""
