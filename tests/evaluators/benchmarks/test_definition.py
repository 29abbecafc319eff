"""What makes a benchmark another one, and what does not."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from deft.evaluators.benchmarks.catalog import BENCHMARKS, get_benchmark
from deft.evaluators.benchmarks.definition import (
    changed_benchmarks,
    content_in,
    definition_digest,
    definition_in,
)
from deft.evaluators.benchmarks.items import prepare_items
from deft.evaluators.generation.job import EvaluationJob
from deft.evaluators.spec import BenchmarkSpec

MODULE = """
from functools import partial
from deft.evaluators.benchmarks.base import Benchmark, Item, Sampling
from deft.evaluators.scores.metrics import accuracy

def rows():
    yield {"q": "1 + 1?", "a": "2"}

def read(field, record, number):
    return Item(str(number), ({"role": "user", "content": record["q"]},), record[field])

own = Benchmark("own", "", "", rows, partial(read, "a"), "graders_of_mine:grade",
                Sampling(max_tokens=8), (accuracy,), instruction="Think.")
"""
GRADER = "from deft.evaluators.grading.verdicts import Grade, Verdict\n"
NAME = "benchmarks_of_mine:own"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Directory of a benchmark and a grader of one's own."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "benchmarks_of_mine.py").write_text(MODULE)
    (tmp_path / "graders_of_mine.py").write_text(GRADER)
    yield tmp_path
    for name in ("benchmarks_of_mine", "graders_of_mine"):
        sys.modules.pop(name, None)


def edit(file: Path, old: str, new: str) -> None:
    file.write_text(file.read_text().replace(old, new))
    importlib.invalidate_caches()
    sys.modules.pop(file.stem, None)


def test_what_results_depend_on_is_part_of_the_definition() -> None:
    math = BENCHMARKS["math500"]
    digest = definition_digest(math)
    assert digest == definition_digest(replace(math, summary="!", size=3, source="?"))
    for change in (
        {"instruction": "Answer."},
        {"grader": "figfont", "records": list},
        {"read": BENCHMARKS["medical"].read},
        {"several_sources": True},
    ):
        assert definition_digest(replace(math, **change)) != digest, change


def job(items: Path, model: Path) -> EvaluationJob:
    spec = BenchmarkSpec.model_validate(NAME)
    return EvaluationJob("eval", str(model), spec, str(items), "chat", str(model))


def test_an_edited_benchmark_has_other_items_and_results(own: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    spec, cache = BenchmarkSpec.model_validate(NAME), tmp_path / "cache"
    items = prepare_items(spec, None, cache)
    responses = job(items, model).responses
    assert changed_benchmarks({NAME: str(items)}) == []

    # Another grader: other results of the same responses.
    edit(own / "graders_of_mine.py", "Grade, Verdict", "Verdict")
    assert changed_benchmarks({NAME: str(items)}) == [NAME]
    graded = prepare_items(spec, None, cache)
    assert content_in(str(graded)) == content_in(str(items))
    assert definition_in(str(graded)) != definition_in(str(items))
    assert job(graded, model).responses == responses

    # Another instruction: other responses, to questions that are the same.
    edit(own / "benchmarks_of_mine.py", "Think.", "Hurry.")
    assert get_benchmark(NAME).instruction == "Hurry."
    hurried = prepare_items(spec, None, cache)
    assert content_in(str(hurried)) == content_in(str(items))
    assert hurried != graded
    assert job(hurried, model).responses != responses
    assert changed_benchmarks({NAME: str(hurried)}) == []


def test_a_grader_that_cannot_be_imported_is_refused(own: Path, tmp_path: Path) -> None:
    (own / "graders_of_mine.py").write_text("import nothing_of_that_name\n")
    sys.modules.pop("graders_of_mine", None)
    with pytest.raises(ValueError, match=r"grader 'graders_of_mine:grade' cannot be imported"):
        prepare_items(BenchmarkSpec.model_validate(NAME), None, tmp_path / "cache")
