"""How a benchmark's items become prompts of one model, and what ends its responses.

Everything is read off the tokenizer and the prompt style, nothing off the name of a path.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deft.evaluators.benchmarks.base import Benchmark, Item
from deft.evaluators.grading.responses import is_mark
from deft.evaluators.spec import PAPER_STYLE, BenchmarkSpec
from deft.workers.catalogs.prompt_styles import PROMPT_STYLES
from deft.workers.data.chat import (
    count_bos,
    encode_prompt,
    end_of_turn,
    format_hash,
    render_turns,
    special_tokens,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FAMILY_MARKS = {
    "llama": "<|start_header_id|>",
    "deepseek": "<｜begin▁of▁sentence｜>",
    "qwen": "<|im_start|>",
}


@dataclass(frozen=True)
class PromptFormat:
    """How prompts were rendered; recorded with the results."""

    style: str
    hash: str
    """Of what the style makes of a fixed question, see `format_hash`."""
    num_bos: int
    """BOS tokens that a prompt starts with."""


@dataclass(frozen=True)
class Stops:
    """What ends a response."""

    token_ids: list[int]
    strings: list[str]
    """Those that are no single control token of the model's."""


def model_family(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the paper's name for a model with this tokenizer: llama, deepseek or qwen.

    Raises:
        ValueError: it has none of the control tokens that tell them apart.
    """
    tokens = set(special_tokens(tokenizer))
    for family, mark in _FAMILY_MARKS.items():
        if mark in tokens:
            return family
    raise ValueError(
        f"the tokenizer at {tokenizer.name_or_path} is of no model family that the paper has "
        f"prompts for: it has none of the control tokens {', '.join(_FAMILY_MARKS.values())}"
    )


def resolve_style(
    spec: BenchmarkSpec,
    benchmark: Benchmark,
    tokenizer: PreTrainedTokenizerBase,
    trained_style: str,
) -> str:
    """Return the prompt style that ``spec`` means for a model trained with ``trained_style``.

    Raises:
        ValueError: the paper has no prompt for a model of this family.
    """
    if spec.prompt_style == PAPER_STYLE:
        assert benchmark.paper is not None
        family = model_family(tokenizer)
        if family not in benchmark.paper.styles:
            raise ValueError(f"{benchmark.name}: the paper has no prompt for {family} models")
        return benchmark.paper.styles[family]
    if spec.prompt_style is not None:
        return spec.prompt_style
    style = PROMPT_STYLES[trained_style]
    paper_styles = benchmark.paper.styles.values() if benchmark.paper is not None else ()
    # A style that spells out another task's instruction or system text would set that task.
    suits = (
        style.template is None
        or trained_style in paper_styles
        or (style.instruction == benchmark.instruction != "")
    )
    return trained_style if suits else "chat"


def encode_item(
    tokenizer: PreTrainedTokenizerBase, item: Item, benchmark: Benchmark, style: str
) -> list[int]:
    """Encode an item's prompt.

    Raises:
        ValueError: the style does not fit the tokenizer or the item.
    """
    return encode_prompt(tokenizer, item.prompt, style=style, instruction=benchmark.instruction)


def describe_format(
    tokenizer: PreTrainedTokenizerBase, benchmark: Benchmark, style: str, prompt: Sequence[int]
) -> PromptFormat:
    """Describe the format of ``benchmark``'s prompts, ``prompt`` being one of them."""
    instruction = benchmark.instruction
    return PromptFormat(
        style=style,
        hash=format_hash(tokenizer, style, instruction),
        num_bos=count_bos(tokenizer, prompt),
    )


def resolve_stops(
    tokenizer: PreTrainedTokenizerBase,
    style: str,
    declared: Sequence[int],
    strings: Sequence[str] = (),
) -> Stops:
    """Find what ends a response: the end of a turn in the prompt's style, and what is asked for.

    Args:
        tokenizer: of the model.
        style: name of the prompt style.
        declared: token ids that the model directory declares as ends (`read_stop_token_ids`).
        strings: more strings that end a response. One that is a control token of the model's
            becomes its id, as control tokens do not appear in the text of a response.
    """
    added = {str(token): id for id, token in tokenizer.added_tokens_decoder.items()}
    ids = {*declared, *end_of_turn(tokenizer, style)}
    ids |= {added[string] for string in strings if string in added}
    return Stops(sorted(ids), [string for string in strings if string not in added])


def turn_header(tokenizer: PreTrainedTokenizerBase, style: str) -> list[int]:
    """Find what a model writes by itself before its answer, such as gpt-oss's final channel.

    Returns:
        The tokens between what asks for a turn and the turn's text; none if there is no control
        token among them.

    Raises:
        ValueError: the style does not fit the tokenizer.
    """
    if PROMPT_STYLES[style].template is not None:
        return []
    mark = "the text of a turn"
    question = {"role": "user", "content": "?"}
    answered = render_turns(tokenizer, [question, {"role": "assistant", "content": mark}])
    request = render_turns(tokenizer, [question], opens_turn=True)
    if not answered.startswith(request):
        return []
    header = answered[len(request) :].partition(mark)[0]
    if not any(token in header for token in special_tokens(tokenizer)):
        return []
    ids: list[int] = tokenizer(header, add_special_tokens=False)["input_ids"]
    return ids


def answer_tokens(token_ids: Sequence[int], header: Sequence[int]) -> Sequence[int]:
    """Return what follows the last ``header`` in a response; all of it if there is none."""
    size = len(header)
    if not size:
        return token_ids
    starts = range(len(token_ids) - size, -1, -1)
    ends = (s + size for s in starts if list(token_ids[s : s + size]) == list(header))
    return token_ids[next(ends, 0) :]


def stop_check(
    tokenizer: PreTrainedTokenizerBase, strings: Sequence[str]
) -> Callable[[Sequence[int]], bool] | None:
    """Return a test whether a response holds one of ``strings`` since its last token.

    Only a token that holds the last character of a string can complete it, so nothing is decoded
    for the others. None if there is nothing to look for.
    """
    if not strings:
        return None
    longest = max(map(len, strings))
    last = {string[-1] for string in strings}
    pieces = tokenizer.batch_decode([[token_id] for token_id in range(len(tokenizer))])
    triggers = {token_id for token_id, text in enumerate(pieces) if last & set(text)}

    def reached(token_ids: Sequence[int]) -> bool:
        if token_ids[-1] not in triggers:
            return False
        # A token is at least a byte, and a character at most four.
        tail = str(tokenizer.decode(list(token_ids[-4 * longest - 1 :])))
        return any(string in tail for string in strings)

    return reached


def dropped_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the control tokens that are no part of a response's text.

    Those that begin or end thoughts, channels and turns stay: graders read by them.
    """
    added = tokenizer.added_tokens_decoder.items()
    return frozenset(id for id, token in added if token.special and not is_mark(str(token)))


def cut_at(text: str, strings: Sequence[str]) -> str:
    """Return ``text`` up to the first of ``strings`` in it."""
    ends = [position for string in strings if (position := text.find(string)) >= 0]
    return text[: min(ends)] if ends else text


def request_seed(seed: int, benchmark: str, item: str, sample: int) -> int:
    """Return the seed of one response, 63 bits: it depends on nothing but these four."""
    digest = hashlib.sha256(f"{seed}\0{benchmark}\0{item}\0{sample}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
