"""Where the assistant's turns stand in what a chat template writes.

A turn that is trained must be one that the model could be asked for: the whole conversation has to
begin with what the template writes for a request, the turns before it and the opening of the
model's own. The turn reaches from there to the control token that ends it. Where the template marks
what is generated, its marks are the turns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deft.workers.common.example import Message
from deft.workers.data.templates.rendering import (
    Beginning,
    Conversation,
    Rendering,
    render_beginnings,
    template_name,
)
from deft.workers.data.templates.texts import fit_template, require_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_SHOWN = 60
"""Characters of each of two texts that differ which a message shows."""


@dataclass(frozen=True)
class Span:
    """A part of a text that carries loss."""

    turn: int
    """Index of the turn that it belongs to."""
    begin: int
    end: int
    """Positions of characters, the second behind the last."""
    weight: float


@dataclass(frozen=True)
class Script:
    """A whole conversation as text, and the parts of it that carry loss."""

    conversation: Conversation
    """In the form that the template takes."""
    text: str
    spans: list[Span]
    needs_eos: bool
    """Whether the last turn is trained and nothing that the template writes ends it."""


def write_scripts(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    control_tokens: Sequence[str],
) -> list[Script | ValueError]:
    """Render whole conversations, and find the assistant's turns in them.

    Args:
        tokenizer: whose template to use.
        conversations: what to render.
        control_tokens: what the tokenizer reads as control tokens, longest first.

    Returns:
        For each conversation its script, or the error to raise for it.
    """
    fitted: dict[int, Conversation] = {}
    outcomes: dict[int, Script | ValueError] = {}
    for number, conversation in enumerate(conversations):
        try:
            fitted[number] = fit_template(tokenizer, conversation)
        except ValueError as error:
            outcomes[number] = error
    plans = [_beginnings_needed(conversation) for conversation in fitted.values()]
    rendered = render_beginnings(tokenizer, list(fitted.values()), plans)
    control = tuple(control_tokens)
    for number, plan, renderings in zip(fitted, plans, rendered, strict=True):
        text_of_plan = dict(zip(plan, renderings, strict=True))
        try:
            text, spans = _write(tokenizer, conversations[number], text_of_plan, control)
        except ValueError as error:
            outcomes[number] = error
            continue
        needs_eos = turn_weight(conversations[number].messages[-1]) > 0
        needs_eos = needs_eos and not _closers(text, control)
        outcomes[number] = Script(fitted[number], text, spans, needs_eos)
    return [outcomes[number] for number in range(len(conversations))]


def turn_weight(message: Message) -> float:
    """Return what the loss on a turn is multiplied by: 0 unless it is the assistant's."""
    return float(message.get("weight", 1.0)) if message["role"] == "assistant" else 0.0


def _assistant_turns(conversation: Conversation) -> list[int]:
    return [i for i, message in enumerate(conversation.messages) if message["role"] == "assistant"]


def _trained_turns(conversation: Conversation) -> list[int]:
    return [i for i, message in enumerate(conversation.messages) if turn_weight(message)]


def _beginnings_needed(conversation: Conversation) -> list[Beginning]:
    """Return the whole, what asks for each turn, and what the trained turns end."""
    beginnings: list[Beginning] = [(len(conversation.messages), False)]
    beginnings += [(index, True) for index in _assistant_turns(conversation)]
    beginnings += [(index + 1, False) for index in _trained_turns(conversation)]
    return list(dict.fromkeys(beginnings))


def _write(
    tokenizer: PreTrainedTokenizerBase,
    conversation: Conversation,
    renderings: Mapping[Beginning, Rendering | ValueError],
    control: tuple[str, ...],
) -> tuple[str, list[Span]]:
    def require(number: int, opens: bool) -> Rendering:
        rendering = renderings[number, opens]
        if isinstance(rendering, ValueError):
            raise rendering
        return rendering

    messages, trained = conversation.messages, _trained_turns(conversation)
    whole = require(len(messages), False)
    require_texts(tokenizer, conversation, whole.text)
    if not trained:
        raise ValueError("no turn of it has weight: there is nothing to learn")
    spans: list[Span] = []
    for index in trained:
        request = require(index, True)
        if request.rest:
            raise ValueError(_differs(tokenizer, index, request))
        begin = request.num_shared
        if not whole.blocks:
            upto = require(index + 1, False).text
            end = _end_of_turn(tokenizer, conversation, index, whole.text, begin, upto, control)
            spans.append(Span(index, begin, end, turn_weight(messages[index])))
    if whole.blocks:
        starts = {index: renderings[index, True] for index in _assistant_turns(conversation)}
        spans = _marked_spans(
            conversation,
            whole,
            {i: r.num_shared for i, r in starts.items() if isinstance(r, Rendering)},
        )
    for index in trained:
        text = "".join(whole.text[span.begin : span.end] for span in spans if span.turn == index)
        require_texts(tokenizer, Conversation([messages[index]]), text, first_turn=index + 1)
    return whole.text, spans


def _marked_spans(
    conversation: Conversation, whole: Rendering, starts: Mapping[int, int]
) -> list[Span]:
    """Return what the template marks as generated, with the weights of the turns.

    Args:
        conversation: all turns.
        whole: all turns as text.
        starts: where the assistant's turns begin in it, by the turn's index.
    """
    spans = []
    for begin, end in whole.blocks:
        # A marked part may begin before the turn, by the header that asks for it.
        index = max((i for i, start in starts.items() if start < end), default=min(starts))
        weight = turn_weight(conversation.messages[index])
        if weight and begin < end:
            spans.append(Span(index, begin, end, weight))
    return spans


def _end_of_turn(
    tokenizer: PreTrainedTokenizerBase,
    conversation: Conversation,
    index: int,
    whole: str,
    begin: int,
    upto: str,
    control: tuple[str, ...],
) -> int:
    """Find where the turn at ``index`` is over, what ends it included.

    Args:
        tokenizer: whose template it is.
        conversation: all turns.
        index: of the turn.
        whole: all turns as text.
        begin: where the turn begins in it, and in ``upto``.
        upto: the turns up to this one as text.
        control: the control tokens, longest first.

    Returns:
        A position in ``whole``: behind the control tokens that close the turn; behind its text if
        it is the last one and nothing closes it.
    """
    closers = _closers(upto, control)
    text_end = len(upto.rstrip()) - len(closers)
    if whole.startswith(upto):
        end = text_end
    else:
        # Templates may write a last turn differently from the same turn with others behind it.
        turn = upto[begin:text_end]
        end = begin + _end_of_text(tokenizer, conversation, index, turn, whole[begin:])
        while closers and not whole.startswith(closers, end):
            closers = closers.removesuffix(_last_token(closers, control)).rstrip()
    if closers:
        return end + len(closers)
    if index == len(conversation.messages) - 1:
        return end
    following = whole[end:]
    num_spaces = len(following) - len(following.lstrip())
    next_token = next((t for t in control if following.startswith(t, num_spaces)), None)
    if next_token is None:
        raise ValueError(
            f"turn {index + 1}: {template_name(tokenizer)} writes no control "
            "token that ends this assistant turn, so it cannot be trained as it would be "
            "generated; give the turn weight 0"
        )
    return end + num_spaces + len(next_token)


def _closers(text: str, control: tuple[str, ...]) -> str:
    """Return the control tokens at the end of ``text``, with the white space before each."""
    end = start = len(text.rstrip())
    while token := _last_token(text[:start], control):
        start = len(text[: start - len(token)].rstrip())
    return text[start:end]


def _last_token(text: str, control: tuple[str, ...]) -> str:
    """Return the control token that ``text`` ends with; empty if it ends with none."""
    if not text.endswith(control):
        return ""
    return next(token for token in control if text.endswith(token))


def _end_of_text(
    tokenizer: PreTrainedTokenizerBase,
    conversation: Conversation,
    index: int,
    text_as_last: str,
    text_after: str,
) -> int:
    """Measure a turn that others follow by the same turn as the last one.

    Templates may write the same text differently in a last turn, but for what stands before it: an
    empty block of thinking, say.

    Args:
        tokenizer: whose template it is.
        conversation: all turns.
        index: of the turn.
        text_as_last: how the turn is written as the last one, without what closes it.
        text_after: what stands in the whole conversation where the turn begins.

    Returns:
        Characters of the turn in ``text_after``.
    """
    turn = Conversation([conversation.messages[index]])
    for start in range(len(text_as_last)):
        text = text_as_last[start:]
        if text_after.startswith(text):
            try:
                require_texts(tokenizer, turn, text)
            except ValueError:
                break
            return len(text)
    raise ValueError(
        f"turn {index + 1}: {template_name(tokenizer)} writes this assistant "
        "turn differently once later turns follow (it may drop thinking from earlier turns), so "
        "it cannot be trained as it would be generated; give the turn weight 0"
    )


def _differs(tokenizer: PreTrainedTokenizerBase, index: int, request: Rendering) -> str:
    start = max(0, request.num_shared - MAX_SHOWN // 2)
    prompted, written = (text[start : start + MAX_SHOWN] for text in (request.text, request.whole))
    return (
        f"turn {index + 1}: {template_name(tokenizer)} asks for this assistant "
        f"turn by {prompted!r} and writes it in the whole conversation as {written!r}, so it "
        "cannot be trained as it would be generated; give what the template expects (such as "
        "thinking before the answer), or give the turn weight 0"
    )
