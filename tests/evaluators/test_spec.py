"""What an evaluation spec accepts, fills in and refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from deft.evaluators.spec import EvaluationSpec

OWN = """
from dataclasses import replace
from deft.evaluators.benchmarks.math import GSM8K
gsm_hard = replace(GSM8K, name="gsm_hard", size=7)
number = 3
"""


def evaluation(*benchmarks: Any, **settings: Any) -> EvaluationSpec:
    return EvaluationSpec.model_validate({"benchmarks": benchmarks, **settings})


def test_bare_name_is_completed_from_the_benchmark() -> None:
    (figfont,) = evaluation("figfont").benchmarks
    assert (figfont.name, figfont.samples, figfont.max_tokens) == ("figfont", 1, 16)
    assert (figfont.temperature, figfont.top_p, figfont.size) == (0, 1, None)


def test_given_values_win_and_null_means_not_given() -> None:
    (figfont,) = evaluation({"name": "figfont", "size": 200, "max_tokens": None}).benchmarks
    assert (figfont.size, figfont.max_tokens) == (200, 16)


def test_several_samples_are_drawn_unless_a_temperature_is_given() -> None:
    (drawn,) = evaluation({"name": "gsm8k", "samples": 4}).benchmarks
    assert drawn.temperature == 1
    (cooler,) = evaluation({"name": "gsm8k", "samples": 4, "temperature": 0.6}).benchmarks
    assert cooler.temperature == 0.6


def test_paper_protocol_is_the_papers() -> None:
    math, figfont, general = evaluation(
        "math500", {"name": "figfont", "max_tokens": 16}, "general", protocol="paper"
    ).benchmarks
    assert (math.samples, math.temperature, math.top_p, math.max_tokens) == (16, 1, 1, 4096)
    assert len(math.stop) == 6
    assert math.prompt_style == figfont.prompt_style == "paper"
    # What is given wins; what the paper knows nothing of stays as it is.
    assert (figfont.samples, figfont.temperature, figfont.max_tokens) == (1, 0, 16)
    assert (general.prompt_style, general.samples) == (None, 1)


def test_resolved_spec_reads_back_unchanged() -> None:
    for protocol in ("default", "paper"):
        spec = evaluation(
            {"name": "figfont", "size": 7},
            "medical",
            protocol=protocol,
            engine={"dtype": "bfloat16", "max_model_len": 512},
        )
        assert EvaluationSpec.model_validate_json(spec.model_dump_json()) == spec


def test_general_suite_stands_beside_the_named_benchmarks() -> None:
    assert [b.name for b in evaluation("gsm8k").suite] == ["gsm8k", "general"]
    assert [b.name for b in evaluation("gsm8k", general=False).suite] == ["gsm8k"]
    assert [b.name for b in evaluation("general", "gsm8k").suite] == ["general", "gsm8k"]
    assert EvaluationSpec().suite == ()


def test_benchmark_of_ones_own_is_named_by_import_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_benchmarks.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    (own,) = evaluation("own_benchmarks:gsm_hard").benchmarks
    assert (own.name, own.max_tokens) == ("own_benchmarks:gsm_hard", 1024)
    for path, message in {
        "own_benchmarks:gsm_hrd": "cannot be imported",
        "nowhere:gsm_hard": "cannot be imported",
        "own_benchmarks:number": "expected a Benchmark, got 3",
    }.items():
        with pytest.raises(ValidationError, match=message):
            evaluation(path)


@pytest.mark.parametrize(
    ("benchmarks", "message"),
    [
        (["figfnt"], "unknown benchmark 'figfnt'. Did you mean figfont?"),
        ([{"size": 3}], "a benchmark needs a name"),
        ([3], "Input should be a valid dictionary"),
        ([{"name": "figfont", "size": 5001}], "figfont has 5000 items, got 5001"),
        ([{"name": "figfont", "size": 0}], "greater than or equal to 1"),
        ([{"name": "figfont", "temperature": -1}], "greater than or equal to 0"),
        ([{"name": "figfont", "top_p": 0}], "greater than 0"),
        ([{"name": "figfont", "smples": 16}], "Extra inputs are not permitted"),
        ([{"name": "gsm8k", "samples": 2, "temperature": 0}], "all 2 samples would be the same"),
        ([{"name": "gsm8k", "prompt_style": "qwen-boxd"}], "Did you mean qwen-boxed?"),
        ([{"name": "general", "prompt_style": "paper"}], "the paper has no prompt for general"),
        ([{"name": "gsm8k", "file": "nowhere.jsonl"}], "there is no file nowhere.jsonl"),
        (["figfont", {"name": "figfont", "size": 3}], "figfont named more than once"),
    ],
)
def test_bad_benchmarks_are_refused_with_one_error(benchmarks: list[Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        evaluation(*benchmarks)
    (error,) = caught.value.errors()
    assert message in error["msg"]


@pytest.mark.parametrize(
    "settings",
    [
        {"engine": {"dtype": "float64"}},
        {"engine": {"kv_cache_gib": 0}},
        {"engine": {"max_model_len": 1}},
        {"engine": {"dtpe": "auto"}},
        {"engine": {"type": "sglang"}},
        {"protocol": "papr"},
        {"data_dir": "nowhere"},
        {"heldout": {"file": "nowhere.jsonl"}},
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        evaluation("figfont", **settings)


def test_digest_changes_with_the_data(tmp_path: Path) -> None:
    data = tmp_path / "gsm8k.jsonl"
    data.write_text("1")
    spec = evaluation("gsm8k", data_dir=str(tmp_path))
    before = spec.data_digest()
    data.write_text("2")
    (tmp_path / "other.jsonl").write_text("3")
    after = spec.data_digest()
    assert after != before
    (tmp_path / "other.jsonl").write_text("4")
    assert spec.data_digest() == after


def test_specs_and_registry_load_no_heavy_library() -> None:
    code = (
        "import sys, deft.evaluators.spec, deft.evaluators.benchmarks.catalog;"
        "print({'torch', 'ray', 'vllm', 'transformers', 'reasoning_gym', 'rapidfuzz', 'numpy'}"
        " & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
