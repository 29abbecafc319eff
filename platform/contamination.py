"""What training data and benchmarks have in common: texts, and the format of prompts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from deft.evaluators.benchmarks import BENCHMARKS
from deft.evaluators.spec import BenchmarkSpec
from deft.workers.overlap import find_overlaps
from deft.workers.prepare import Prepared, training_examples

SHOWN_IDS = 1000
"""Overlapping examples that are named in a manifest; all of them are counted."""


def benchmark_questions(benchmark: BenchmarkSpec) -> Iterator[str]:
    """What ``benchmark`` asks, item by item, without system texts."""
    for item in BENCHMARKS[benchmark.name].load(benchmark.size):
        yield "\n".join(turn["content"] for turn in item.prompt if turn["role"] != "system")


def overlap_with_benchmarks(
    prepared: Prepared, benchmarks: Iterable[BenchmarkSpec]
) -> dict[str, dict[str, Any]]:
    """Training examples that share text with each benchmark: number, share and ids."""
    asked = {benchmark.name: benchmark_questions(benchmark) for benchmark in benchmarks}
    if not asked:
        return {}
    found = find_overlaps(training_examples(prepared), asked)
    return {
        name: {
            "num_overlapping": len(overlap.ids),
            "share": overlap.share,
            "ids": overlap.ids[:SHOWN_IDS],
        }
        for name, overlap in found.items()
    }


def different_formats(training: str, benchmarks: Mapping[str, str]) -> list[str]:
    """The benchmarks whose prompt format is not that of training.

    Args:
        training: `deft.workers.chat.format_hash` of the training data.
        benchmarks: the same of each benchmark by its name.
    """
    return [name for name, digest in benchmarks.items() if digest != training]
