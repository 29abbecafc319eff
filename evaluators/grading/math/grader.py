"""Grading mathematics: `extraction` finds the answer, `equality` compares it.

The gold answer may be bare, in dollars, in a box, or a whole solution that ends in a box or in
``#### n``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from deft.evaluators.grading.math.conclusion import Found
from deft.evaluators.grading.math.equality import same_answer
from deft.evaluators.grading.math.expressions import warm_up as warm_up
from deft.evaluators.grading.math.extraction import find_answer
from deft.evaluators.grading.math.nodes import Group, Scalar, Union, Words
from deft.evaluators.grading.math.reading import readings
from deft.evaluators.grading.responses import answer_part, no_answer
from deft.evaluators.grading.verdicts import Grade, Verdict

_OPENING_NUMBER = re.compile(r"\s*(-?\d[\d.,]*)\s*\n\s*\n")
"""A number that stands alone ahead of what was cut off."""
_SAID_IN_WORDS = (Scalar(r"\emptyset"), Scalar(r"\infty"), Scalar(r"\mathbb{R}"))
_LETTER = re.compile(r"(?:\\text\{)?\(?[A-F]\)?\}?")
_DOUBT = re.compile(r"[\s$}*.)\\\]]*(?:\?|(?:wait|hmm|hold on|but maybe)\b)", re.IGNORECASE)
_PERCENT = re.compile(r"percent|per cent|\\?%", re.IGNORECASE)


def grade(record: Mapping[str, Any]) -> Grade:
    """Grade ``response`` against ``gold``.

    A response that was cut off (``finish_reason`` is ``length``) is graded if it had stated its
    answer in full by then; whatever it rambled on about, the answer was given. Otherwise it is
    ``truncated``: the last number of an unfinished thought is no answer.
    """
    finish_reason = record.get("finish_reason")
    gold = gold_answer(str(record["gold"]))
    response = answer_part(record["response"], opens_thought=bool(record.get("opens_thought")))
    final = find_answer(
        response,
        parts=_parts(gold),
        worded=isinstance(readings(gold)[0], Words) or readings(gold)[0] in _SAID_IN_WORDS,
        lettered=_LETTER.fullmatch(gold) is not None,
    )
    cut_off = finish_reason == "length"
    if cut_off and not (final and final.explicit) and (opening := _OPENING_NUMBER.match(response)):
        final = Found(opening[1], explicit=True)
    if final is None or (cut_off and (not final.explicit or _is_doubted(response, final.text))):
        return no_answer(finish_reason)
    correct = same_answer(gold, final.text)
    if not correct and final.text.endswith("!") and "boxed" not in response:
        correct = same_answer(gold, final.text[:-1])  # "The answer is 42!"
    if not correct and _asks_for_percent(record, final):
        correct = same_answer(rf"{gold}\%", final.text)
    return Grade(Verdict.correct if correct else Verdict.wrong, final.text.strip())


def _is_doubted(response: str, answer: str) -> bool:
    """Check whether a response that was cut off was about to change its answer."""
    place = response.rfind(answer)
    return place >= 0 and _DOUBT.match(response, place + len(answer)) is not None


def _asks_for_percent(record: Mapping[str, Any], final: Found) -> bool:
    """Check whether 50 in the gold answer stands for 50 %: by the question, if it is known.

    Else by the response: "the percentage is 50 %", or a conclusion: "he got 50 % of the votes".
    """
    if record.get("question"):
        return _PERCENT.search(str(record["question"])) is not None
    ahead, _, behind = str(record["response"]).rpartition(final.text[:20])
    if re.match(r"\*{0,2} (?:of|on)\b", behind) and not final.explicit:
        return True
    return "percentage" in ahead[-120:].lower()


def gold_answer(gold: str) -> str:
    """Return the answer itself, out of a gold field that may hold a whole solution."""
    if "####" in gold:
        return gold.rpartition("####")[2].strip()
    if "boxed" in gold or "fbox" in gold:
        final = find_answer(gold, parts=1)
        gold = final.text if final else gold
    gold = gold.strip()
    # A letter or a comma that was left standing before an interval or behind the answer.
    gold = re.sub(r"^\$?\s*[a-z](?=\s*(?:\(.*\]|\[.*\))\s*\$?$)", "", gold)
    return gold.rstrip(",; ").strip("$").strip(",; ")


def _parts(gold: str) -> int:
    """Count the answers that a gold answer consists of."""
    match readings(gold)[0]:
        case Group(kind="list" | "set", items=items):
            return len(items)
        case Union(parts=parts):
            return len(parts)
    return 1
