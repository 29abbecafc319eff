"""What every grader does to a response before it looks for an answer."""

from __future__ import annotations

import re

from deft.evaluators.grading.verdicts import Grade, Verdict

MAX_TAIL = 60_000
"""Characters from the end of a response in which the answer is looked for."""
MAX_BOX = 2_000
"""Characters that are kept of a box further up, in a response that rambled on after it."""
MAX_REPEATS = 60
"""Repetitions of a few characters that are kept; a model in a loop writes thousands."""
MIN_QUESTION = 50
"""Characters of a question that is a new one, rather than the old one in a few words."""
_THOUGHT = r"think|thinking|thought|reasoning"
_THOUGHT_START = re.compile(rf"<(?:{_THOUGHT})>|\[THINK\]|◁think▷", re.IGNORECASE)
_THOUGHT_END = re.compile(rf"</(?:{_THOUGHT})>|\[/THINK\]|◁/think▷", re.IGNORECASE)
_FINAL_CHANNEL = re.compile(
    r"<\|channel\|>\s*final\b[^<]{0,40}(?:<\|message\|>)?|assistant\s?final(?![a-z])"
)
_OTHER_CHANNEL = re.compile(r"<\|channel\|>|\Aanalysis(?=[^a-z\s])")
_TURN_END = re.compile(
    r"<\|(?:im_end|endoftext|eot_id|eom_id|end_of_text|end_of_turn|end|return)\|>|</s>|<eos>"
    r"|<end_of_turn>|<｜end▁of▁sentence｜>|<\|im_start\|>\s*(?:user|human|system)\b"
    r"|<\|start_header_id\|>\s*user|<\|user\|>|<start_of_turn>\s*user|\[INST\]"
    # The same, where the special tokens were dropped in decoding.
    r"|\n[ \t]*(?:user|assistant|system|human|User|Human)[ \t]*(?:\n|\Z)"
)
_SPECIAL_TOKEN = re.compile(r"<\|[a-z_]{1,30}\|>(?:\s*assistant\b)?|<s>|<bos>|<start_of_turn>model")
_MARK = re.compile(
    rf"</?(?:{_THOUGHT})>|\[/?(?:THINK|INST)\]|◁/?think▷|<(?:start|end)_of_turn>"
    r"|<\|(?:channel|message|start|end|return|call|im_start|im_end|im_sep|start_header_id"
    r"|end_header_id|eot_id|eom_id|end_of_text|endoftext|end_of_turn|user|assistant|system"
    r"|start_of_role|end_of_role)\|>|<｜(?:User|Assistant)｜>"
)
_LOOP = re.compile(rf"(\D{{1,16}}?|\D{{0,4}}\d{{1,4}}\D{{1,4}}?)\1{{{MAX_REPEATS},}}")
_CLOSING = re.compile(
    r"\b(?:I hope (?:this|that)|hope (?:this|that) helps|(?:please )?let me know|feel free|"
    r"(?:please )?don't hesitate|thank you|is there anything|would you like|do you want"
    r"|(?:should|shall) i)\b[^\n]{0,200}$",
    re.IGNORECASE,
)
_NEXT_PROBLEM = re.compile(
    r"\n\W{0,20}(?:(?:problem|question|q|exercise|instruction"
    r"|example)\s{0,3}\d*\s{0,3}[:.](?P<question>[^\n]{0,1000}(?:\n[^\n]{1,1000}){0,8})|(?:human"
    r"|user)\s{0,3}:|(?:now,? )?(?:let's (?:do|try) )?(?:a(?:nother)? )?(?:similar|next|new|another"
    r"|related) (?:one|problem|question|example|exercise)\b)",
    re.IGNORECASE,
)


def is_mark(token: str) -> bool:
    """Check whether a control token begins or ends a thought, a channel or a turn."""
    return _MARK.fullmatch(token) is not None


def without_marks(response: str) -> str:
    """Return a response as it is decoded without any control tokens."""
    return _MARK.sub("", response)


def answer_part(response: str, *, opens_thought: bool = False) -> str:
    """Return the part of a response that addresses the reader, without thoughts and next turns.

    A thought that never ends is no answer. Of a very long response its end is kept,
    and the last box.

    Args:
        response: what was generated.
        opens_thought: whether the prompt ended within a thought that the response goes on with.
    """
    if len(response) > MAX_TAIL:
        end = len(response) - MAX_TAIL
        box = response.rfind(r"\boxed", 0, end)
        further_up = response[box : min(box + MAX_BOX, end)] if box >= 0 else ""
        response = f"{further_up}\n\n{response[end:]}"
    response = _LOOP.sub(lambda loop: loop[1] * MAX_REPEATS, response)
    response = _without_thoughts(response.replace("\x00", ""), opens_thought)
    response = _first_turn(response.replace("\r\n", "\n"))
    return _CLOSING.sub("", response.strip()).strip()


def _without_thoughts(response: str, opens_thought: bool) -> str:
    channel = _last(_FINAL_CHANNEL, response)
    if channel:
        return response[channel.end() :]
    if _OTHER_CHANNEL.match(response):
        return ""
    end = _last(_THOUGHT_END, response)
    if end:
        response = response[end.end() :]
    elif opens_thought:
        return ""
    start = _THOUGHT_START.search(response)
    return response[: start.start()] if start else response


def _first_turn(response: str) -> str:
    """Cut where the turn ends, which models that miss its token write as text and go on."""
    response = _SPECIAL_TOKEN.sub(_role_line, response.lstrip())
    for end in _TURN_END.finditer(response):
        if response[: end.start()].strip():
            return response[: end.start()]
    return _TURN_END.sub("\n", response)


def _role_line(token: re.Match[str]) -> str:
    """Keep the end of a turn, and put nothing for a token that names no role."""
    if _TURN_END.match(token.group()):
        return token.group()
    return "" if token.group().endswith(">") else "\n"


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return next(reversed([*pattern.finditer(text)]), None)


def before_next_problem(response: str) -> str:
    """Cut a response where the model goes on to ask itself a next problem.

    A short question without numbers is the old one once more, ahead of its answer.
    """
    for match in _NEXT_PROBLEM.finditer(response):
        question = match["question"]
        asks = question is None or len(question) >= MIN_QUESTION
        if asks or re.search(r"\d|\n\W{0,4}A[.):]\s", question):
            return response[: match.start()]
    return response


def no_answer(finish_reason: str | None) -> Grade:
    """Return the grade of a response in which no final answer was found."""
    return Grade(Verdict.truncated if finish_reason == "length" else Verdict.no_answer)
