"""What training data and benchmarks have in common: texts, and the format of prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deft.evaluators.benchmarks.catalog import get_benchmark
from deft.evaluators.benchmarks.items import read_items
from deft.workers.data.overlap import find_overlaps
from deft.workers.data.prepare import Prepared, training_examples


def benchmark_questions(items: Path) -> Iterator[str]:
    """Yield what a benchmark asks, item by item, without system texts."""
    for item in read_items(items):
        yield "\n".join(turn["content"] for turn in item.prompt if turn["role"] != "system")


def overlap_with_benchmarks(
    prepared: Prepared, items: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Find the training examples that share text with each benchmark: number, share and ids.

    Args:
        prepared: the training data.
        items: name of a benchmark → file of its items, see `prepare_benchmarks`.
    """
    if not items:
        return {}
    asked = {
        get_benchmark(name).name: benchmark_questions(Path(path)) for name, path in items.items()
    }
    found = find_overlaps(training_examples(prepared), asked)
    return {
        name: {
            "num_overlapping": overlap.num_overlapping,
            "share": overlap.share,
            "ids": overlap.ids,
        }
        for name, overlap in found.items()
    }


def different_formats(training: str, benchmarks: Mapping[str, str]) -> list[str]:
    """Return the benchmarks whose prompt format is not that of training.

    Args:
        training: `deft.workers.data.chat.format_hash` of the training data.
        benchmarks: the same of each benchmark by its name.
    """
    return [name for name, digest in benchmarks.items() if digest != training]
