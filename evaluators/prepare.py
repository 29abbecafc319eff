"""Everything an evaluation needs on disk, and proof that it can be done, before it starts."""

from __future__ import annotations

from pathlib import Path

from deft.evaluators.actor import load_tokenizer
from deft.evaluators.benchmarks import get_benchmark
from deft.evaluators.items import prepare_items, read_items
from deft.evaluators.prompts import encode_item, resolve_style
from deft.evaluators.spec import EvaluationSpec


def prepare_benchmarks(
    spec: EvaluationSpec, model_dir: str, trained_style: str, cache: Path
) -> dict[str, str]:
    """Write the items of every benchmark, and render a prompt of each.

    Args:
        spec: the evaluation; its paths are read as they are.
        model_dir: directory of a model that is going to be asked.
        trained_style: prompt style it is trained with.
        cache: where items go.

    Returns:
        Name of a benchmark in the spec → file of its items.

    Raises:
        ValueError: data is missing or bad, or a prompt style does not fit the model.
    """
    if not spec.suite:
        return {}
    tokenizer = load_tokenizer(Path(model_dir))
    items = {}
    for benchmark_spec in spec.suite:
        benchmark = get_benchmark(benchmark_spec.name)
        path = prepare_items(benchmark_spec, spec.data_dir, cache)
        try:
            style = resolve_style(benchmark_spec, benchmark, tokenizer, trained_style)
            encode_item(tokenizer, read_items(path)[0], benchmark, style)
        except ValueError as error:
            raise ValueError(f"{benchmark.name}: {error}") from None
        items[benchmark_spec.name] = str(path)
    return items


def absolute(spec: EvaluationSpec) -> EvaluationSpec:
    """``spec`` with local paths made absolute: Ray's processes work in other directories."""
    benchmarks = tuple(
        benchmark.model_copy(update={"file": str(Path(benchmark.file).absolute())})
        if benchmark.file
        else benchmark
        for benchmark in spec.benchmarks
    )
    folder = str(Path(spec.data_dir).absolute()) if spec.data_dir else None
    return spec.model_copy(update={"benchmarks": benchmarks, "data_dir": folder})
