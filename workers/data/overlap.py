"""Which training examples repeat text of a benchmark: word n-grams, as in decontamination.

The rule of GPT-3 (arXiv 2005.14165, appendix C): a shared run of 13 words, letter case and
punctuation aside. Items of fewer words are compared as a whole with the training question.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from deft.workers.common.example import Example
from deft.workers.data.example_store import normalize

NGRAM = 13
MIN_DISTINCT = 9
"""Different words that a run must have to say something; rules of ASCII art and tables of zeros
have fewer."""

MAX_IDS = 1000
"""Overlapping examples that are named; all of them are counted."""

Ngram = tuple[str, ...]


@dataclass
class Overlap:
    """Training examples that share text with one benchmark."""

    num_items: int
    """Items of the benchmark."""
    num_examples: int = 0
    """Training examples that were compared."""
    num_overlapping: int = 0
    """Those that share text with an item."""
    ids: list[str] = field(default_factory=list)
    """Names of the first `MAX_IDS` of them, in order."""

    @property
    def share(self) -> float:
        """Part of the training examples that share text with the benchmark."""
        return self.num_overlapping / self.num_examples if self.num_examples else 0.0


@dataclass
class QuestionIndex:
    """Which benchmarks ask something: by runs of words, and by whole questions."""

    num_items: Counter[str] = field(default_factory=Counter)
    """Items by benchmark."""
    runs: dict[Ngram, set[str]] = field(default_factory=dict)
    """Benchmarks by each run of `NGRAM` words of their questions."""
    wholes: dict[str, set[str]] = field(default_factory=dict)
    """Benchmarks by each normalized question."""
    ends: set[tuple[str, str]] = field(default_factory=set)
    """First and last word of each run: most positions of a text are passed over by them alone."""

    def add(self, benchmark: str, question: str) -> None:
        """Add a question of ``benchmark``."""
        self.num_items[benchmark] += 1
        self.wholes.setdefault(normalize(question), set()).add(benchmark)
        for run in _ngrams(split_words(question)):
            self.runs.setdefault(run, set()).add(benchmark)
            self.ends.add((run[0], run[-1]))

    def benchmarks_in(self, example: Example) -> set[str]:
        """Return the benchmarks that ``example`` shares text with, its system texts aside."""
        turns = [message["content"] for message in example.prompt if message["role"] != "system"]
        shared = set().union(*(self.wholes.get(normalize(turn), ()) for turn in turns))
        for text in (*turns, example.response):
            words = split_words(text)
            for start, pair in enumerate(zip(words, words[NGRAM - 1 :], strict=False)):
                if pair in self.ends:
                    shared |= self.runs.get(tuple(words[start : start + NGRAM]), set())
        return shared


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
    index = QuestionIndex()
    for name, questions in benchmarks.items():
        for question in questions:
            index.add(name, question)
    overlaps = {name: Overlap(index.num_items[name]) for name in benchmarks}
    num_examples = 0
    for example in examples:
        num_examples += 1
        for name in index.benchmarks_in(example):
            overlaps[name].num_overlapping += 1
            if overlaps[name].num_overlapping <= MAX_IDS:
                overlaps[name].ids.append(example.id)
    for overlap in overlaps.values():
        overlap.num_examples = num_examples
    return overlaps


def split_words(text: str) -> list[str]:
    """Return the words and numbers in ``text``, lower-cased, without punctuation."""
    return re.findall(r"[^\W_]+", normalize(text))


def _ngrams(words: list[str]) -> Iterator[Ngram]:
    for start in range(len(words) - NGRAM + 1):
        run = tuple(words[start : start + NGRAM])
        if len(set(run)) >= MIN_DISTINCT:
            yield run
