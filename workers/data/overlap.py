"""Which training examples repeat text of a benchmark: word n-grams, as in decontamination.

The rule of GPT-3 (arXiv 2005.14165, appendix C): a shared run of 13 words, letter case and
punctuation aside. Items of fewer words are compared as a whole with the training question.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from deft.workers.common.example import Example
from deft.workers.data.example_store import normalize

NGRAM = 13
MIN_DISTINCT = 9
"""Different words that a run must have to say something; rules of ASCII art and tables of zeros
have fewer."""

Ngram = tuple[str, ...]


@dataclass
class Overlap:
    """Training examples that share text with one benchmark."""

    num_examples: int = 0
    """Training examples that were compared."""
    num_items: int = 0
    """Items of the benchmark."""
    ids: list[str] = field(default_factory=list)
    """The examples that share text with an item, in order."""

    @property
    def share(self) -> float:
        """Part of the training examples that share text with the benchmark."""
        return len(self.ids) / self.num_examples if self.num_examples else 0.0


def find_overlaps(
    examples: Iterable[Example], benchmarks: Mapping[str, Iterable[str]]
) -> dict[str, Overlap]:
    """Compare prompts and responses of ``examples`` with the questions of each benchmark.

    Args:
        examples: training examples; their system texts are left out.
        benchmarks: the questions of each benchmark by its name.

    Returns:
        For each benchmark what it shares with the training examples.
    """
    runs: dict[Ngram, set[str]] = {}
    wholes: dict[str, set[str]] = {}
    overlaps = {name: Overlap() for name in benchmarks}
    for name, questions in benchmarks.items():
        for question in questions:
            overlaps[name].num_items += 1
            wholes.setdefault(normalize(question), set()).add(name)
            for run in _ngrams(split_words(question)):
                runs.setdefault(run, set()).add(name)
    # Most positions are passed over by looking at a run's first and last word alone.
    ends = {(run[0], run[-1]) for run in runs}
    num_examples = 0
    for example in examples:
        num_examples += 1
        turns = [message["content"] for message in example.prompt if message["role"] != "system"]
        hits = set().union(*(wholes.get(normalize(turn), ()) for turn in turns))
        for text in (*turns, example.response):
            words = split_words(text)
            for start, pair in enumerate(zip(words, words[NGRAM - 1 :], strict=False)):
                if pair in ends:
                    hits |= runs.get(tuple(words[start : start + NGRAM]), set())
        for name in hits:
            overlaps[name].ids.append(example.id)
    for overlap in overlaps.values():
        overlap.num_examples = num_examples
    return overlaps


def split_words(text: str) -> list[str]:
    """The words and numbers in ``text``, lower-cased, without punctuation."""
    return re.findall(r"[^\W_]+", normalize(text))


def _ngrams(words: list[str]) -> Iterable[Ngram]:
    for start in range(len(words) - NGRAM + 1):
        run = tuple(words[start : start + NGRAM])
        if len(Counter(run)) >= MIN_DISTINCT:
            yield run
