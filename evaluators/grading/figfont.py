"""Grading figfont: one word, compared with one word.

Unlike the paper's script, responses and answers are trimmed before all scores: there, a response
followed by a line feed was no exact match, whatever it said.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from deft.evaluators.grading.final_answer import announced
from deft.evaluators.grading.responses import answer_part, without_marks
from deft.evaluators.grading.verdicts import Grade, Verdict

_STATED = re.compile(
    r"\banswer(?:\s+is)?\s*[: ]\s*(\S[^\n]{0,200}?)\.?\s*$", re.IGNORECASE | re.MULTILINE
)


def grade(record: Mapping[str, Any]) -> Grade:
    """Grade ``response`` against ``gold``: correct is the same word in whatever case.

    The word is what the response announces as its answer, or else all of it; thoughts and next
    turns are left out. An empty response is ``no_answer`` (``truncated`` if it was cut off). A
    wrong word that was cut off is ``truncated`` too if it is a prefix of the answer.
    """
    response = answer_part(record["response"], opens_thought=bool(record.get("opens_thought")))
    word = answered_word(response)
    gold = unicodedata.normalize("NFC", record["gold"].strip())
    scores = score_figfont(word, gold)
    scores["jaro_winkler_paper"] = jaro_winkler_paper(
        without_marks(record["response"]).strip().lower(), record["gold"].strip().lower()
    )
    cut_off = record.get("finish_reason") == "length"
    if scores["case_insensitive_match"] == 1 and word:
        verdict = Verdict.correct
    elif cut_off and gold.lower().startswith(word.lower()):
        verdict = Verdict.truncated
    elif not word:
        verdict = Verdict.no_answer
    else:
        verdict = Verdict.wrong
    return Grade(verdict, word or None, scores)


def answered_word(response: str) -> str:
    """Return what a response announces as its answer, in a tag or a statement, or all of it."""
    text = unicodedata.normalize("NFC", response.strip())
    if "\n" in text or "<" in text or ":" in text:
        statements = _STATED.findall(announced(text))
        if statements:
            return str(statements[-1]).strip(" *_`\"'")
    return text


def score_figfont(response: str, gold: str) -> dict[str, float]:
    """Compare one response with its answer; every score lies between 0 and 1.

    ``jaro_winkler`` is rapidfuzz's, on lower-cased text: prefix weight 0.1, applied only where
    Jaro's similarity exceeds 0.7 (Winkler, 1990). ``jaro_winkler_paper`` is that of the paper's
    script (arXiv 2602.11424), which applies the prefix weight at any similarity and does not
    round half transpositions down.
    """
    from rapidfuzz.distance import JaroWinkler

    response, gold = response.strip(), gold.strip()
    folded_response, folded_gold = response.lower(), gold.lower()
    return {
        "exact_match": float(response == gold),
        "case_insensitive_match": float(folded_response == folded_gold),
        "jaro_winkler": JaroWinkler.similarity(folded_response, folded_gold),
        "jaro_winkler_paper": jaro_winkler_paper(folded_response, folded_gold),
    }


def jaro_winkler_paper(left: str, right: str) -> float:
    """Jaro-Winkler similarity as the paper's script computes it; 1 for two empty strings.

    Characters match if they are equal and at most max(len) // 2 − 1 apart. With m matches, t half
    transpositions (matches out of order) and a common prefix of at most 4 characters, Jaro is
    (m/|left| + m/|right| + (m − t/2)/m) / 3, and the result Jaro + prefix · 0.1 · (1 − Jaro).
    """
    if left == right:
        return 1.0
    window = max(max(len(left), len(right)) // 2 - 1, 0)
    matched = [False] * len(right)
    matched_left = []
    for i, character in enumerate(left):
        for j in range(max(0, i - window), min(len(right), i + window + 1)):
            if not matched[j] and right[j] == character:
                matched[j] = True
                matched_left.append(character)
                break
    matches = len(matched_left)
    if matches == 0:
        return 0.0
    matched_right = [character for character, hit in zip(right, matched, strict=True) if hit]
    half_transpositions = sum(a != b for a, b in zip(matched_left, matched_right, strict=True))
    in_order = (matches - half_transpositions / 2) / matches
    jaro = (matches / len(left) + matches / len(right) + in_order) / 3
    prefix = 0
    for a, b in zip(left[:4], right[:4], strict=False):
        if a != b:
            break
        prefix += 1
    return jaro + prefix * 0.1 * (1 - jaro)
