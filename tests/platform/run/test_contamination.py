"""Training data against benchmarks, as the prepare stage compares them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deft.evaluators.benchmarks.items import prepare_items
from deft.evaluators.spec import BenchmarkSpec
from deft.platform.records.manifests import BenchmarkOverlap
from deft.platform.run.contamination import (
    benchmark_questions,
    different_formats,
    overlap_with_benchmarks,
)
from deft.workers.data.figfont import TEST_START, figfont_examples
from deft.workers.data.prepare import prepare
from deft.workers.dataset_spec import DatasetSpec
from deft.workers.spec import ModelSpec


@pytest.fixture
def items(tmp_path: Path) -> Path:
    """Write the file of the first figfont items."""
    spec = BenchmarkSpec.model_validate({"name": "figfont", "size": 20})
    return prepare_items(spec, None, tmp_path / "cache")


def test_questions_are_asked_without_the_system_text(items: Path) -> None:
    first = next(iter(benchmark_questions(items)))
    assert first.startswith("What word does this say?")


def test_training_on_the_benchmark_is_found_out(items: Path, tmp_path: Path) -> None:
    leaked = [item.prompt[1]["content"] for item in figfont_examples(TEST_START, 3)]
    prompts = [*(f"What is {n} + {n}?" for n in range(97)), *leaked]
    records = [{"prompt": prompt, "response": "x"} for prompt in prompts]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, records)))
    prepared = prepare(
        DatasetSpec(name=str(tmp_path / "data.jsonl"), validation=0),
        ModelSpec(name="tiny"),
        max_length=2000,
        seed=0,
        cache=tmp_path / "cache",
    )
    assert overlap_with_benchmarks(prepared, {"figfont": str(items)}) == {
        "figfont": BenchmarkOverlap(
            num_overlapping=3,
            share=0.03,
            ids=("data.jsonl:98", "data.jsonl:99", "data.jsonl:100"),
        )
    }
    assert overlap_with_benchmarks(prepared, {}) == {}


@pytest.mark.parametrize("split", ["train", "pretrain"])
def test_chain_sum_shares_nothing_with_its_benchmark(split: str, tmp_path: Path) -> None:
    spec = BenchmarkSpec.model_validate("chain_sum")
    items = prepare_items(spec, None, tmp_path / "cache")
    prepared = prepare(
        DatasetSpec(name="chain_sum", split=split, size=3000, validation=0),
        ModelSpec(name="tiny"),
        max_length=100,
        seed=0,
        cache=tmp_path / "cache",
    )
    overlap = overlap_with_benchmarks(prepared, {"chain_sum": str(items)})
    assert overlap == {"chain_sum": BenchmarkOverlap(num_overlapping=0, share=0.0, ids=())}


def test_formats_are_told_apart_by_their_hashes() -> None:
    assert different_formats({"a"}, {"gsm8k": "a", "math500": "b"}) == ["math500"]
    assert different_formats({"a", "b"}, {"gsm8k": "a", "math500": "b"}) == []
