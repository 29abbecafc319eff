"""Preparation of an evaluation: items on disk, and checks before an engine starts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from deft.evaluators.benchmarks.base import Item
from deft.evaluators.benchmarks.catalog import get_benchmark
from deft.evaluators.benchmarks.items import load_items, read_items, write_items
from deft.evaluators.generation.prompts import encode_item, resolve_style
from deft.evaluators.spec import BenchmarkSpec, EvaluationSpec
from deft.workers.modeling.tokenizer import load_tokenizer


def prepare_benchmarks(spec: EvaluationSpec, cache: Path) -> dict[str, str]:
    """Write the items of every benchmark to ``cache``.

    Returns:
        Name of a benchmark in the spec → file of its items.

    Raises:
        ValueError: data is missing or bad; the message says what to do.
    """
    return write_benchmarks(load_benchmarks(spec), cache)


def load_benchmarks(spec: EvaluationSpec) -> list[tuple[BenchmarkSpec, list[Item]]]:
    """Read the items of every benchmark and write nothing; see `prepare_benchmarks`."""
    return [(benchmark, load_items(benchmark, spec.data_dir)) for benchmark in spec.suite]


def write_benchmarks(
    benchmarks: Iterable[tuple[BenchmarkSpec, list[Item]]], cache: Path
) -> dict[str, str]:
    """Write the items that `load_benchmarks` has read; see `prepare_benchmarks`."""
    return {each.name: str(write_items(each, items, cache)) for each, items in benchmarks}


def require_prompts(
    spec: EvaluationSpec, items: Mapping[str, str], model_dir: str, trained_style: str
) -> None:
    """Check that the prompts of every benchmark can be rendered for a model.

    Args:
        spec: the evaluation.
        items: what `prepare_benchmarks` returned.
        model_dir: directory of the model.
        trained_style: prompt style it is trained with.

    Raises:
        ValueError: a prompt style does not fit the model.
    """
    if not spec.suite:
        return
    tokenizer = load_tokenizer(Path(model_dir))
    for benchmark_spec in spec.suite:
        benchmark = get_benchmark(benchmark_spec.name)
        if benchmark.harness is not None and benchmark_spec.prompt_style is None:
            continue  # plain text, which fits every model
        item = read_items(Path(items[benchmark_spec.name]))[0]
        try:
            style = resolve_style(benchmark_spec, benchmark, tokenizer, trained_style)
            encode_item(tokenizer, item, benchmark, style)
        except ValueError as error:
            raise ValueError(f"{benchmark.name}: {error}") from None


def with_absolute_paths(spec: EvaluationSpec) -> EvaluationSpec:
    """Make local paths of ``spec`` absolute: Ray's processes work in other directories."""
    benchmarks = tuple(
        benchmark.model_copy(update={"file": str(Path(benchmark.file).absolute())})
        if benchmark.file
        else benchmark
        for benchmark in spec.benchmarks
    )
    folder = str(Path(spec.data_dir).absolute()) if spec.data_dir else None
    return spec.model_copy(update={"benchmarks": benchmarks, "data_dir": folder})
