"""Prompt styles: rendered text, token ids, response masks, one BOS, EOS trained."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase, Qwen2Tokenizer

from deft.workers.catalogs.prompt_styles import BOXED_INSTRUCTION, FIGFONT_SYSTEM, PROMPT_STYLES
from deft.workers.common.example import IGNORE_INDEX, Example, Message
from deft.workers.data.chat import (
    count_bos,
    encode_example,
    encode_examples,
    encode_prompt,
    format_hash,
)
from deft.workers.modeling.model_files import CHATML_TEMPLATE

QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LLAMA = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
DEEPSEEK = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")

# Written for these tests in the form of the families' own: Llama's begins with BOS and trims, and
# writes a date; the thinking one drops from earlier turns what comes before </think>.
LLAMA_TEMPLATE = (
    "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{{ bos_token }}{{ 'Today: ' + date_string + '\n' }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}"
    "{{ m.content | trim + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
THINKING_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content if loop.last else m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(
    special: tuple[str, ...], *, eos: str, bos: str | None = None, template: str | None = None
) -> PreTrainedTokenizerBase:
    """Build a real tokenizer without merges: every byte is a token, every marker is one."""
    tokenizer: PreTrainedTokenizerBase = Qwen2Tokenizer().train_new_from_iterator(
        ["x"], vocab_size=257 + len(special), new_special_tokens=list(special), show_progress=False
    )
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.chat_template = bos, eos, template
    return tokenizer


QWEN_TOKENIZER = byte_tokenizer(QWEN, eos="<|endoftext|>", template=CHATML_TEMPLATE)
LLAMA_TOKENIZER = byte_tokenizer(
    LLAMA, eos="<|end_of_text|>", bos="<|begin_of_text|>", template=LLAMA_TEMPLATE
)
DEEPSEEK_TOKENIZER = byte_tokenizer(DEEPSEEK, eos=DEEPSEEK[1], bos=DEEPSEEK[0])


def expected_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of ``text`` worked out from the vocabulary alone, without the tokenizer's pipeline."""
    vocabulary = tokenizer.get_vocab()
    pieces = re.split(f"({'|'.join(map(re.escape, (*QWEN, *LLAMA, *DEEPSEEK)))})", text)
    ids = []
    for piece in pieces:
        if piece in vocabulary:
            ids.append(vocabulary[piece])
        else:
            ids += [vocabulary[BYTES[byte]] for byte in piece.encode()]
    return ids


def byte_alphabet() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) if byte in shown else chr(256 + hidden.index(byte)) for byte in range(256)]


BYTES = byte_alphabet()
BOX = "Please reason step by step, and put your final answer within \\boxed{}."
EXPERT = (
    "You are an expert at decoding Figlet Font ASCII art. When given Figlet Font text, identify "
    "the word it represents and output only that without any explanations or additional text."
)
CHATML_BOXED = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nWhy é?\n"
    + BOX
    + "<|im_end|>\n<|im_start|>assistant\n"
)
HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
USER, SYSTEM, ASSISTANT = (HEADER.format(role) for role in ("user", "system", "assistant"))

RENDERED = {
    "chat": (
        QWEN_TOKENIZER,
        f"<|im_start|>user\nWhy é?\n{BOX}<|im_end|>\n<|im_start|>assistant\n",
    ),
    "chat-bare": (
        QWEN_TOKENIZER,
        "<|im_start|>user\nWhy é?<|im_end|>\n<|im_start|>assistant\n",
    ),
    "qwen-boxed": (QWEN_TOKENIZER, CHATML_BOXED),
    "llama-base-boxed-with-bos": (
        LLAMA_TOKENIZER,
        f"<|begin_of_text|>{SYSTEM}You are a helpful assistant.<|eot_id|>\n"
        f"{USER}Why é?\n{BOX}<|eot_id|>\n{ASSISTANT}",
    ),
    "deepseek-math": (
        DEEPSEEK_TOKENIZER,
        f"<｜begin▁of▁sentence｜>User: Why é?\n{BOX}\n\nAssistant:",
    ),
    "qwen-medical": (QWEN_TOKENIZER, CHATML_BOXED),
    "llama-medical": (
        LLAMA_TOKENIZER,
        f"<|begin_of_text|>{SYSTEM}Cutting Knowledge Date: December 2023\n"
        f"Today Date: 26 Jul 2024\n\n<|eot_id|>{USER}Why é?\n{BOX}<|eot_id|>{ASSISTANT}",
    ),
    "qwen-figfont": (
        QWEN_TOKENIZER,
        f"<|im_start|>system\n{EXPERT}<|im_end|>\n<|im_start|>user\nWhy é?\n<|im_end|>\n"
        "<|im_start|>assistant\n",
    ),
    "llama-figfont": (
        LLAMA_TOKENIZER,
        f"<|begin_of_text|>{SYSTEM}{EXPERT}<|eot_id|>{USER}Why é?<|eot_id|>{ASSISTANT}",
    ),
}


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def instruction_of(style: str) -> str:
    return "" if style.endswith("figfont") else BOXED_INSTRUCTION


@pytest.mark.parametrize("style", PROMPT_STYLES)
def test_each_style_has_its_text_ids_mask_one_bos_and_a_trained_end(style: str) -> None:
    tokenizer, text = RENDERED[style]
    example = Example("1", (user("Why é?"),), "So.", instruction_of(style))
    prompt_ids = encode_prompt(
        tokenizer, example.prompt, style=style, instruction=example.instruction
    )
    assert tokenizer.decode(prompt_ids) == text
    assert prompt_ids == expected_ids(tokenizer, text)

    input_ids, labels = encode_example(tokenizer, example, style=style)
    # What the template writes ends a turn, and EOS where no template does.
    end = tokenizer.eos_token if PROMPT_STYLES[style].template else "<|im_end|>"
    response_ids = expected_ids(tokenizer, f"So.{end}")
    assert input_ids == prompt_ids + response_ids
    assert labels == [IGNORE_INDEX] * len(prompt_ids) + response_ids
    assert count_bos(tokenizer, input_ids) == (0 if tokenizer is QWEN_TOKENIZER else 1)


def test_batches_are_encoded_like_single_examples() -> None:
    examples = [Example(str(n), (user("a" * n),), "b" * n) for n in range(1, 5)]
    for style in ("chat", "qwen-boxed"):
        assert encode_examples(QWEN_TOKENIZER, examples, style=style) == [
            encode_example(QWEN_TOKENIZER, example, style=style) for example in examples
        ]


def test_loss_is_on_every_assistant_turn_and_the_token_that_ends_it_alone() -> None:
    prompt = ({"role": "system", "content": "Be brief."}, user("a?"), assistant("b."), user("c?"))
    input_ids, labels = encode_example(QWEN_TOKENIZER, Example("1", prompt, "d.", "Think."))
    assert QWEN_TOKENIZER.decode(input_ids) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\na?<|im_end|>\n"
        "<|im_start|>assistant\nb.<|im_end|>\n<|im_start|>user\nc?\nThink.<|im_end|>\n"
        "<|im_start|>assistant\nd.<|im_end|>"
    )
    trained = [label for label in labels if label != IGNORE_INDEX]
    assert QWEN_TOKENIZER.decode(trained) == "b.<|im_end|>d.<|im_end|>"
    assert all(
        label in (IGNORE_INDEX, token) for token, label in zip(input_ids, labels, strict=True)
    )


TEXTS = st.text(st.characters(exclude_categories=["Cs"], max_codepoint=0x1FFFF), min_size=1).filter(
    lambda text: text.strip()
)


@given(st.lists(TEXTS, min_size=1, max_size=3), st.lists(TEXTS, min_size=3, max_size=3))
def test_any_conversation_is_encoded_whole_and_trained_on_the_assistants_words_alone(
    questions: list[str], answers: list[str]
) -> None:
    turns = [
        turn
        for question, answer in zip(questions, answers, strict=False)
        for turn in (user(question), assistant(answer))
    ]
    example = Example("1", tuple(turns[:-1]), turns[-1]["content"])
    input_ids, labels = encode_example(QWEN_TOKENIZER, example)
    text = "".join(f"<|im_start|>{t['role']}\n{t['content']}<|im_end|>\n" for t in turns[:-1])
    said = f"{text}<|im_start|>assistant\n{example.response}<|im_end|>"
    learnt = "<|im_end|>".join(turn["content"] for turn in turns[1::2]) + "<|im_end|>"
    trained = [label for label in labels if label != IGNORE_INDEX]
    # The tokenizer brings texts into Unicode's composed form.
    assert QWEN_TOKENIZER.decode(input_ids) == composed(said)
    assert QWEN_TOKENIZER.decode(trained) == composed(learnt)


def composed(text: str) -> str:
    """``text`` in form NFC, piece by piece as it is tokenized."""
    pieces = re.split(r"(<\|.*?\|>\w*\n?)", text)
    return "".join(unicodedata.normalize("NFC", piece) for piece in pieces)


def test_earlier_turns_are_found_where_the_template_trims_them() -> None:
    prompt = (user("a?"), assistant("  b. \n"), user("c?"))
    input_ids, labels = encode_example(LLAMA_TOKENIZER, Example("1", prompt, "d."))
    trained = [label for label in labels if label != IGNORE_INDEX]
    assert LLAMA_TOKENIZER.decode(trained) == "b.<|eot_id|>d.<|eot_id|>"
    assert count_bos(LLAMA_TOKENIZER, input_ids) == 1


def test_turns_without_weight_carry_no_loss() -> None:
    prompt = (user("a?"), {**assistant("b."), "weight": 0}, user("c?"), assistant("d."), user("e?"))
    masked = Example("1", prompt, "f.", final={"weight": 0})
    for final, expected in (({"weight": 0}, "d.<|im_end|>"), ({}, "d.<|im_end|>f.<|im_end|>")):
        input_ids, labels = encode_example(QWEN_TOKENIZER, replace(masked, final=final))
        trained = [label for label in labels if label != IGNORE_INDEX]
        assert QWEN_TOKENIZER.decode(trained) == expected
        assert labels[-1] == input_ids[-1] != IGNORE_INDEX
    with pytest.raises(ValueError, match="no turn of it has weight"):
        encode_example(QWEN_TOKENIZER, replace(masked, prompt=(user("a?"),)))


def test_an_assistant_turn_that_repeats_an_earlier_text_is_not_mistaken() -> None:
    prompt = (user("b."), assistant("b."), user("b."), assistant("b."), user("b."))
    _, labels = encode_example(QWEN_TOKENIZER, Example("1", prompt, "b."))
    starts = [
        i
        for i, label in enumerate(labels)
        if label != IGNORE_INDEX and labels[i - 1] == IGNORE_INDEX
    ]
    text = "<|im_start|>user\nb.<|im_end|>\n<|im_start|>assistant\n"
    opening = len(expected_ids(QWEN_TOKENIZER, text))
    turn = len(expected_ids(QWEN_TOKENIZER, "b.<|im_end|>\n"))
    assert starts == [opening + n * (opening + turn) for n in range(3)]


def test_template_that_drops_thinking_is_exact_without_it_and_refused_with_it() -> None:
    tokenizer = byte_tokenizer(QWEN, eos="<|im_end|>", template=THINKING_TEMPLATE)
    plain = (user("a?"), assistant("b."), user("c?"))
    _, labels = encode_example(tokenizer, Example("1", plain, "<think>x</think>d."))
    trained = [label for label in labels if label != IGNORE_INDEX]
    assert tokenizer.decode(trained) == "b.<|im_end|><think>x</think>d.<|im_end|>"
    thinking = (user("a?"), assistant("<think>x</think>b."), user("c?"))
    with pytest.raises(ValueError, match=r"turn 2: the chat template .* drop thinking"):
        encode_example(tokenizer, Example("1", thinking, "d."))


def test_todays_date_does_not_get_into_prompts() -> None:
    text = LLAMA_TOKENIZER.decode(encode_prompt(LLAMA_TOKENIZER, (user("a?"),)))
    assert text.startswith("<|begin_of_text|>Today: 26 Jul 2024\n")
    template = "Today is {{ strftime_now('%d %B %Y') }}.\n" + CHATML_TEMPLATE
    asking = byte_tokenizer(QWEN, eos=QWEN[2], template=template)
    text = asking.decode(encode_prompt(asking, (user("a?"),)))
    assert text.startswith("Today is 26 July 2024.\n<|im_start|>user")


WITHOUT_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>user\n{{ m.content }}<|im_end|>\n"
    "{% elif m.role == 'assistant' %}<|im_start|>assistant\n{{ m.content }}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("role", ["system", "developer", "tool"])
def test_text_that_the_template_does_not_write_is_refused(role: str) -> None:
    tokenizer = byte_tokenizer(QWEN, eos=QWEN[2], template=WITHOUT_SYSTEM)
    # That the text stands elsewhere too does not hide that it is left out.
    for text in ("Answer in French.", "user", "a"):
        prompt = ({"role": role, "content": text}, user("a?"))
        with pytest.raises(ValueError, match=f"turn 1: .* leaves out or changes the {role} text"):
            encode_example(tokenizer, Example("1", prompt, "b."))
        with pytest.raises(ValueError, match=f"turn 1: .* leaves out or changes the {role} text"):
            encode_prompt(tokenizer, prompt)


def test_eos_follows_where_the_template_ends_no_turn() -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    template += "{% if add_generation_prompt %}assistant: {% endif %}"
    tokenizer = byte_tokenizer(QWEN, eos=QWEN[0], template=template)
    input_ids, labels = encode_example(tokenizer, Example("1", (user("a?"),), "b."))
    assert tokenizer.decode(input_ids) == "user: a?\nassistant: b.<|endoftext|>"
    assert tokenizer.decode([x for x in labels if x != IGNORE_INDEX]) == "b.<|endoftext|>"
    earlier = (user("a?"), assistant("b."), user("c?"))
    with pytest.raises(ValueError, match=r"turn 2: .* writes no control token that ends"):
        encode_example(tokenizer, Example("1", earlier, "d."))


def test_answer_that_is_no_continuation_of_what_asks_for_it_is_refused() -> None:
    thinking = CHATML_TEMPLATE.replace("assistant\\n", "assistant\\n<think>\\n")
    tokenizer = byte_tokenizer(QWEN, eos=QWEN[2], template=thinking)
    with pytest.raises(ValueError, match=r"asks for .*<think>\\n' and writes it .*assistant\\n42"):
        encode_example(tokenizer, Example("1", (user("6*7?"),), "42"))
    example = Example("1", (user("6*7?"),), "<think>\n6*7\n</think>\n\n42")
    _, labels = encode_example(tokenizer, example)
    trained = [label for label in labels if label != IGNORE_INDEX]
    assert tokenizer.decode(trained) == "6*7\n</think>\n\n42<|im_end|>"


def test_named_style_refuses_what_it_has_no_place_for() -> None:
    example = Example("1", (user("a?"),), "b.", final={"tool_calls": [{}]}, tools=({},))
    with pytest.raises(ValueError, match="the example has tool_calls, tools"):
        encode_example(QWEN_TOKENIZER, example, style="qwen-boxed")


@pytest.mark.parametrize(
    ("prompt", "instruction", "expected"),
    [
        (
            (user("a?"), assistant("b."), user("c?")),
            "",
            "for one turn of a user, got a conversation",
        ),
        (({"role": "system", "content": "Be rude."}, user("a?")), "", "the example has 'Be rude.'"),
        ((user("a?"),), "Answer in French.", "the task for 'Answer in French.'"),
    ],
)
def test_named_styles_refuse_what_they_cannot_say(
    prompt: tuple[Message, ...], instruction: str, expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        encode_prompt(QWEN_TOKENIZER, prompt, style="qwen-boxed", instruction=instruction)


def test_named_style_accepts_the_system_text_that_it_spells() -> None:
    prompt = ({"role": "system", "content": FIGFONT_SYSTEM}, user("Why é?"))
    ids = encode_prompt(QWEN_TOKENIZER, prompt, style="qwen-figfont")
    assert QWEN_TOKENIZER.decode(ids) == RENDERED["qwen-figfont"][1]


def test_style_of_another_family_is_refused() -> None:
    with pytest.raises(ValueError, match=r"llama-figfont needs the token <\|begin_of_text\|>"):
        encode_prompt(QWEN_TOKENIZER, (user("a?"),), style="llama-figfont")
    with pytest.raises(ValueError, match="Did you mean qwen-boxed"):
        encode_prompt(QWEN_TOKENIZER, (user("a?"),), style="qwen-boxd")


def test_second_bos_is_refused() -> None:
    doubled = byte_tokenizer(
        LLAMA, eos="<|eot_id|>", bos=LLAMA[0], template="{{ bos_token }}" + LLAMA_TEMPLATE
    )
    with pytest.raises(ValueError, match="starts with 2 BOS tokens"):
        encode_prompt(doubled, (user("a?"),))


def test_tokenizer_without_template_or_eos_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no chat template; choose .* qwen-boxed"):
        encode_prompt(DEEPSEEK_TOKENIZER, (user("a?"),))
    endless = byte_tokenizer(QWEN, eos=QWEN[0], template=CHATML_TEMPLATE)
    endless.eos_token = None
    with pytest.raises(ValueError, match="has no EOS token"):
        encode_example(endless, Example("1", (user("a?"),), "b"))


def test_what_the_template_refuses_is_said() -> None:
    strict = byte_tokenizer(
        QWEN, eos=QWEN[0], template="{{ raise_exception('roles must alternate') }}"
    )
    with pytest.raises(ValueError, match="refuses the conversation: roles must alternate"):
        encode_prompt(strict, (user("a?"),))


def test_hash_names_the_format_as_rendered() -> None:
    def hash_of(style: str, instruction: str = BOXED_INSTRUCTION) -> str:
        return format_hash(QWEN_TOKENIZER, style, instruction)

    assert hash_of("qwen-boxed") == hash_of("qwen-medical") == hash_of("qwen-boxed", "")
    assert hash_of("chat", "") == hash_of("chat-bare", "") == hash_of("chat-bare")
    different = {hash_of("chat"), hash_of("chat-bare"), hash_of("qwen-boxed")}
    different.add(format_hash(QWEN_TOKENIZER, "qwen-figfont"))
    different.add(format_hash(byte_tokenizer(QWEN, eos=QWEN[2], template=CHATML_TEMPLATE), "chat"))
    assert len(different) == 5
