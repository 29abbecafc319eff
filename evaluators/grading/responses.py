"""What every grader does to a response before it looks for an answer."""

from __future__ import annotations

import re

from deft.evaluators.grading.verdicts import Grade, Verdict

MAX_TAIL = 60_000
"""Characters from the end of a response in which the answer is looked for."""

_THINK_END = re.compile(r"</(?:think|thinking|thought|reasoning)>", re.IGNORECASE)
_THINK_START = re.compile(r"<(?:think|thinking|thought|reasoning)>", re.IGNORECASE)
_SPECIAL_TOKEN = re.compile(
    r"<\|(?:im_end|im_start|endoftext|eot_id|end_of_text|end|assistant)\|>|</s>|<eos>"
)


def answer_part(response: str) -> str:
    """The part of a response that addresses the reader: what follows the last ``</think>``.

    A thought that never ends is no answer. Of a very long response only the end is kept.
    """
    response = response[-MAX_TAIL:] if len(response) > MAX_TAIL else response
    ends = list(_THINK_END.finditer(response))
    if ends:
        response = response[ends[-1].end() :]
    started = _THINK_START.search(response)
    if started:
        response = response[: started.start()]
    response = _SPECIAL_TOKEN.sub("\n", response.replace("\x00", ""))
    return response.replace("\r\n", "\n").strip()


def no_answer(finish_reason: str | None) -> Grade:
    """The grade of a response in which no final answer was found."""
    return Grade(Verdict.truncated if finish_reason == "length" else Verdict.no_answer)
