"""From chat messages to token ids: the one place where prompts are rendered.

Training and evaluation both render here, so a model is asked exactly what it was taught. A prompt
style says how: the tokenizer's own chat template, or one of the paper's fixed strings.

The template has the last word: a conversation is rendered and tokenized as a whole, and is what
`apply_chat_template` makes of it, up to the last token that carries loss. What a template would
leave out, or write differently from what asks for it, is refused.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, NamedTuple

from deft.workers.catalogs.prompt_styles import PROMPT_STYLES
from deft.workers.common.example import IGNORE_INDEX, Example, Message
from deft.workers.common.names import unknown_name
from deft.workers.data.templates.rendering import (
    Conversation,
    render,
    template_name,
    template_variables,
)
from deft.workers.data.templates.texts import fit_template, require_texts
from deft.workers.data.templates.turns import Script, turn_weight, write_scripts

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase


class Encoded(NamedTuple):
    """A training example as tokens; lists of equal length."""

    input_ids: list[int]
    labels: list[int]
    """Not shifted; `IGNORE_INDEX` where there is no loss."""
    weights: list[float] | None = None
    """What the loss of each token is multiplied by; None where that is 1 for all."""


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    prompt: tuple[Message, ...],
    *,
    style: str = "chat",
    instruction: str = "",
) -> list[int]:
    """Encode ``prompt``, ready for the model's turn, with at most one BOS.

    Args:
        tokenizer: the model's tokenizer.
        prompt: the conversation before the turn to write.
        style: a name in `PROMPT_STYLES`.
        instruction: what the task asks for beside the question, see `Example`.

    Returns:
        Token ids; in the tokenizer's own template those of
        ``apply_chat_template(…, add_generation_prompt=True)``.

    Raises:
        ValueError: the style does not fit the tokenizer or the conversation.
    """
    require_tokens(tokenizer, style)
    if PROMPT_STYLES[style].template is not None:
        ids = _token_ids(tokenizer, [_render_named(style, prompt, instruction)])[0]
    else:
        conversation = Conversation(_instructed(prompt, style, instruction), opens_turn=True)
        ids = _token_ids(tokenizer, [_render_all(tokenizer, conversation)])[0]
        _require_own_ids(tokenizer, fit_template(tokenizer, conversation), ids)
    _require_one_bos(tokenizer, style, count_bos(tokenizer, ids))
    return ids


def encode_example(
    tokenizer: PreTrainedTokenizerBase, example: Example, *, style: str = "chat"
) -> tuple[list[int], list[int]]:
    """Encode one training example, see `encode_examples`."""
    return encode_examples(tokenizer, [example], style=style)[0]


def encode_examples(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], *, style: str = "chat"
) -> list[tuple[list[int], list[int]]]:
    """Encode training examples, tokenized in one batch.

    A sequence is the whole conversation up to the last token that carries loss, and EOS if nothing
    in the template ends the last turn. Labels equal the ids on each assistant turn that has weight
    and what ends it; they are `IGNORE_INDEX` elsewhere, and not shifted.

    Returns:
        Token ids and labels of each example; its weights, see `try_encode`, are left out.

    Raises:
        ValueError: the style does not fit the tokenizer or an example.
    """
    encoded = []
    for outcome in try_encode(tokenizer, examples, style=style):
        if isinstance(outcome, ValueError):
            raise outcome
        encoded.append((outcome.input_ids, outcome.labels))
    return encoded


def try_encode(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], *, style: str = "chat"
) -> list[Encoded | ValueError]:
    """Encode training examples as `encode_examples` does.

    Returns:
        For each example its tokens, or what makes it unfit.

    Raises:
        ValueError: the style does not fit the tokenizer.
    """
    require_tokens(tokenizer, style)
    require_eos(tokenizer)
    is_named_style = PROMPT_STYLES[style].template is not None
    outcomes = (_encode_named if is_named_style else _encode_own)(tokenizer, examples, style)
    for outcome in outcomes:
        if not isinstance(outcome, ValueError):
            _require_one_bos(tokenizer, style, count_bos(tokenizer, outcome.input_ids))
    return outcomes


def _encode_named(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], style: str
) -> list[Encoded | ValueError]:
    """Encode examples in a fixed style: the prompt's string, the response, EOS."""
    prompts: list[str | ValueError] = []
    for example in examples:
        try:
            _require_plain(example, style)
            prompts.append(_render_named(style, example.prompt, example.instruction))
        except ValueError as error:
            prompts.append(error)
    good = [
        text
        for prompt, example in zip(prompts, examples, strict=True)
        if isinstance(prompt, str)
        for text in (prompt, example.response)
    ]
    pieces = iter(_token_ids(tokenizer, good) if good else ())
    eos = require_eos(tokenizer)
    outcomes: list[Encoded | ValueError] = []
    for example, prompt in zip(examples, prompts, strict=True):
        if isinstance(prompt, ValueError):
            outcomes.append(prompt)
            continue
        before, response = next(pieces), [*next(pieces), eos]
        weight = turn_weight({"role": "assistant", **example.final})
        labels = [IGNORE_INDEX] * len(before) + response
        weights = [0.0] * len(before) + [weight] * len(response)
        outcomes.append(Encoded(before + response, labels, None if weight == 1 else weights))
    return outcomes


def _require_plain(example: Example, style: str) -> None:
    unsaid = [key for key in example.final if key != "weight"] + ["tools"] * bool(example.tools)
    if unsaid:
        raise ValueError(
            f"prompt style {style} is a string for one question and one answer, the example has "
            f"{', '.join(unsaid)}; style chat takes them where the model's template does"
        )
    if not turn_weight({"role": "assistant", **example.final}):
        raise ValueError("no turn of it has weight: there is nothing to learn")


def _encode_own(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], style: str
) -> list[Encoded | ValueError]:
    """Encode examples by the tokenizer's own template."""
    outcomes: dict[int, Encoded | ValueError] = {}
    conversations: dict[int, Conversation] = {}
    for number, example in enumerate(examples):
        try:
            conversations[number] = _whole_conversation(example, style)
        except ValueError as error:
            outcomes[number] = error
    written = write_scripts(tokenizer, list(conversations.values()), special_tokens(tokenizer))
    scripts: dict[int, Script] = {}
    for number, script in zip(conversations, written, strict=True):
        if isinstance(script, ValueError):
            outcomes[number] = script
        else:
            scripts[number] = script
    if scripts:
        batch = tokenizer([script.text for script in scripts.values()], add_special_tokens=False)
        first = next(iter(scripts.values()))
        _require_own_ids(tokenizer, first.conversation, batch["input_ids"][0])
        eos = require_eos(tokenizer)
        for place, (number, script) in enumerate(scripts.items()):
            ids = batch["input_ids"][place]
            outcomes[number] = _label(ids, batch.encodings[place], script, eos)
    return [outcomes[number] for number in range(len(examples))]


def _whole_conversation(example: Example, style: str) -> Conversation:
    final = {"role": "assistant", "content": example.response, **example.final}
    prompt = _instructed(example.prompt, style, example.instruction)
    return Conversation([*prompt, final], example.tools)


def _label(ids: list[int], encoding: Encoding, script: Script, eos: int) -> Encoded:
    """Label the tokens that the script's spans touch, and leave out what follows the last."""
    labels, weights = [IGNORE_INDEX] * len(ids), [0.0] * len(ids)
    last = 0
    for span in script.spans:
        first, last = _token_range(encoding, span.begin, span.end, len(script.text))
        labels[first:last] = ids[first:last]
        weights[first:last] = [span.weight] * (last - first)
    end = [eos] * script.needs_eos
    has_weights = any(span.weight != 1 for span in script.spans)
    weights = [*weights[:last], *(script.spans[-1].weight for _ in end)]
    return Encoded([*ids[:last], *end], [*labels[:last], *end], weights if has_weights else None)


def _token_range(encoding: Encoding, begin: int, end: int, length: int) -> tuple[int, int]:
    """Find the first token that touches the characters from ``begin`` to ``end``, and the last.

    Args:
        encoding: tokens of a text.
        begin: position of a character in it.
        end: position behind the last character.
        length: of the text.

    Returns:
        Positions of tokens, the second behind the last.
    """

    def token_from(position: int) -> int:
        """Find the token at a character, or at the next one that any token stands for."""
        tokens = map(encoding.char_to_token, range(position, length))
        return next((token for token in tokens if token is not None), len(encoding.ids))

    first, last = token_from(begin), token_from(end)
    characters = encoding.token_to_chars(last) if last < len(encoding.ids) else None
    return first, last + (characters is not None and characters[0] < end)


def _require_own_ids(
    tokenizer: PreTrainedTokenizerBase, conversation: Conversation, ids: list[int]
) -> None:
    """Hold ``ids`` to what transformers makes of the conversation.

    Raises:
        ValueError: they differ.
    """
    own = tokenizer.apply_chat_template(
        list(conversation.messages),
        tools=list(conversation.tools) or None,
        add_generation_prompt=conversation.opens_turn,
        return_dict=False,
        **template_variables(),
    )
    if own != ids:
        raise ValueError(
            f"{template_name(tokenizer)} gives other token ids in the "
            "tokenizer's own apply_chat_template than here; choose another prompt_style"
        )


def render_turns(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, opens_turn: bool = False
) -> str:
    """Render ``messages`` by the tokenizer's own template.

    Args:
        tokenizer: whose template to use.
        messages: whole turns.
        opens_turn: whether what opens the model's turn follows.

    Raises:
        ValueError: the template refuses them, or leaves something out.
    """
    return _render_all(tokenizer, Conversation(messages, opens_turn=opens_turn))


def end_of_turn(tokenizer: PreTrainedTokenizerBase, style: str) -> list[int]:
    """Find the control token that follows the text of a turn in ``style``, if there is one."""
    mark = "the text of a turn"
    template = PROMPT_STYLES[style].template
    if template is not None:
        after = template.partition("{input}")[2]
    else:
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": mark}]
        after = render_turns(tokenizer, turns).partition(mark)[2]
    added = {str(token): id for id, token in tokenizer.added_tokens_decoder.items()}
    positions = {after.find(text): text for text in added if text in after}
    return [added[positions[min(positions)]]] if positions else []


def _render_all(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> str:
    text = render(tokenizer, fit_template(tokenizer, conversation)).text
    require_texts(tokenizer, conversation, text)
    return text


def format_hash(tokenizer: PreTrainedTokenizerBase, style: str, instruction: str = "") -> str:
    """Identify the prompt format of training or evaluation by twelve hexadecimal digits.

    They are taken over what a fixed question becomes, text and token ids, with the task's
    ``instruction``, and over EOS: two styles that render alike have the same hash.

    Raises:
        ValueError: the style does not fit the tokenizer or the instruction.
    """
    probe = ({"role": "user", "content": "What is 6 × 7?\n  Show  your work."},)
    ids = encode_prompt(tokenizer, probe, style=style, instruction=instruction)
    if PROMPT_STYLES[style].template is not None:
        text = _render_named(style, probe, instruction)
    else:
        messages = _instructed(probe, style, instruction)
        text = _render_all(tokenizer, Conversation(messages, opens_turn=True))
    rendered = json.dumps([[text], ids, tokenizer.eos_token_id])
    return hashlib.sha256(rendered.encode()).hexdigest()[:12]


def require_tokens(tokenizer: PreTrainedTokenizerBase, style: str) -> None:
    """Raise ValueError unless ``style`` exists and its control tokens are tokens of the model."""
    if style not in PROMPT_STYLES:
        raise ValueError(unknown_name("prompt style", style, PROMPT_STYLES))
    template = PROMPT_STYLES[style].template
    if template is None and tokenizer.chat_template is None:
        styles = ", ".join(
            name for name, prompt_style in PROMPT_STYLES.items() if prompt_style.template
        )
        raise ValueError(
            f"the tokenizer at {tokenizer.name_or_path} has no chat template; choose a "
            f"prompt_style that needs none: {styles}"
        )
    if template is None and not tokenizer.is_fast:
        raise ValueError(
            f"the tokenizer at {tokenizer.name_or_path} is none of the library tokenizers, which "
            "alone tell where in a text a token stands; choose a model with a tokenizer.json"
        )
    for marker in re.findall(r"<[|｜].*?[|｜]>", template or ""):
        if len(tokenizer(marker, add_special_tokens=False)["input_ids"]) != 1:
            raise ValueError(
                f"prompt style {style} needs the token {marker}, which the tokenizer at "
                f"{tokenizer.name_or_path} does not have: it is for another family of models"
            )


def require_eos(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id of EOS.

    Raises:
        ValueError: the tokenizer has none.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer at {tokenizer.name_or_path} has no EOS token")
    return int(tokenizer.eos_token_id)


def count_bos(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> int:
    """Count the BOS tokens that ``ids`` starts with; 0 if the tokenizer has none."""
    return _leading(ids, tokenizer.bos_token_id)


def _leading(ids: Sequence[int], token: int | None) -> int:
    return len(list(takewhile(lambda other: other == token, ids)))


def _instructed(prompt: Sequence[Message], style: str, instruction: str) -> list[Message]:
    """Return ``prompt`` with what the style says of ``instruction``."""
    if PROMPT_STYLES[style].appends_instruction and instruction:
        return _with_instruction(prompt, instruction)
    return list(prompt)


def _with_instruction(prompt: Sequence[Message], instruction: str) -> list[Message]:
    """Return ``prompt`` with ``instruction`` on a line of its own after the last user text."""
    messages = list(prompt)
    for index in reversed(range(len(messages))):
        if messages[index]["role"] == "user":
            content = f"{messages[index]['content']}\n{instruction}"
            messages[index] = {**messages[index], "content": content}
            return messages
    raise ValueError("the instruction belongs to a user's turn, and the conversation has none")


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the texts that the tokenizer reads as control tokens, longest first."""
    tokens = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
    return sorted(tokens, key=lambda token: (-len(token), token))


def _render_named(style: str, prompt: Sequence[Message], instruction: str) -> str:
    """Put a named style's string around the one user turn of ``prompt``."""
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
    return f"{before}{prompt[-1]['content']}{after}"


def _token_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Encode texts that spell out their own special tokens."""
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return ids


def _require_one_bos(tokenizer: PreTrainedTokenizerBase, style: str, count: int) -> None:
    if count > 1:
        raise ValueError(
            f"a prompt in style {style} starts with {count} BOS tokens under the tokenizer at "
            f"{tokenizer.name_or_path}; a model knows one at most"
        )
