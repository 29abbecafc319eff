"""From chat messages to token ids: the one place where prompts are rendered.

Training and evaluation both call `encode_prompt`, so a model is asked exactly what it was taught.
A prompt style says how: the tokenizer's own chat template, or one of the paper's fixed strings.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from deft.workers.catalogs.prompt_styles import PROMPT_STYLES
from deft.workers.common.example import IGNORE_INDEX, Example, Message
from deft.workers.common.names import unknown_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


TEMPLATE_DATE = "26 Jul 2024"
"""The day that Llama 3's templates are told. Left alone, they write the day on which they run, and
no prompt could be reproduced on the next."""


@dataclass(frozen=True)
class Segment:
    """A piece of a rendered conversation, tokenised on its own."""

    text: str
    trained: bool
    """Whether its tokens carry loss."""


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    prompt: tuple[Message, ...],
    *,
    style: str = "chat",
    instruction: str = "",
) -> list[int]:
    """Token ids of ``prompt``, ready for the model's turn, with at most one BOS.

    Args:
        tokenizer: the model's tokenizer.
        prompt: the conversation before the turn to write.
        style: a name in `PROMPT_STYLES`.
        instruction: what the task asks for beside the question, see `Example`.

    Raises:
        ValueError: the style does not fit the tokenizer or the conversation.
    """
    require_tokens(tokenizer, style)
    segments = render_prompt(tokenizer, prompt, style=style, instruction=instruction)
    ids = _token_ids(tokenizer, [segment.text for segment in segments])
    joined = [token for piece in ids for token in piece]
    _require_one_bos(tokenizer, style, count_bos(tokenizer, joined))
    return joined


def encode_example(
    tokenizer: PreTrainedTokenizerBase, example: Example, *, style: str = "chat"
) -> tuple[list[int], list[int]]:
    """Token ids and labels of one training example, see `encode_examples`."""
    return encode_examples(tokenizer, [example], style=style)[0]


def encode_examples(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], *, style: str = "chat"
) -> list[tuple[list[int], list[int]]]:
    """Token ids and labels of training examples, tokenised in one batch.

    A sequence is prompt + response + EOS, its prompt that of `encode_prompt`. Labels equal the ids
    on each assistant turn and the token that ends it, for the response that is EOS; they are
    `IGNORE_INDEX` elsewhere, and not shifted.

    Raises:
        ValueError: the style does not fit the tokenizer or an example.
    """
    require_tokens(tokenizer, style)
    bos, eos = tokenizer.bos_token_id, require_eos(tokenizer)
    conversations = [
        [
            *render_prompt(tokenizer, example.prompt, style=style, instruction=example.instruction),
            Segment(example.response, trained=True),
        ]
        for example in examples
    ]
    flat = [segment.text for segments in conversations for segment in segments]
    pieces = iter(_token_ids(tokenizer, flat))
    encoded = []
    for segments in conversations:
        input_ids: list[int] = []
        labels: list[int] = []
        for segment in segments:
            ids = next(pieces)
            input_ids += ids
            labels += ids if segment.trained else [IGNORE_INDEX] * len(ids)
        input_ids.append(eos)
        labels.append(eos)
        _require_one_bos(tokenizer, style, _leading(input_ids, bos))
        encoded.append((input_ids, labels))
    return encoded


def format_hash(tokenizer: PreTrainedTokenizerBase, style: str, instruction: str = "") -> str:
    """Twelve hexadecimal digits that identify the prompt format of training or evaluation.

    It is taken over what a fixed question becomes, text and token ids, with the task's
    ``instruction``, and over EOS: two styles that render alike have the same hash.

    Raises:
        ValueError: the style does not fit the tokenizer or the instruction.
    """
    probe = ({"role": "user", "content": "What is 6 × 7?\n  Show  your work."},)
    ids = encode_prompt(tokenizer, probe, style=style, instruction=instruction)
    segments = render_prompt(tokenizer, probe, style=style, instruction=instruction)
    rendered = json.dumps([[s.text for s in segments], ids, tokenizer.eos_token_id])
    return hashlib.sha256(rendered.encode()).hexdigest()[:12]


def require_tokens(tokenizer: PreTrainedTokenizerBase, style: str) -> None:
    """Raise ValueError unless ``style`` exists and its control tokens are tokens of the model."""
    if style not in PROMPT_STYLES:
        raise ValueError(unknown_name("prompt style", style, PROMPT_STYLES))
    template = PROMPT_STYLES[style].template
    if template is None and tokenizer.chat_template is None:
        named = ", ".join(name for name, known in PROMPT_STYLES.items() if known.template)
        raise ValueError(
            f"the tokenizer at {tokenizer.name_or_path} has no chat template; choose a "
            f"prompt_style that needs none: {named}"
        )
    for marker in re.findall(r"<[|｜].*?[|｜]>", template or ""):
        if len(tokenizer(marker, add_special_tokens=False)["input_ids"]) != 1:
            raise ValueError(
                f"prompt style {style} needs the token {marker}, which the tokenizer at "
                f"{tokenizer.name_or_path} does not have: it is for another family of models"
            )


def require_eos(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of EOS.

    Raises:
        ValueError: the tokenizer has none.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer at {tokenizer.name_or_path} has no EOS token")
    return int(tokenizer.eos_token_id)


def count_bos(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> int:
    """How many BOS tokens ``ids`` starts with; 0 if the tokenizer has none."""
    return _leading(ids, tokenizer.bos_token_id)


def _leading(ids: Sequence[int], token: int | None) -> int:
    return len(list(takewhile(lambda other: other == token, ids)))


def render_prompt(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[Message],
    *,
    style: str,
    instruction: str = "",
) -> list[Segment]:
    """``prompt`` as text up to where the model's turn begins, cut around earlier assistant turns.

    Raises:
        ValueError: see `encode_prompt`.
    """
    chosen = PROMPT_STYLES[style]
    if chosen.template is None:
        if chosen.appends_instruction and instruction:
            prompt = _with_instruction(prompt, instruction)
        return list(_render_own(tokenizer, prompt))
    return [Segment(_render_named(style, prompt, instruction), trained=False)]


def _with_instruction(prompt: Sequence[Message], instruction: str) -> list[Message]:
    """``prompt`` with ``instruction`` on a line of its own after the last user turn's text."""
    messages = list(prompt)
    for index in reversed(range(len(messages))):
        if messages[index]["role"] == "user":
            content = f"{messages[index]['content']}\n{instruction}"
            messages[index] = {**messages[index], "content": content}
            return messages
    raise ValueError("the instruction belongs to a user's turn, and the conversation has none")


def _render_own(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message]) -> Iterator[Segment]:
    """The tokenizer's own template. Earlier assistant turns are found in the whole rendering.

    Templates may treat a turn differently once others follow (Qwen3 drops its thinking), so a turn
    is what the whole conversation shows after the prompt that led to it, or it is refused.
    """
    text = _apply_template(tokenizer, prompt)
    done = 0
    for index, message in enumerate(prompt):
        if message["role"] != "assistant":
            continue
        before = _apply_template(tokenizer, prompt[:index])
        if not text.startswith(before) or len(before) < done:
            raise ValueError(
                f"turn {index + 1}: the chat template of {tokenizer.name_or_path} writes the "
                "conversation up to this assistant turn differently once later turns follow, so "
                "the turn cannot be trained as it would be generated; train on its last turn only"
            )
        end = _end_of_turn(tokenizer, text, len(before), message["content"], index)
        yield Segment(text[done : len(before)], trained=False)
        yield Segment(text[len(before) : end], trained=True)
        done = end
    yield Segment(text[done:], trained=False)


def _end_of_turn(
    tokenizer: PreTrainedTokenizerBase, text: str, start: int, content: str, index: int
) -> int:
    """Where the assistant turn that starts at ``start`` is over, its closing token included."""
    closing = "|".join(map(re.escape, special_tokens(tokenizer)))
    turn = re.compile(rf"\s*{re.escape(content.strip())}\s*(?:{closing})")
    found = turn.match(text, start) if closing else None
    if found is None:
        raise ValueError(
            f"turn {index + 1}: the chat template of {tokenizer.name_or_path} does not write this "
            "assistant turn as its text and a special token that ends it (it may drop thinking "
            "from earlier turns), so it cannot be trained as it would be generated"
        )
    return found.end()


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The texts that the tokenizer reads as control tokens, longest first."""
    tokens = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
    return sorted(tokens, key=lambda token: (-len(token), token))


def _apply_template(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    from jinja2 import TemplateError

    try:
        return str(
            tokenizer.apply_chat_template(
                list(messages),
                add_generation_prompt=True,
                tokenize=False,
                date_string=TEMPLATE_DATE,
            )
        )
    except TemplateError as error:
        raise ValueError(
            f"the chat template of {tokenizer.name_or_path} refuses the conversation: {error}"
        ) from None


def _render_named(style: str, prompt: Sequence[Message], instruction: str) -> str:
    """A named style's string around the one user turn of ``prompt``."""
    chosen = PROMPT_STYLES[style]
    assert chosen.template is not None
    roles = [message["role"] for message in prompt]
    if roles not in (["user"], ["system", "user"]):
        raise ValueError(
            f"prompt style {style} is a string for one turn of a user, got a conversation of "
            f"{', '.join(roles) or 'no turns'}; styles chat and chat-bare take any"
        )
    if len(prompt) == 2 and prompt[0]["content"].strip() != chosen.system.strip():
        raise ValueError(
            f"prompt style {style} has the system text {chosen.system!r}, the example has "
            f"{prompt[0]['content']!r:.120}; style chat takes any"
        )
    if instruction not in ("", chosen.instruction):
        raise ValueError(
            f"prompt style {style} asks for {chosen.instruction or 'nothing more'!r}, the task "
            f"for {instruction!r}; style chat takes any instruction"
        )
    before, _, after = chosen.template.partition("{input}")
    return before + prompt[-1]["content"] + after


def _token_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Token ids of texts that spell out their own special tokens."""
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return ids


def _require_one_bos(tokenizer: PreTrainedTokenizerBase, style: str, count: int) -> None:
    if count > 1:
        raise ValueError(
            f"a prompt in style {style} starts with {count} BOS tokens under the tokenizer at "
            f"{tokenizer.name_or_path}; a model knows one at most"
        )
