"""The benchmarks that are shipped: what is read, what is asked, what the gold is."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from deft.evaluators.benchmarks.catalog import BENCHMARKS
from deft.evaluators.benchmarks.items import load_items
from deft.evaluators.benchmarks.math import last_box
from deft.evaluators.grading import GRADERS
from deft.evaluators.grading.sandbox.pool import GraderPool
from deft.evaluators.spec import BenchmarkSpec
from deft.workers.catalogs.prompt_styles import PROMPT_STYLES
from helpers import SHARED

BENCHMARKS_DIR = SHARED / "benchmarks"


def item(benchmark: str, record: dict[str, Any]) -> Any:
    return BENCHMARKS[benchmark].read(record, 3)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_is_complete(name: str) -> None:
    benchmark = BENCHMARKS[name]
    assert benchmark.name == name
    assert benchmark.grader in GRADERS
    assert benchmark.metrics
    if benchmark.paper is not None:
        assert set(benchmark.paper.styles.values()) <= set(PROMPT_STYLES)
        # A style that spells an instruction out spells out the benchmark's own.
        for style in benchmark.paper.styles.values():
            assert PROMPT_STYLES[style].instruction == benchmark.instruction


@pytest.mark.parametrize(
    ("benchmark", "record", "gold"),
    [
        ("math500", {"problem": "?", "solution": r"\boxed{1} or \boxed{x_{2}}."}, "x_{2}"),
        ("math500", {"problem": "?", "answer": "5"}, "5"),
        ("minerva_math", {"problem": "?", "solution": r"\boxed{4.5e33}"}, "4.5e33"),
        ("minerva_math", {"problem": "?", "solution": r"\boxed{-1./3}"}, "-1/3"),
        ("olympiadbench", {"question": "?", "final_answer": [r"$\frac{1}{2}$"]}, r"\frac{1}{2}"),
        ("olympiadbench", {"question": "?", "final_answer": ["$t(0,4]$"]}, "(0,4]"),
        ("olympiadbench", {"question": "?", "final_answer": ["$221,$8$"]}, "221,8"),
        ("aime24", {"problem": "?", "answer": "025"}, "025"),
        ("aime25", {"problem": "?", "answer": r"336^\circ"}, r"336^\circ"),
        ("amc23", {"question": "?", "answer": 27.0}, "27"),
        ("amc23", {"question": "?", "answer": 0.5}, "0.5"),
        ("gsm8k", {"question": "?", "answer": "2 + 2 = <<2+2=4>>4 #### 1,234"}, "1234"),
    ],
)  # fmt: skip
def test_math_golds(benchmark: str, record: dict[str, Any], gold: str) -> None:
    parsed = item(benchmark, record)
    assert parsed.gold == gold
    assert parsed.prompt == ({"role": "user", "content": "?"},)


def test_last_box_matches_braces() -> None:
    assert last_box(r"\boxed{1} then \boxed{a_{b_{c}} + 1} end}") == "a_{b_{c}} + 1"
    assert last_box(r"\boxed{never closed") is None
    assert last_box("no box") is None


def test_items_have_ids_of_their_own_where_there_are_some() -> None:
    assert item("math500", {"problem": "?", "answer": "5", "unique_id": "test/7"}).id == "test/7"
    assert item("gsm8k", {"question": "?", "answer": "#### 1"}).id == "3"


def test_choices_are_written_below_the_question() -> None:
    record = {
        "question": " Which? ",
        "options": {"A": "one ", "B": "two", "E": None},
        "answer_idx": "B",
        "answer": "two",
        "source": "MedQA_USLME_test",
    }
    parsed = item("medical", record)
    assert parsed.prompt[0]["content"] == "Which?\nA. one\nB. two"
    assert (parsed.gold, parsed.options) == ("B", {"A": "one", "B": "two"})
    assert parsed.source == "MedQA_USLME_test"
    # m1 leaves out rows whose answer is not the option it names.
    assert item("medical", {**record, "answer": "one"}) is None


def test_figfont_items_are_the_papers_test_items() -> None:
    spec = BenchmarkSpec.model_validate({"name": "figfont", "size": 2})
    first, second = load_items(spec, None)
    assert (first.id, first.gold) == ("figfont/40000", "IGAD")
    assert second.id == "figfont/40001"
    assert first.prompt[-1]["content"].startswith("What word does this say?\n\n")


def test_chain_sum_items_are_worked_out() -> None:
    items = load_items(BenchmarkSpec.model_validate("chain_sum"), None)
    assert len(items) == BENCHMARKS["chain_sum"].size == len({sum_item.id for sum_item in items})
    for sum_item in items[:100]:
        assert eval(sum_item.prompt[0]["content"].removesuffix("=")) == int(sum_item.gold)


def test_general_suite_is_sound() -> None:
    items = load_items(BenchmarkSpec.model_validate("general"), None)
    assert len(items) == BENCHMARKS["general"].size
    sources = Counter(general_item.source for general_item in items)
    assert sources == {"arithmetic": 30, "knowledge": 40, "instructions": 30}
    letters = Counter(general_item.gold for general_item in items if general_item.options)
    assert letters == {"A": 10, "B": 10, "C": 10, "D": 10}
    assert all(
        general_item.options is None or len(set(general_item.options.values())) == 4
        for general_item in items
    )


def test_graders_accept_the_golds_of_the_general_suite() -> None:
    """Each gold, said as the question asks for it, is graded correct; another's gold is not."""
    items = load_items(BenchmarkSpec.model_validate("general"), None)
    for grader in ("figfont", "math", "medical"):
        mine = [graded_item for graded_item in items if graded_item.grader == grader]
        with GraderPool(grader, workers=1) as pool:

            def record(graded_item: Any, answer: str) -> dict[str, Any]:
                box = f"\\boxed{{{answer}}}" if graded_item.grader != "figfont" else answer
                return {"response": box, "gold": graded_item.gold, "options": graded_item.options}

            right = [pool.submit(record(graded_item, graded_item.gold)) for graded_item in mine]
            others = [*mine[2:], *mine[:2]]
            swapped = [
                pool.submit(record(graded_item, other.gold))
                for graded_item, other in zip(mine, others, strict=True)
                if graded_item.gold != other.gold
            ]
            assert {str(future.result().verdict) for future in right} == {"correct"}
            assert {str(future.result().verdict) for future in swapped} == {"wrong"}


@pytest.mark.skipif(not BENCHMARKS_DIR.is_dir(), reason="the public benchmark files are not here")
@pytest.mark.parametrize(
    "name", ["math500", "minerva_math", "olympiadbench", "aime24", "amc23", "gsm8k"]
)
def test_published_files_are_read_whole(name: str) -> None:
    items = load_items(BenchmarkSpec.model_validate(name), str(BENCHMARKS_DIR))
    assert len(items) == (BENCHMARKS[name].size or 675)
    assert all(public_item.gold and public_item.prompt[0]["content"] for public_item in items)


@pytest.mark.skipif(not BENCHMARKS_DIR.is_dir(), reason="the public benchmark files are not here")
def test_medical_sample_is_read_whole() -> None:
    file = str(BENCHMARKS_DIR / "medical_sample.jsonl")
    items = load_items(BenchmarkSpec.model_validate({"name": "medical", "file": file}), None)
    assert len(items) == 130
    assert {public_item.source for public_item in items} == {"medqa"}
