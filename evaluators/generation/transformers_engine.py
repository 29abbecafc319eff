"""Generation by transformers, for models that vLLM does not serve."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from deft.evaluators.generation.engine import (
    Continuation,
    Decoding,
    Generation,
    Likelihood,
    Request,
    Start,
    split_by_length,
)
from deft.evaluators.generation.model_dir import Architecture
from deft.evaluators.spec import EngineSpec
from deft.workers.modeling.loading import load_causal_lm

BATCH_SIZE = 8
"""Requests that are generated together."""


class TransformersEngine:
    """An `Engine` that generates batches of requests of similar length, padded on the left."""

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model: Any = None

    def load(self, model_path: Path, architecture: Architecture) -> Start:
        """Load a model, see `Engine`; no weights are swapped in place."""
        self._model = None
        dtype = self._spec.dtype
        if dtype == "auto":
            dtype = "bfloat16" if self._device.type == "cuda" else "float32"
        try:
            self._model = load_causal_lm(
                model_path, dtype=getattr(torch, dtype), device_map=self._device
            ).eval()
        except (OSError, ValueError, RuntimeError) as error:
            raise RuntimeError(
                f"transformers could not load the model at {model_path}: {error}"
            ) from error
        # Sampling is what the benchmark says, never what a model directory suggests.
        self._model.generation_config = type(self._model.generation_config)()
        return "started"

    def generate(
        self, requests: Sequence[Request], decoding: Decoding
    ) -> Iterator[tuple[int, Generation]]:
        """Generate responses, see `Engine`."""
        context = self.context_length
        fitting, too_long = split_by_length(requests, context)
        yield from ((index, Generation([], "prompt_too_long")) for index in too_long)
        fitting.sort(key=lambda index: len(requests[index].prompt))
        size = 1 if self._spec.batch_invariant else BATCH_SIZE
        for start in range(0, len(fitting), size):
            chosen = fitting[start : start + size]
            limits = [
                min(decoding.max_tokens, context - len(requests[index].prompt)) for index in chosen
            ]
            batch = self._generate_batch([requests[index] for index in chosen], limits, decoding)
            yield from zip(chosen, batch, strict=True)

    @torch.no_grad()
    def score(self, continuations: Sequence[Continuation]) -> Iterator[tuple[int, Likelihood]]:
        """Score texts, see `Engine`, one after the other: no padding can round them apart."""
        for index, text in enumerate(continuations):
            ids = torch.tensor([text.token_ids], device=self._device)
            logits = self._model(ids).logits[0, text.start - 1 : -1].float()
            targets = ids[0, text.start :]
            logp = logits.log_softmax(-1).gather(-1, targets[:, None]).sum()
            yield index, Likelihood(float(logp), bool((logits.argmax(-1) == targets).all()))

    @property
    def context_length(self) -> int:
        """Most tokens of a prompt and its response."""
        if self._model is None:
            raise RuntimeError("no model is loaded")
        context = self._model.config.get_text_config().max_position_embeddings
        return int(min(context, self._spec.max_model_len or context))

    @torch.no_grad()
    def _generate_batch(
        self, requests: Sequence[Request], limits: Sequence[int], decoding: Decoding
    ) -> list[Generation]:
        width = max(len(request.prompt) for request in requests)
        pads = [width - len(request.prompt) for request in requests]
        ids = torch.tensor(
            [[0] * pad + request.prompt for pad, request in zip(pads, requests, strict=True)]
        )
        mask = torch.tensor([[0] * pad + [1] * (width - pad) for pad in pads])
        processors = LogitsProcessorList()
        if any(request.allowed_token_ids for request in requests):
            processors.append(AllowedTokens([request.allowed_token_ids for request in requests]))
        if decoding.temperature > 0:
            processors.append(TemperatureLogitsWarper(decoding.temperature))
            if decoding.top_p < 1:
                processors.append(TopPLogitsWarper(decoding.top_p))
            seeds = [request.seed for request in requests]
            processors.append(GumbelNoise(seeds, self._device))
        criteria = StoppingCriteriaList()
        if decoding.reached_stop is not None:
            criteria.append(ReachedStop(decoding.reached_stop, width))
        output = self._model.generate(
            ids.to(self._device),
            attention_mask=mask.to(self._device),
            max_new_tokens=max(limits),
            do_sample=False,
            eos_token_id=decoding.stop_token_ids or None,
            pad_token_id=0,
            logits_processor=processors,
            stopping_criteria=criteria,
        )
        rows = output[:, width:].tolist()
        return [_cut(row, limit, decoding) for row, limit in zip(rows, limits, strict=True)]


class AllowedTokens(LogitsProcessor):
    """Leaves each row only the tokens that its request allows."""

    def __init__(self, allowed: Sequence[Sequence[int]]) -> None:
        self._allowed = allowed

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        masked = torch.full_like(scores, -torch.inf)
        for row, token_ids in enumerate(self._allowed):
            chosen = list(token_ids) or slice(None)
            masked[row, chosen] = scores[row, chosen]
        return masked


class GumbelNoise(LogitsProcessor):
    """Turns the arg max into a draw from the softmax, each row from a generator of its own.

    arg max(z + g) with Gumbel noise g is distributed as softmax(z) (Gumbel 1954; Maddison et al.
    2014, arXiv 1411.0030), so greedy decoding over it samples, and rows do not depend on others.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        noise = torch.empty_like(scores, dtype=torch.float32)
        for row, generator in zip(noise, self._generators, strict=True):
            row.exponential_(generator=generator)
        return scores.float() - noise.log()


class ReachedStop(StoppingCriteria):
    """Ends the rows in which a stop string has been generated."""

    def __init__(self, reached: Callable[[Sequence[int]], bool], width: int) -> None:
        self._reached = reached
        self._width = width

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        done = [self._reached(row) for row in input_ids[:, self._width :].tolist()]
        return torch.tensor(done, device=input_ids.device)


def _cut(token_ids: list[int], limit: int, decoding: Decoding) -> Generation:
    """Cut a row of a batch where its response ends; what follows belongs to longer rows."""
    stops = set(decoding.stop_token_ids)
    reached_stop = decoding.reached_stop or (lambda _: False)
    for length, token_id in enumerate(token_ids[:limit], start=1):
        if token_id in stops or reached_stop(token_ids[:length]):
            return Generation(token_ids[:length], "stop")
    return Generation(token_ids[:limit], "length")
