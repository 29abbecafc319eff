"""The model that lm-evaluation-harness asks: an engine of this platform."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from deft.evaluators.generation.engine import Continuation, Decoding, Engine, Request
from deft.evaluators.generation.model_dir import read_stop_token_ids
from deft.evaluators.generation.prompts import (
    Stops,
    cut_at,
    dropped_tokens,
    stop_check,
)

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Answer:
    """The engine's answer to one request."""

    value: Any
    """What the library is given: text, or log-probability and whether it is greedy."""
    n_tokens: int
    finish_reason: str = "stop"


class EngineModel(TemplateLM):
    """Answers the library's requests; ``on_answer`` is told of each as soon as it is known.

    Both it and ``seed_of``, the seed of a response, take a request's place in the list.
    Text is tokenized as the library does it for its own models: special tokens are the tokenizer's,
    a BOS that the text has already is not added again, and what is too long to be scored is cut at
    its beginning.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, model_dir: Path, *, max_tokens: int
    ) -> None:
        super().__init__()
        self.tokenizer: Any = tokenizer
        self.engine: Engine | None = None
        self.on_answer: Callable[[int, Answer], None] = lambda index, answer: None
        self.seed_of: Callable[[int], int] = lambda index: index
        self._declared = read_stop_token_ids(model_dir, tokenizer.eos_token_id)
        self._dropped = dropped_tokens(tokenizer)
        self._max_tokens = max_tokens

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token before a text that has no context."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        """The directory that the tokenizer was loaded from."""
        return str(self.tokenizer.name_or_path)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Render a conversation by the model's own template."""
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Encode a text."""
        if add_special_tokens is None:
            bos = self.tokenizer.bos_token
            add_special_tokens = not (bos and string.startswith(bos))
        ids: list[int] = self.tokenizer.encode(string, add_special_tokens=add_special_tokens)
        return ids

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        def report(index: int, answer: tuple[float, bool]) -> None:
            self.on_answer(index, Answer(answer, len(requests[index][2])))

        return self._score([(context, end) for _, context, end in requests], report)

    def _score(
        self,
        pairs: Sequence[tuple[list[int], list[int]]],
        report: Callable[[int, tuple[float, bool]], None],
    ) -> list[tuple[float, bool]]:
        assert self.engine is not None
        longest = self.engine.context_length - 1
        texts = []
        for context, end in pairs:
            ids = (context + end)[-longest:]
            texts.append(Continuation(ids, max(1, len(ids) - len(end))))
        scores: dict[int, tuple[float, bool]] = {}
        for index, likelihood in self.engine.score(texts):
            scores[index] = (likelihood.logp, likelihood.is_greedy)
            report(index, scores[index])
        return [scores[index] for index in range(len(pairs))]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Score whole texts, those longer than the context window by window."""
        assert self.engine is not None
        longest = self.engine.context_length - 2
        totals = []
        for index, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            windows = get_rolling_token_windows(ids, self.prefix_token_id, longest, 1)
            pairs = [make_disjoint_window(window) for window in windows]
            total = sum(logp for logp, _ in self._score(pairs, lambda *_: None))
            self.on_answer(index, Answer(total, len(ids)))
            totals.append(total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Generate responses, those of equal settings together."""
        texts: dict[int, str] = {}
        by_settings: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            settings = json.dumps(request.args[1], sort_keys=True)
            by_settings.setdefault(settings, []).append(index)
        for settings, indices in by_settings.items():
            self._generate(json.loads(settings), indices, requests, texts)
        return [texts[index] for index in range(len(requests))]

    def stops(self, settings: dict[str, Any]) -> Stops:
        """Return what ends a response under a task's settings."""
        added = {str(token): id for id, token in self.tokenizer.added_tokens_decoder.items()}
        until = [string for string in normalize_gen_kwargs(settings)["until"] if string]
        ids = {*self._declared, *(added[string] for string in until if string in added)}
        return Stops(sorted(ids), [string for string in until if string not in added])

    def _generate(
        self,
        settings: dict[str, Any],
        indices: Sequence[int],
        requests: Sequence[Instance],
        texts: dict[int, str],
    ) -> None:
        assert self.engine is not None
        resolved = normalize_gen_kwargs(settings, default_max_gen_toks=self._max_tokens)
        stops = self.stops(settings)
        decoding = Decoding(
            max_tokens=resolved["max_gen_toks"],
            temperature=float(resolved.get("temperature") or 0.0),
            top_p=float(settings.get("top_p", 1.0)),
            stop_token_ids=stops.token_ids,
            reached_stop=stop_check(self.tokenizer, stops.strings),
        )
        prompts = [
            Request(self.tok_encode(requests[index].args[0]), self.seed_of(index))
            for index in indices
        ]
        for position, generation in self.engine.generate(prompts, decoding):
            ids = [id for id in generation.token_ids if id not in self._dropped]
            if ids and ids[-1] in stops.token_ids:
                ids = ids[:-1]
            text = cut_at(str(self.tokenizer.decode(ids)), stops.strings)
            texts[indices[position]] = text
            answer = Answer(text, len(generation.token_ids), generation.finish_reason)
            self.on_answer(indices[position], answer)
