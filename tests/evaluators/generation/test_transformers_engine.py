"""Generation by transformers: the same promises as vLLM's, on the same tiny models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deft.evaluators.generation.actor import create_engine
from deft.evaluators.generation.engine import Decoding, Generation, Request
from deft.evaluators.generation.model_dir import Architecture, read_architecture
from deft.evaluators.generation.transformers_engine import GumbelNoise, TransformersEngine
from deft.evaluators.spec import EngineSpec

MAX_TOKENS = 8


def decoding(**settings: Any) -> Decoding:
    defaults = {"max_tokens": MAX_TOKENS, "temperature": 0.0, "top_p": 1.0, "stop_token_ids": []}
    return Decoding(**{**defaults, **settings})


@pytest.fixture(scope="module")
def engine(model_paths: dict[str, str]) -> TransformersEngine:
    engine = create_engine(EngineSpec(type="transformers", max_model_len=64))
    path = Path(model_paths["first"])
    assert engine.load(path, read_architecture(path)) == "started"
    assert isinstance(engine, TransformersEngine)
    return engine


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    rng = np.random.default_rng(0)
    lengths = [5, 23, 11, 23, 1, 40, 17, 8, 30, 2]
    return [
        Request(rng.integers(3, 200, size=length).tolist(), seed=1000 + i)
        for i, length in enumerate(lengths)
    ]


def generate(
    engine: TransformersEngine, requests: Sequence[Request], settings: Decoding
) -> list[Generation]:
    generations = dict(engine.generate(requests, settings))
    assert sorted(generations) == list(range(len(requests)))
    return [generations[index] for index in range(len(requests))]


def test_only_allowed_tokens_are_generated(
    engine: TransformersEngine, requests: list[Request]
) -> None:
    """The most likely of them where decoding is greedy; rows without a limit keep theirs."""
    allowed = (7, 30, 101)
    limited = [
        replace(request, allowed_token_ids=allowed if index % 2 else ())
        for index, request in enumerate(requests)
    ]
    one = decoding(max_tokens=1)
    free = generate(engine, requests, one)
    generations = generate(engine, limited, one)
    for index, request in enumerate(requests):
        with torch.no_grad():
            logits = engine._model(torch.tensor([request.prompt])).logits[0, -1]
        best = max(allowed, key=lambda token_id: float(logits[token_id]))
        assert generations[index].token_ids == ([best] if index % 2 else free[index].token_ids)
    sampled = generate(engine, limited, decoding(max_tokens=5, temperature=1.0))
    assert all(set(generations.token_ids) <= set(allowed) for generations in sampled[1::2])


def test_greedy_is_the_arg_max_of_every_step(
    engine: TransformersEngine, requests: list[Request]
) -> None:
    for request, generation in zip(requests, generate(engine, requests, decoding()), strict=True):
        ids = list(request.prompt)
        for _ in range(MAX_TOKENS):
            ids.append(int(engine._model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert generation == Generation(ids[len(request.prompt) :], "length")


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.8, "top_p": 0.9}])
def test_responses_do_not_depend_on_the_batch(
    engine: TransformersEngine, requests: list[Request], settings: dict[str, Any]
) -> None:
    together = generate(engine, requests, decoding(**settings))
    backwards = generate(engine, requests[::-1], decoding(**settings))[::-1]
    alone = [generate(engine, [request], decoding(**settings))[0] for request in requests]
    assert together == backwards == alone


def test_responses_end_where_they_should(
    engine: TransformersEngine, requests: list[Request]
) -> None:
    whole = generate(engine, requests, decoding())
    stop = whole[0].token_ids[3]
    for before, after in zip(
        whole, generate(engine, requests, decoding(stop_token_ids=[stop])), strict=True
    ):
        if stop in before.token_ids:
            end = before.token_ids.index(stop) + 1
            assert after == Generation(before.token_ids[:end], "stop")
        else:
            assert after == before
    pair = tuple(whole[1].token_ids[2:4])
    reached = decoding(reached_stop=lambda tokens: tuple(tokens[-2:]) == pair)
    assert generate(engine, requests, reached)[1] == Generation(whole[1].token_ids[:4], "stop")


def test_context_limits_responses_and_refuses_prompts(engine: TransformersEngine) -> None:
    long, full = Request([5] * 60, 0), Request([5] * 64, 0)
    generations = generate(engine, [full, long, Request([5], 0)], decoding())
    assert generations[0] == Generation([], "prompt_too_long")
    assert [len(generation.token_ids) for generation in generations[1:]] == [4, MAX_TOKENS]


def test_noise_draws_from_the_softmax() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    rows = 20_000
    noisy = GumbelNoise(range(rows), torch.device("cpu"))(torch.empty(0), logits.repeat(rows, 1))
    share = torch.bincount(noisy.argmax(-1), minlength=4) / rows
    assert torch.allclose(share, logits.softmax(-1)[0], atol=0.015)


def test_models_that_cannot_be_loaded_are_named(tmp_path: Path) -> None:
    engine = create_engine(EngineSpec(type="transformers"))
    with pytest.raises(RuntimeError, match="transformers could not load the model at"):
        engine.load(tmp_path, Architecture({}, {}))
