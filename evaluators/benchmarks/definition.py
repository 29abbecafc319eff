"""The definition of a benchmark as a digest, so that results of another one are never reused."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from deft.evaluators import grading, harness
from deft.evaluators.benchmarks.base import Benchmark
from deft.evaluators.benchmarks.catalog import get_benchmark
from deft.evaluators.grading import GRADERS
from deft.evaluators.scores import metrics, predictions, statistics
from deft.workers.common.checksums import hash_files, hash_parts

NOT_DEFINING = {"name", "summary", "source", "size", "sampling", "harness"}
"""Fields that change no result, or that a spec and the items hold already."""


def definition_digest(benchmark: Benchmark) -> str:
    """Hash everything but items and sampling that results on a benchmark depend on.

    That is its instruction, reader, grader, metrics and the like. Of a function the source of its
    module counts; of the shipped graders and metrics, the source of all.

    Raises:
        ValueError: its grader cannot be imported.
    """
    if benchmark.harness is None:
        grades = _grader_source(benchmark.grader)
    else:
        grades = f"{benchmark.harness!r} {_bridge()}"
    parts = [_shipped_scores(), grades]
    for field in fields(benchmark):
        value = getattr(benchmark, field.name)
        values = value if isinstance(value, tuple) else (value,)
        if field.name not in NOT_DEFINING:
            parts += [_source(value) if callable(value) else repr(value) for value in values]
    return hash_parts(*parts)


def items_file_name(benchmark: Benchmark, content: str) -> str:
    """Name a file of items by the digest of its content and of the benchmark's definition."""
    return f"{benchmark.name}-{content}.{definition_digest(benchmark)}.jsonl"


def changed_benchmarks(items: Mapping[str, str]) -> list[str]:
    """List the benchmarks whose definition is no longer that of their files of items.

    Args:
        items: benchmark as a spec names it → file that `items_file_name` has named.
    """
    return [
        name
        for name, file in items.items()
        if definition_in(file) != definition_digest(get_benchmark(name))
    ]


def definition_in(file: str) -> str:
    """Return the digest of the benchmark's definition in the name of a file of items."""
    return Path(file).stem.rpartition(".")[2]


def content_in(file: str) -> str:
    """Return benchmark and digest of the content in the name of a file of items."""
    stem = Path(file).stem
    return stem.rpartition(".")[0] or stem


def _grader_source(grader: str) -> str:
    if grader in GRADERS:
        return _shipped_graders()
    name = grader.partition(":")[0]
    try:
        importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"grader {grader!r} cannot be imported: {error}") from error
    return _module_source(name)


def _source(function: Callable[..., Any]) -> str:
    """Hash the module that a function, or the class of a callable object, is defined in."""
    while isinstance(function, partial):
        function = function.func
    function = inspect.unwrap(function)
    has_module = inspect.isroutine(function) or inspect.isclass(function)
    return _module_source((function if has_module else type(function)).__module__)


def _module_source(name: str) -> str:
    """Hash the source of an imported module; what is built in has none."""
    file = getattr(sys.modules.get(name), "__file__", None)
    return _hash_files([Path(file)] if file else [])


@lru_cache
def _shipped_graders() -> str:
    assert grading.__file__ is not None
    return _hash_files(sorted(Path(grading.__file__).parent.rglob("*.py")))


@lru_cache
def _bridge() -> str:
    assert harness.__file__ is not None
    return _hash_files(sorted(Path(harness.__file__).parent.glob("*.py")))


@lru_cache
def _shipped_scores() -> str:
    return _hash_files([Path(str(m.__file__)) for m in (metrics, predictions, statistics)])


def _hash_files(files: Iterable[Path]) -> str:
    return hash_files((file.name, file) for file in files)
