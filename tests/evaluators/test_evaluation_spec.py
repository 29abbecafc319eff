"""What an evaluation spec accepts, fills in and refuses."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from deft.evaluators.spec import EvaluationSpec


def evaluation(*benchmarks: Any, **engine: Any) -> EvaluationSpec:
    return EvaluationSpec.model_validate({"benchmarks": benchmarks, "engine": engine})


def test_bare_name_is_completed_from_the_benchmark() -> None:
    (figfont,) = evaluation("figfont").benchmarks
    assert (figfont.name, figfont.size, figfont.max_tokens) == ("figfont", 5000, 16)
    assert figfont.temperature == 0


def test_given_values_win_and_null_means_not_given() -> None:
    (figfont,) = evaluation({"name": "figfont", "size": 200, "max_tokens": None}).benchmarks
    assert (figfont.size, figfont.max_tokens) == (200, 16)


def test_resolved_spec_reads_back_unchanged() -> None:
    spec = evaluation({"name": "figfont", "size": 7}, dtype="bfloat16", max_model_len=512)
    assert EvaluationSpec.model_validate_json(spec.model_dump_json()) == spec


def test_no_benchmarks_is_no_evaluation() -> None:
    assert EvaluationSpec().benchmarks == ()


@pytest.mark.parametrize(
    ("benchmarks", "message"),
    [
        (["figfnt"], "unknown benchmark 'figfnt'. Did you mean figfont?"),
        ([{"size": 3}], "a benchmark needs a name"),
        ([3], "Input should be a valid dictionary"),
        ([{"name": "figfont", "size": 5001}], "figfont has 5000 items, got 5001"),
        ([{"name": "figfont", "size": 0}], "greater than or equal to 1"),
        ([{"name": "figfont", "temperature": -1}], "greater than or equal to 0"),
        ([{"name": "figfont", "samples": 16}], "Extra inputs are not permitted"),
        (["figfont", {"name": "figfont", "size": 3}], "figfont named more than once"),
    ],
)
def test_bad_benchmarks_are_refused_with_one_error(benchmarks: list[Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        evaluation(*benchmarks)
    (error,) = caught.value.errors()
    assert message in error["msg"]


@pytest.mark.parametrize(
    "engine", [{"dtype": "float64"}, {"kv_cache_gib": 0}, {"max_model_len": 1}, {"dtpe": "auto"}]
)
def test_bad_engines_are_refused(engine: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        evaluation(**engine)


def test_specs_and_registry_load_no_heavy_library() -> None:
    code = (
        "import sys, deft.evaluators.spec, deft.evaluators.benchmarks;"
        "print({'torch', 'ray', 'vllm', 'transformers', 'reasoning_gym', 'rapidfuzz', 'numpy'}"
        " & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
