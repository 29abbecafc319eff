"""The benchmarks there are. Importing this module loads no model, data or engine library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from deft.evaluators.figfont import load_figfont
from deft.evaluators.grading.figfont import score_figfont
from deft.workers.chat import Example
from deft.workers.figfont import MAX_TEST_SIZE


@dataclass(frozen=True)
class Benchmark:
    """Items to answer and the rule that scores an answer."""

    name: str
    summary: str
    """One line on what is asked and how it is scored."""
    source: str
    """Where the items come from."""
    size: int
    """Number of items."""
    max_tokens: int
    """Default length limit of a response, in tokens."""
    load: Callable[[int], list[Example]]
    """The first n items; an item's `response` is the answer to grade against."""
    score: Callable[[str, str], dict[str, float]]
    """Scores of (response, answer) by name; each is averaged over the items."""


BENCHMARKS = {
    "figfont": Benchmark(
        name="figfont",
        summary="read a word of 2 to 5 letters drawn as Figlet art; "
        "exact match, case-insensitive match, Jaro-Winkler similarity",
        source="reasoning-gym figlet_font, items 40,000 to 44,999 (arXiv 2602.11424)",
        size=MAX_TEST_SIZE,
        # The paper's limit is 5, which cuts off right answers under tokenizers that spell words
        # out: five letters, EOS and a stray space or line feed fit into 16 anywhere.
        max_tokens=16,
        load=load_figfont,
        score=score_figfont,
    ),
}
