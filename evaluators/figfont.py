"""The figfont benchmark: 5,000 words drawn as Figlet ASCII art (arXiv 2602.11424).

Unlike the paper's script, responses and answers are trimmed before all three scores: there, a
response followed by a line feed was no exact match, whatever it said.
"""

from __future__ import annotations

from deft.workers.chat import Example
from deft.workers.figfont import TEST_START, figfont_examples


def load_figfont(size: int) -> list[Example]:
    """Generate the first ``size`` test items."""
    return list(figfont_examples(TEST_START, size))


def score_figfont(response: str, gold: str) -> dict[str, float]:
    """Compare one response with its answer; every score lies between 0 and 1.

    ``jaro_winkler`` is rapidfuzz's, on lower-cased text: prefix weight 0.1, applied only where
    Jaro's similarity exceeds 0.7 (Winkler, 1990); the paper's script applies it everywhere.
    """
    from rapidfuzz.distance import JaroWinkler

    response, gold = response.strip(), gold.strip()
    folded_response, folded_gold = response.lower(), gold.lower()
    return {
        "exact_match": float(response == gold),
        "case_insensitive_match": float(folded_response == folded_gold),
        "jaro_winkler": JaroWinkler.similarity(folded_response, folded_gold),
    }
