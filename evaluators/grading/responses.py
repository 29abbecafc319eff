"""What every grader does to a response before it looks for an answer."""

from __future__ import annotations

import re

from deft.evaluators.grading.verdicts import Grade, Verdict

MAX_TAIL = 60_000
"""Characters from the end of a response in which the answer is looked for."""
MAX_BOX = 2_000
"""Characters that are kept of a box further up, in a response that rambled on after it."""
_THINK_END = re.compile(r"</(?:think|thinking|thought|reasoning)>", re.IGNORECASE)
_THINK_START = re.compile(r"<(?:think|thinking|thought|reasoning)>", re.IGNORECASE)
_SPECIAL_TOKEN = re.compile(
    r"<\|(?:im_end|im_start|endoftext|eot_id|end_of_text|end|assistant)\|>|</s>|<eos>"
)
_CLOSING = re.compile(
    r"\b(?:I hope (?:this|that)|hope (?:this|that) helps|(?:please )?let me know|feel free|"
    r"(?:please )?don't hesitate|thank you|is there anything)\b[^\n]{0,200}$",
    re.IGNORECASE,
)


def answer_part(response: str) -> str:
    """Return the part of a response that addresses the reader: what follows ``</think>``.

    A thought that never ends is no answer. Of a very long response its end is kept,
    and the last box.
    """
    if len(response) > MAX_TAIL:
        end = len(response) - MAX_TAIL
        box = response.rfind(r"\boxed", 0, end)
        further_up = response[box : min(box + MAX_BOX, end)] if box >= 0 else ""
        response = f"{further_up}\n\n{response[end:]}"
    ends = list(_THINK_END.finditer(response))
    if ends:
        response = response[ends[-1].end() :]
    started = _THINK_START.search(response)
    if started:
        response = response[: started.start()]
    response = _SPECIAL_TOKEN.sub("\n", response.replace("\x00", ""))
    return _CLOSING.sub("", response.replace("\r\n", "\n").strip()).strip()


_NEXT_PROBLEM = re.compile(
    r"\n\W*(?:problem|question|q|human|user|exercise|instruction|example)\s*\d*\s*[:.]",
    re.IGNORECASE,
)


def before_next_problem(response: str) -> str:
    """Cut a response where the model goes on to ask itself a next problem."""
    match = _NEXT_PROBLEM.search(response)
    return response[: match.start()] if match else response


def no_answer(finish_reason: str | None) -> Grade:
    """Return the grade of a response in which no final answer was found."""
    return Grade(Verdict.truncated if finish_reason == "length" else Verdict.no_answer)
