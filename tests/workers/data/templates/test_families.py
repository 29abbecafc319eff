"""Real templates and tokenizers of the large families: ids are the tokenizer's own, or refused.

The templates are those that the package trl collects from the hub, and the "training" variants that
it adds, which mark what is generated.
"""

from __future__ import annotations

import json
import re
import shutil
from itertools import groupby
from pathlib import Path
from typing import Any

import mistral_common
import pytest
import trl
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen2Tokenizer

from deft.workers.common.example import IGNORE_INDEX, REASONING_KEYS, Example, Message
from deft.workers.data.chat import encode_example, encode_prompt
from deft.workers.data.templates.rendering import template_variables

FOLDER = Path(trl.__file__).parent / "chat_templates"
TEMPLATES = sorted(file.stem for file in FOLDER.glob("*.jinja"))
CONTROL = re.compile(r"<\|[^<>\n'\"{}]*?\|?>|<[^<>\n'\"{}]*?\|>|<｜[^<>\n]*?｜>")
"""What the templates write as control tokens: ``<|im_end|>``, ``<turn|>`` and the like."""
MORE_CONTROL = (
    *("<start_of_turn>", "<end_of_turn>", "<end_of_utterance>", "[INST]", "[/INST]", "</s>"),
    *("[gMASK]", "<sop>", "<s>", "<eos>"),
)

FAMILIES = {
    "cohere": "Command R, Aya",
    "cohere2": "Command R7B, Tiny Aya",
    "deepseek": "DeepSeek V3, R1 and its distillations",
    "diffusion": "DiffusionGemma",
    "gemma": "Gemma 1 and 2",
    "gemma3": "Gemma 3",
    "gemma4": "Gemma 4",
    "glm4moe": "GLM 4.5",
    "gptoss": "gpt-oss",
    "idefics3": "Idefics 3",
    "lfm2": "LFM 2 and 2.5",
    "llama3": "Llama 3, 3.1 and 3.2",
    "llava": "LLaVA-NeXT",
    "muse": "Muse Glimmer",
    "nemotron": "Nemotron 3",
    "phi3": "Phi 3 and 3.5",
    "qwen2": "Qwen 2.5",
    "qwen3": "Qwen 3 to 3.8",
    "smolvlm": "SmolVLM",
}
"""The families, by the first word of their templates' names."""

REFUSED = {
    *("deepseek_r1_distill", "deepseek_r1_distill_training", "deepseekv3", "deepseekv3_training"),
    *("gemma", "gemma_training"),
    *("nemotron_3_5_lightning", "nemotron_3_5_lightning_training", "nemotron_3_nano"),
    *("nemotron_3_nano_training", "nemotron_3_super", "nemotron_3_super_training"),
    *("nemotron_3_ultra", "nemotron_3_ultra_training"),
    *("qwen3_5_nothink", "qwen3_5_think", "qwen3_6"),
}
"""Templates that open the model's turn with thinking which they do not write for an answer without
(all of `THREE_TURNS`, or the earlier ones), and Gemma's, which knows no system turn."""

WANT_PARTS = ("idefics3", "llava_next", "smolvlm")
"""Templates that take a content as a list of parts only."""


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str, **more: Any) -> Message:
    return {"role": "assistant", "content": text, **more}


THREE_TURNS = [
    {"role": "system", "content": "Be brief."},
    *(user("a?"), assistant("It is 6.\n\nSure."), user("b: é 漢字 🤷?"), assistant("7 ")),
    *(user("Why?"), assistant("(Because.)")),
]


def byte_tokenizer(template: str) -> PreTrainedTokenizerBase:
    """Build a byte-level tokenizer with the control tokens that a template writes."""
    control = {*CONTROL.findall(template), *(mark for mark in MORE_CONTROL if mark in template)}
    tokenizer: PreTrainedTokenizerBase = Qwen2Tokenizer().train_new_from_iterator(
        ["Be brief. It is 6.\n\nSure. assistant\n user\n model\n"],
        vocab_size=600,
        new_special_tokens=["<|bos|>", "<|eos|>", *sorted(control)],
        show_progress=False,
    )
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.chat_template = (
        "<|bos|>",
        "<|eos|>",
        template,
    )
    return tokenizer


def own_ids(
    tokenizer: PreTrainedTokenizerBase, turns: list[Message], *, prompt: bool = False
) -> list[int]:
    ids = tokenizer.apply_chat_template(
        turns, add_generation_prompt=prompt, return_dict=False, **template_variables()
    )
    assert isinstance(ids, list)
    return ids


def in_parts(turns: list[Message]) -> list[Message]:
    return [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]


def example(turns: list[Message], **more: Any) -> Example:
    return Example("1", tuple(turns[:-1]), turns[-1]["content"], **more)


def trained(tokenizer: PreTrainedTokenizerBase, turns: list[Message], **more: Any) -> list[str]:
    """Return the texts with loss, each a run of tokens."""
    ids, labels = encode_example(tokenizer, example(turns, **more))
    runs = groupby(zip(ids, labels, strict=True), key=lambda pair: pair[1] != IGNORE_INDEX)
    return [tokenizer.decode([token for token, _ in run]) for has_loss, run in runs if has_loss]


def refusal(tokenizer: PreTrainedTokenizerBase, turns: list[Message], own: list[Message]) -> str:
    """Hold an example's ids to the tokenizer's own of ``own``, or return why it is refused."""
    try:
        ids, labels = encode_example(tokenizer, example(turns))
    except ValueError as error:
        return str(error)
    whole = own_ids(tokenizer, own)
    if whole[: len(ids)] != ids:  # nothing in the template ends the last turn
        assert ids == [*whole[: len(ids) - 1], tokenizer.eos_token_id]
    assert all(label in (IGNORE_INDEX, token) for token, label in zip(ids, labels, strict=True))
    assert labels[-1] == ids[-1]
    return ""


def test_every_template_is_of_a_family_that_is_named_here() -> None:
    unnamed = [name for name in TEMPLATES if not name.startswith(tuple(FAMILIES))]
    assert not unnamed
    assert len(TEMPLATES) >= 45


@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_are_the_tokenizers_own_or_refused(name: str) -> None:
    tokenizer = byte_tokenizer((FOLDER / f"{name}.jinja").read_text())
    form = in_parts if name.removesuffix("_training") in WANT_PARTS else list
    refused = refusal(tokenizer, THREE_TURNS, form(THREE_TURNS))
    assert bool(refused) == (name in REFUSED), refused
    for turns in (THREE_TURNS[1:], THREE_TURNS[1:3]):
        refusal(tokenizer, turns, form(turns))
    for turns in (THREE_TURNS[1:4], THREE_TURNS[1:2]):
        ids = encode_prompt(tokenizer, tuple(turns))
        assert ids == own_ids(tokenizer, form(turns), prompt=True)


@pytest.mark.parametrize(
    "name", [name for name in TEMPLATES if name.endswith("_training") and name not in REFUSED]
)
def test_mask_is_the_templates_own_where_it_marks_what_is_generated(name: str) -> None:
    tokenizer = byte_tokenizer((FOLDER / f"{name}.jinja").read_text())
    turns = in_parts(THREE_TURNS) if name.removesuffix("_training") in WANT_PARTS else THREE_TURNS
    own = tokenizer.apply_chat_template(
        turns, return_assistant_tokens_mask=True, return_dict=True, **template_variables()
    )
    _, labels = encode_example(tokenizer, example(THREE_TURNS))
    mask = [int(label != IGNORE_INDEX) for label in labels]
    assert mask == own["assistant_masks"][: len(mask)]
    assert not any(own["assistant_masks"][len(mask) :])


@pytest.mark.parametrize(
    "name", ["phi3_training", "diffusion_gemma_training", "gptoss_training", "qwen2_5_training"]
)
def test_marked_parts_of_a_turn_without_weight_are_masked(name: str) -> None:
    tokenizer = byte_tokenizer((FOLDER / f"{name}.jinja").read_text())
    all_runs = trained(tokenizer, THREE_TURNS)
    masked = [*THREE_TURNS[:4], {**THREE_TURNS[4], "weight": 0}, *THREE_TURNS[5:]]
    assert trained(tokenizer, masked) == [run for run in all_runs if "7" not in run]


PLAIN = [user("a?"), assistant("R.")]
TWICE = [user("a?"), assistant("R."), user("b?"), assistant("S.")]
THINKING = [user("a?"), assistant("<think>\nTo be\n</think>\n\nR.")]


@pytest.mark.parametrize(
    ("name", "turns", "expected"),
    [
        ("cohere2", TWICE, [f"{t}<|END_RESPONSE|><|END_OF_TURN_TOKEN|>" for t in ("R.", "S.")]),
        ("gemma", TWICE, ["R.<end_of_turn>", "S.<end_of_turn>"]),
        ("gemma4", TWICE, ["R.<turn|>", "S.<turn|>"]),
        ("phi3", TWICE, ["R.<|end|>", "S.<|end|>\n<|eos|>"]),
        ("llama3_1", TWICE, ["R.<|eot_id|>", "S.<|eot_id|>"]),
        (
            "gptoss",
            TWICE,
            ["<|channel|>final<|message|>R.<|end|>", "<|channel|>final<|message|>S.<|return|>"],
        ),
        (
            "glm4moe",
            TWICE,
            ["\n<think></think>\nR.<|user|>", "\n<think></think>\nS.<|eos|>"],
        ),
        ("qwen3", TWICE, ["R.<|im_end|>", "<think>\n\n</think>\n\nS.<|im_end|>"]),
        ("qwen3", THINKING, ["<think>\nTo be\n</think>\n\nR.<|im_end|>"]),
        ("qwen3_5_think", THINKING, ["To be\n</think>\n\nR.<|im_end|>"]),
        ("qwen3_5_think", PLAIN, ["\n</think>\n\nR.<|im_end|>"]),
        ("nemotron_3_nano", THINKING, ["To be\n</think>\n\nR.<|im_end|>"]),
        ("llava_next", TWICE, [" R.</s>", " S.</s>"]),
    ],
)
def test_trained_is_what_the_template_writes_from_its_request_to_its_end_of_turn(
    name: str, turns: list[Message], expected: list[str]
) -> None:
    tokenizer = byte_tokenizer((FOLDER / f"{name}.jinja").read_text())
    assert trained(tokenizer, turns) == expected


@pytest.mark.parametrize(
    ("name", "turns", "expected"),
    [
        (
            "nemotron_3_nano",
            PLAIN,
            r"turn 2: .* asks for this assistant turn by '.*<think>\\n' and writes it .* as "
            r"'.*<think></think>R\.",
        ),
        ("deepseek_r1_distill", THINKING, r"turn 2: .* leaves out or changes the assistant text"),
        (
            "glm4moe",
            [user("It"), assistant("It<think>was</think>so")],
            r"turn 2: .* leaves out or changes the assistant text",
        ),
        ("gemma", THREE_TURNS, "System role not supported"),
        ("cohere", [user("a?"), user("b?"), assistant("R.")], "roles must alternate"),
    ],
)
def test_refusals_say_what_differs(name: str, turns: list[Message], expected: str) -> None:
    tokenizer = byte_tokenizer((FOLDER / f"{name}.jinja").read_text())
    with pytest.raises(ValueError, match=expected):
        encode_example(tokenizer, example(turns))


TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Look it up.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Where."}},
            "required": ["city"],
        },
    },
}
CALL = {
    "type": "function",
    "id": "abcdefghi",
    "function": {"name": "get_weather", "arguments": {"city": "Oslo"}},
}
ANSWER = {"role": "tool", "name": "get_weather", "tool_call_id": "abcdefghi", "content": "3 °C"}
CALLS = {
    "gemma4": '<|tool_call>call:get_weather{city:<|"|>Oslo<|"|>}<tool_call|><|tool_response>',
    "glm4moe": "\n<think></think>\n<tool_call>get_weather\n<arg_key>city</arg_key>\n"
    "<arg_value>Oslo</arg_value>\n</tool_call><|observation|>",
    "gptoss": " to=functions.get_weather<|channel|>commentary json<|message|>"
    '{"city": "Oslo"}<|call|>',
    "lfm2_v2": "<|tool_call_start|>[get_weather(city='Oslo')]<|tool_call_end|><|im_end|>",
    "llama3_1": '{"name": "get_weather", "parameters": {"city": "Oslo"}}<|eot_id|>',
    "qwen2_5": '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n'
    "</tool_call><|im_end|>",
    "qwen3": '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n'
    "</tool_call><|im_end|>",
}
"""What is trained of a turn that calls a tool; other templates leave calls out, and are refused."""


@pytest.mark.parametrize("name", CALLS)
def test_tool_calls_are_trained_as_the_template_writes_them(name: str) -> None:
    tokenizer = byte_tokenizer((FOLDER / f"{name}.jinja").read_text())
    turns = [user("Weather?"), assistant("", tool_calls=[CALL]), ANSWER, assistant("Cold.")]
    called, answered = trained(tokenizer, turns, tools=(TOOL,))
    assert called == CALLS[name]
    assert "Cold." in answered
    ids, _ = encode_example(tokenizer, example(turns, tools=(TOOL,)))
    assert "Look it up." in tokenizer.decode(ids)
    last = Example("1", (turns[0],), "", final={"tool_calls": [CALL]}, tools=(TOOL,))
    ids, labels = encode_example(tokenizer, last)
    assert "Oslo" in tokenizer.decode([label for label in labels if label != IGNORE_INDEX])


@pytest.mark.parametrize("name", ["cohere", "lfm2", "phi3", "qwen2_5_vl", "gemma3"])
def test_templates_that_leave_tool_calls_or_reasoning_out_are_refused(name: str) -> None:
    tokenizer = byte_tokenizer((FOLDER / f"{name}.jinja").read_text())
    calling = Example("1", (user("a?"),), "Look.", final={"tool_calls": [CALL]})
    with pytest.raises(ValueError, match=r"turn 2: .* leaves out or changes a tool call"):
        encode_example(tokenizer, calling)
    reasoning = Example("1", (user("a?"),), "R.", final=dict.fromkeys(REASONING_KEYS, "T"))
    with pytest.raises(ValueError, match=r"turn 2: .* leaves out or changes the reasoning"):
        encode_example(tokenizer, reasoning)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("qwen3", "<think>\nT\n</think>\n\nR.<|im_end|>"),
        ("lfm2_2_5", "<think>T</think>R.<|im_end|>\n"),
        (
            "gptoss",
            "<|channel|>analysis<|message|>T<|end|><|start|>assistant"
            "<|channel|>final<|message|>R.<|return|>",
        ),
    ],
)
def test_reasoning_is_given_under_the_name_that_the_template_knows(
    name: str, expected: str
) -> None:
    tokenizer = byte_tokenizer((FOLDER / f"{name}.jinja").read_text())
    final = dict.fromkeys(REASONING_KEYS, "T")
    assert trained(tokenizer, PLAIN, final=final) == [expected]


SENTENCEPIECE = {
    "Llama 2": "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + "
    "m.content + ' [/INST]' }}{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}"
    "{% endfor %}",
    "Mistral": "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + "
    "m.content + '[/INST]' }}{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}",
    "Zephyr": "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
    "Vicuna": "{% for m in messages %}{% if m.role == 'user' %}{{ 'USER: ' + m.content + ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' + m.content + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}",
}
"""Templates in the form of families whose tokenizers are sentencepiece's."""


@pytest.fixture(
    scope="module", params=["tokenizer.model.v1", "mistral_instruct_tokenizer_240323.model.v3"]
)
def sentencepiece(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> PreTrainedTokenizerBase:
    """Mistral's real tokenizers, 32,000 pieces of sentencepiece with a space before a text."""
    folder = tmp_path_factory.mktemp("mistral")
    source = Path(mistral_common.__file__).parent / "data" / request.param
    shutil.copy(source, folder / "tokenizer.model")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    config = {"tokenizer_class": "LlamaTokenizer", "legacy": "v1" in request.param}
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | special))
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return tokenizer


@pytest.mark.parametrize("family", SENTENCEPIECE)
def test_sentencepiece_texts_are_tokenized_as_a_whole(
    sentencepiece: PreTrainedTokenizerBase, family: str
) -> None:
    sentencepiece.chat_template = SENTENCEPIECE[family]
    turns = THREE_TURNS[1:]
    assert refusal(sentencepiece, turns, turns) == ""
    ids = encode_prompt(sentencepiece, tuple(turns[:3]))
    assert ids == own_ids(sentencepiece, turns[:3], prompt=True)
    closed = [
        text.removesuffix(sentencepiece.eos_token).strip() for text in trained(sentencepiece, turns)
    ]
    assert closed == [turn["content"].strip() for turn in turns[1::2]]
