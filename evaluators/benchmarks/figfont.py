"""The figfont benchmark: 5,000 words drawn as Figlet ASCII art (arXiv 2602.11424)."""

from __future__ import annotations

from collections.abc import Iterator

from deft.evaluators.benchmarks.base import Benchmark, Paper, RecordFields, Sampling, read_generated
from deft.evaluators.scores.metrics import accuracy, pass_at_k, score_means
from deft.workers.data.figfont import MAX_TEST_SIZE, TEST_START, figfont_examples


def figfont_records() -> Iterator[RecordFields]:
    """Generate all test items lazily."""
    for example in figfont_examples(TEST_START, MAX_TEST_SIZE):
        yield {"id": example.id, "prompt": example.prompt, "gold": example.response}


FIGFONT = Benchmark(
    name="figfont",
    summary="read a word of 2 to 5 letters drawn as Figlet art; correct is the same word in any "
    "case, and there is Jaro-Winkler similarity",
    source="reasoning-gym figlet_font, items 40,000 to 44,999 (arXiv 2602.11424)",
    records=figfont_records,
    read=read_generated,
    grader="figfont",
    # The paper's limit is 5, which cuts off right answers under tokenizers that spell words
    # out: five letters, EOS and a stray space or line feed fit into 16 anywhere.
    sampling=Sampling(max_tokens=16),
    metrics=(accuracy, pass_at_k, score_means),
    size=MAX_TEST_SIZE,
    primary_metric="jaro_winkler",
    paper=Paper(Sampling(max_tokens=5), {"qwen": "qwen-figfont", "llama": "llama-figfont"}),
)
