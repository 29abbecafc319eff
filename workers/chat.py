"""From chat messages to token ids: the one place where prompts are rendered.

Training and evaluation both call `encode_prompt`, so a model is asked exactly what it was taught.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100
"""Label of the positions that carry no loss (PyTorch's convention)."""


Message = dict[str, str]
"""One turn of a conversation: its role and its content."""


@dataclass(frozen=True)
class Example:
    """A prompt and the response to learn or to be graded against."""

    id: str
    prompt: tuple[Message, ...]
    response: str


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: tuple[Message, ...]) -> list[int]:
    """Token ids of ``prompt`` under the tokenizer's chat template, ready for the model's turn.

    Raises:
        ValueError: the tokenizer has no chat template.
    """
    if tokenizer.chat_template is None:
        raise ValueError(f"the tokenizer at {tokenizer.name_or_path} has no chat template")
    text = tokenizer.apply_chat_template(list(prompt), add_generation_prompt=True, tokenize=False)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def encode_example(
    tokenizer: PreTrainedTokenizerBase, example: Example
) -> tuple[list[int], list[int]]:
    """Token ids and labels of one training example.

    The sequence is prompt + response + EOS. Labels equal the ids on the response and on EOS and
    `IGNORE_INDEX` on the prompt; they are not shifted.
    """
    prompt_ids = encode_prompt(tokenizer, example.prompt)
    response_ids = tokenizer(example.response, add_special_tokens=False)["input_ids"]
    response_ids = [*response_ids, tokenizer.eos_token_id]
    return prompt_ids + response_ids, [IGNORE_INDEX] * len(prompt_ids) + response_ids
