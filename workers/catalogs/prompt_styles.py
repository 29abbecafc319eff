"""Prompt styles that a run file may name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


BOXED_INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."


HELPFUL = "You are a helpful assistant."


FIGFONT_SYSTEM = (
    "You are an expert at decoding Figlet Font ASCII art. When given Figlet Font text, identify "
    "the word it represents and output only that without any explanations or additional text."
)


LLAMA_DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"


SOURCE = "arXiv 2602.11424"


@dataclass(frozen=True)
class PromptStyle:
    """How a prompt becomes text; a row of `deft list prompts`."""

    summary: str
    source: str
    template: str | None = None
    """The whole prompt of a single turn, with ``{input}`` for the user's text; None stands for the
    tokenizer's own chat template."""
    system: str = ""
    """The system text that ``template`` spells out."""
    instruction: str = ""
    """The instruction that ``template`` spells out."""
    appends_instruction: bool = False
    """Whether an example's instruction follows the last user turn's text."""


PROMPT_STYLES: dict[str, PromptStyle] = {
    "chat": PromptStyle(
        summary="the tokenizer's own chat template; the task's instruction ends the user's turn",
        source="this platform's default",
        appends_instruction=True,
    ),
    "chat-bare": PromptStyle(
        summary="the tokenizer's own chat template; the task's instruction is left out",
        source=f"how {SOURCE} trains Qwen models on math",
    ),
    "qwen-boxed": PromptStyle(
        summary="ChatML, helpful assistant, asks for the answer in a box",
        source=f"math prompt of Qwen models in {SOURCE}",
        template=f"<|im_start|>system\n{HELPFUL}<|im_end|>\n<|im_start|>user\n{{input}}\n"
        f"{BOXED_INSTRUCTION}<|im_end|>\n<|im_start|>assistant\n",
        system=HELPFUL,
        instruction=BOXED_INSTRUCTION,
    ),
    "llama-base-boxed-with-bos": PromptStyle(
        summary="Llama 3 headers, a line feed after each <|eot_id|>, asks for a boxed answer",
        source=f"math prompt of Llama 3.1 in {SOURCE}, with one BOS (evaluated there with two)",
        template="<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        f"{HELPFUL}<|eot_id|>\n<|start_header_id|>user<|end_header_id|>\n\n{{input}}\n"
        f"{BOXED_INSTRUCTION}<|eot_id|>\n<|start_header_id|>assistant<|end_header_id|>\n\n",
        system=HELPFUL,
        instruction=BOXED_INSTRUCTION,
    ),
    "deepseek-math": PromptStyle(
        summary="User: … Assistant: with the instruction to box the answer",
        source=f"math prompt of DeepSeekMath in {SOURCE}, with one BOS (evaluated there with two)",
        template=f"<｜begin▁of▁sentence｜>User: {{input}}\n{BOXED_INSTRUCTION}\n\nAssistant:",
        instruction=BOXED_INSTRUCTION,
    ),
    "qwen-medical": PromptStyle(
        summary="ChatML, helpful assistant, asks for the answer in a box",
        source=f"medical prompt of Qwen models in {SOURCE}",
        template=f"<|im_start|>system\n{HELPFUL}<|im_end|>\n<|im_start|>user\n{{input}}\n"
        f"{BOXED_INSTRUCTION}<|im_end|>\n<|im_start|>assistant\n",
        system=HELPFUL,
        instruction=BOXED_INSTRUCTION,
    ),
    "llama-medical": PromptStyle(
        summary="Llama 3 headers with two fixed dates, asks for a boxed answer",
        source=f"medical prompt of Llama 3 in {SOURCE}, with one BOS (there three in evaluation, "
        "and in training this prompt inside llama-base-boxed-with-bos)",
        template="<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        f"{LLAMA_DATES}<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n{{input}}\n"
        f"{BOXED_INSTRUCTION}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        system=LLAMA_DATES,
        instruction=BOXED_INSTRUCTION,
    ),
    "qwen-figfont": PromptStyle(
        summary="ChatML, expert at Figlet art, a line feed before the user's <|im_end|>",
        source=f"figfont prompt of Qwen models in {SOURCE}",
        template=f"<|im_start|>system\n{FIGFONT_SYSTEM}<|im_end|>\n<|im_start|>user\n{{input}}\n"
        "<|im_end|>\n<|im_start|>assistant\n",
        system=FIGFONT_SYSTEM,
    ),
    "llama-figfont": PromptStyle(
        summary="Llama 3 headers, expert at Figlet art",
        source=f"figfont prompt of Llama 3 in {SOURCE}, with one BOS (there three in evaluation, "
        "and in training this prompt inside llama-base-boxed-with-bos)",
        template="<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        f"{FIGFONT_SYSTEM}<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n{{input}}"
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        system=FIGFONT_SYSTEM,
    ),
}
"""Every way to render a prompt. Named styles are strings for one turn, exactly as in the paper but
for the number of BOS tokens: there is one where the model has one, and none in Qwen's."""
