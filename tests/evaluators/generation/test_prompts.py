"""Styles, stops and seeds, resolved from tokenizer and style."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase, Qwen2Tokenizer

from deft.evaluators.benchmarks.catalog import BENCHMARKS
from deft.evaluators.generation.prompts import (
    answer_tokens,
    cut_at,
    describe_format,
    encode_item,
    model_family,
    request_seed,
    resolve_stops,
    resolve_style,
    stop_check,
    turn_header,
)
from deft.evaluators.spec import BenchmarkSpec
from deft.workers.common.example import Example
from deft.workers.modeling.model_files import CHATML_TEMPLATE, train_tokenizer

TURN_END, BOS = "<|im_end|>", "<s>"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    text = "the quick brown fox says stop </s> and User: or STOP here"
    prompt = ({"role": "user", "content": text},)
    return train_tokenizer([Example("0", prompt, "")])


def resolved(tokenizer: Any, benchmark: str, trained_style: str = "chat", **settings: Any) -> str:
    spec = BenchmarkSpec.model_validate({"name": benchmark, **settings})
    return resolve_style(spec, BENCHMARKS[benchmark], tokenizer, trained_style)


def test_style_is_the_trained_one_where_it_suits_the_task(tokenizer: Any) -> None:
    assert resolved(tokenizer, "gsm8k") == "chat"
    assert resolved(tokenizer, "gsm8k", "chat-bare") == "chat-bare"
    assert resolved(tokenizer, "gsm8k", "qwen-boxed") == "qwen-boxed"
    assert resolved(tokenizer, "figfont", "qwen-figfont") == "qwen-figfont"
    assert resolved(tokenizer, "general", "qwen-figfont") == "chat"
    assert resolved(tokenizer, "figfont", "qwen-boxed") == "chat"
    # A style that asks for a box in so many words would ask for it in an arithmetic quiz too.
    assert resolved(tokenizer, "general", "qwen-boxed") == "chat"
    assert resolved(tokenizer, "general", "qwen-boxed", prompt_style="qwen-boxed") == "qwen-boxed"


def test_papers_style_is_told_by_the_tokenizer(tokenizer: Any) -> None:
    """The family is in the control tokens: a path may be called anything."""
    tokenizer.name_or_path = "/models/llama-is-not-what-this-is"
    assert model_family(tokenizer) == "qwen"
    for benchmark, style in {
        "math500": "qwen-boxed",
        "medical": "qwen-medical",
        "figfont": "qwen-figfont",
    }.items():
        assert resolved(tokenizer, benchmark, prompt_style="paper") == style


def test_unknown_family_is_refused(tokenizer: Any) -> None:
    class Plain:
        added_tokens_decoder: dict[int, Any] = {}  # noqa: RUF012
        name_or_path = "somewhere"

    with pytest.raises(ValueError, match="no model family that the paper has prompts for"):
        model_family(Plain())  # type: ignore[arg-type]


def test_what_ends_a_turn_comes_from_tokenizer_and_style(tokenizer: Any) -> None:
    end = tokenizer.convert_tokens_to_ids(TURN_END)
    for style in ("chat", "qwen-boxed"):
        # Whatever the model directory declares, the style's own end of turn is one.
        assert resolve_stops(tokenizer, style, [0]).token_ids == sorted({0, end})
    stops = resolve_stops(tokenizer, "chat", [end], ["</s>", TURN_END])
    # Control tokens never appear in a response's text: they are looked for by id.
    assert (stops.token_ids, stops.strings) == ([end], ["</s>"])


def test_header_that_a_model_writes_before_its_answer_is_no_part_of_it() -> None:
    channel = (
        "{% for m in messages %}<|start|>{{ m.role }}{% if m.role == 'assistant' %}"
        "<|channel|>final{% endif %}<|message|>{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
    )
    control = ["<|start|>", "<|channel|>", "<|message|>", "<|end|>"]
    harmony = Qwen2Tokenizer().train_new_from_iterator(
        ["x"], vocab_size=300, new_special_tokens=control, show_progress=False
    )
    harmony.eos_token, harmony.chat_template = "<|end|>", channel
    header = turn_header(harmony, "chat")
    assert harmony.decode(header) == "<|channel|>final<|message|>"
    text = "<|channel|>x<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>42"
    ids = harmony(text, add_special_tokens=False)["input_ids"]
    assert harmony.decode(answer_tokens(ids, header)) == "42"
    assert answer_tokens(ids[:3], header) == ids[:3]
    assert turn_header(harmony, "chat-bare") == header
    harmony.chat_template = CHATML_TEMPLATE
    assert turn_header(harmony, "chat") == []


def test_stop_strings_are_found_wherever_tokens_are_cut(tokenizer: Any) -> None:
    reached = stop_check(tokenizer, ["User:", "</s>"])
    assert reached is not None
    for text, stops in {
        "the quick User: fox": True,
        "the fox says </s> and": True,
        "User and : or </ s>": False,
        "": False,
    }.items():
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        seen = [ids[: length + 1] for length in range(len(ids))]
        assert any(map(reached, seen)) == stops
        # Once it is over, no token before it was the end.
        first = next((s for s in seen if reached(s)), None)
        if first is not None:
            assert (
                cut_at(tokenizer.decode(first), ["User:", "</s>"])
                == text[: text.find("User:" if "User:" in text else "</s>")]
            )
    assert stop_check(tokenizer, []) is None


def test_text_is_cut_at_the_first_stop_string() -> None:
    assert cut_at("a END b STOP", ["STOP", "END"]) == "a "
    assert cut_at("a b", ["STOP"]) == "a b"


def test_seeds_depend_on_everything_that_tells_a_response_apart() -> None:
    base = request_seed(0, "gsm8k", "7", 1)
    assert base == request_seed(0, "gsm8k", "7", 1)
    others = [
        request_seed(1, "gsm8k", "7", 1),
        request_seed(0, "gsm8", "k7", 1),
        request_seed(0, "gsm8k", "71", 1),
        request_seed(0, "gsm8k", "7", 11),
    ]
    assert len({base, *others}) == 5
    assert all(0 <= seed < 2**63 for seed in (base, *others))


def test_format_says_what_the_model_sees(tokenizer: Any) -> None:
    benchmark = BENCHMARKS["gsm8k"]
    item = benchmark.read({"question": "How many?", "answer": "#### 1"}, 0)
    assert item is not None
    prompt = encode_item(tokenizer, item, benchmark, "chat")
    text = tokenizer.decode(prompt)
    assert f"How many?\n{benchmark.instruction}{TURN_END}" in text
    prompt_format = describe_format(tokenizer, benchmark, "chat", prompt)
    assert (prompt_format.style, prompt_format.num_bos) == ("chat", 0)
    other = describe_format(tokenizer, replace(benchmark, instruction=""), "chat", prompt)
    assert other.hash != prompt_format.hash
