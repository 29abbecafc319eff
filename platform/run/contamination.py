"""Comparison of training data with benchmarks: shared texts, and the format of prompts."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from deft.evaluators.benchmarks.catalog import get_benchmark
from deft.evaluators.benchmarks.items import read_items
from deft.platform.records.manifests import BenchmarkOverlap
from deft.workers.data.overlap import find_overlaps
from deft.workers.data.prepare import Prepared, training_examples


def benchmark_questions(items: Path) -> Iterator[str]:
    """Yield the questions of a benchmark, item by item, without system texts."""
    for item in read_items(items):
        yield "\n".join(turn["content"] for turn in item.prompt if turn["role"] != "system")


def overlap_with_benchmarks(
    prepared: Prepared, items: Mapping[str, str]
) -> dict[str, BenchmarkOverlap]:
    """Find the training examples that share text with each benchmark.

    Args:
        prepared: the training data.
        items: name of a benchmark → file of its items, see `prepare_benchmarks`.
    """
    if not items:
        return {}
    questions = {
        get_benchmark(name).name: benchmark_questions(Path(path)) for name, path in items.items()
    }
    overlaps = find_overlaps(training_examples(prepared), questions)
    return {
        name: BenchmarkOverlap(
            num_overlapping=overlap.num_overlapping,
            share=overlap.share,
            ids=tuple(overlap.ids),
        )
        for name, overlap in overlaps.items()
    }


def different_formats(training: Collection[str], benchmarks: Mapping[str, str]) -> list[str]:
    """Return the benchmarks whose prompt format differs from all of training.

    Args:
        training: `deft.workers.data.chat.format_hash` of each training data set.
        benchmarks: the same of each benchmark by its name.
    """
    return [name for name, digest in benchmarks.items() if digest not in training]
