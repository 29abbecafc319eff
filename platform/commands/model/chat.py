"""`deft chat`: ask the model of a run, on this machine, by transformers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase, TextStreamer
from transformers.utils.logging import disable_progress_bar

from deft.evaluators.generation.model_dir import read_stop_token_ids
from deft.evaluators.generation.prompts import resolve_stops
from deft.platform.errors import UserError
from deft.workers.catalogs.prompt_styles import PROMPT_STYLES
from deft.workers.common.example import Message
from deft.workers.common.text import printable
from deft.workers.data.chat import encode_prompt
from deft.workers.modeling.loading import load_causal_lm


class Chat:
    """A model and the conversation with it, rendered as in training."""

    def __init__(self, model: Path, style: str, *, max_tokens: int, temperature: float) -> None:
        """Load the model.

        Args:
            model: its directory.
            style: prompt style that it was trained with.
            max_tokens: length limit of a response.
            temperature: of sampling; 0 for greedy decoding.
        """
        disable_progress_bar()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = load_causal_lm(model, dtype="auto", device_map=device).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(model)
        self._style = style
        self._max_tokens = max_tokens
        declared = read_stop_token_ids(model, self._tokenizer.eos_token_id)
        sampling = (
            {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {}
        )
        # In place of what the model's directory suggests.
        self._model.generation_config = GenerationConfig(
            eos_token_id=resolve_stops(self._tokenizer, style, declared).token_ids or None,
            pad_token_id=0,
            **sampling,
        )
        self.turns: tuple[Message, ...] = ()
        """Turns so far; none in a style that spells out a single turn."""

    @torch.no_grad()
    def answer(self, text: str, write: Callable[[str], Any]) -> str:
        """Return the model's answer to ``text``, which ``write`` gets piece by piece.

        Raises:
            UserError: the conversation is too long for the model, or does not fit its template.
        """
        turns: tuple[Message, ...] = (*self.turns, {"role": "user", "content": text})
        try:
            prompt = encode_prompt(self._tokenizer, turns, style=self._style)
        except ValueError as error:
            raise UserError(str(error)) from None
        context = self._model.config.get_text_config().max_position_embeddings
        limit = min(self._max_tokens, context - len(prompt))
        if limit < 1:
            raise UserError(
                f"{len(prompt)} tokens are too long for the model's context of {context}; begin "
                "a new conversation"
            )
        ids = torch.tensor([prompt], device=self._model.device)
        output = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=limit,
            streamer=_Stream(self._tokenizer, write),
        )
        answer: str = self._tokenizer.decode(output[0, len(prompt) :], skip_special_tokens=True)
        if PROMPT_STYLES[self._style].template is None:
            self.turns = (*turns, {"role": "assistant", "content": answer})
        return answer


class _Stream(TextStreamer):
    """Hands on the text of a response as it grows."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, write: Callable[[str], Any]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._write = write

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Write a piece; a model's control characters shall not reach the terminal."""
        self._write(printable(text))


def talk(chat: Chat, read: Callable[[], str], write: Callable[[str], Any]) -> None:
    """Answer what ``read`` returns, until it raises EOFError."""
    while True:
        try:
            text = read()
        except EOFError:
            return
        if text.strip():
            chat.answer(text, write)
            write("\n")


def write_out(text: str) -> None:
    """Print a piece of a response at once."""
    print(text, end="", file=sys.stdout, flush=True)
