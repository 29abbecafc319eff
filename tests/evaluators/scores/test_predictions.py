"""The table of predictions and the rates over it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from deft.evaluators.benchmarks.catalog import BENCHMARKS
from deft.evaluators.scores.predictions import (
    Prediction,
    rates,
    read_conditions,
    summarize_predictions,
    write_predictions,
)


def prediction(
    item: str,
    sample: int,
    verdict: str,
    finish_reason: str = "stop",
    response: str = "MAD",
    second_verdict: str | None = None,
) -> Prediction:
    return Prediction(
        id=item,
        item_digest="d",
        sample=sample,
        source="figfont",
        prompt="<|user|>?",
        num_bos=0,
        response=response,
        gold="MAD",
        finish_reason=finish_reason,
        n_tokens=4,
        verdict=verdict,
        extracted=response,
        scores={} if finish_reason == "prompt_too_long" else {"jaro_winkler": 0.5},
        second_verdict=second_verdict,
    )


def test_disagreement_is_the_share_of_second_opinions_that_differ() -> None:
    pairs = [
        ("correct", "correct"),
        ("correct", "wrong"),
        ("no_answer", "correct"),
        # Neither is correct, and what ran out of time contradicts nothing.
        ("no_answer", "wrong"),
        ("correct", "grader_error"),
        ("correct", None),
    ]
    rows = [
        prediction(str(number), 0, verdict, second_verdict=second)
        for number, (verdict, second) in enumerate(pairs)
    ]
    assert rates(rows)["disagreement_rate"] == 2 / 5
    assert "disagreement_rate" not in rates(rows[-1:])


def test_every_way_to_fail_has_its_rate_and_counts_as_wrong() -> None:
    metrics = summarize_predictions(
        [
            prediction("a", 0, "correct"),
            # Cut off after its answer: right, and yet without an end.
            prediction("a", 1, "correct", "length"),
            prediction("b", 0, "truncated", "length"),
            prediction("b", 1, "no_answer"),
            prediction("c", 0, "grader_error"),
            prediction("c", 1, "no_answer", "prompt_too_long"),
            prediction("d", 0, "wrong"),
            prediction("d", 1, "wrong"),
        ],
        BENCHMARKS["figfont"].metrics,
    )
    assert (metrics["num_items"], metrics["num_samples"]) == (4, 2)
    assert metrics["avg_at_2"] == 2 / 8
    assert metrics["pass_at_2"] == 1 / 4
    # What was cut off after its answer was cut off as well; what was not asked gave no answer.
    assert metrics["truncated_rate"] == 2 / 8
    assert metrics["no_answer_rate"] == 1 / 8
    assert metrics["grader_error_rate"] == 1 / 8
    assert metrics["prompt_too_long_rate"] == 1 / 8
    assert metrics["jaro_winkler"] == pytest.approx(7 * 0.5 / 8)
    assert metrics["mean_tokens"] == 4
    assert all(type(value) is float for value in metrics.values())


def test_nothing_to_summarize_is_an_error() -> None:
    with pytest.raises(ValueError, match="no predictions"):
        summarize_predictions([], BENCHMARKS["figfont"].metrics)


def test_scores_that_are_no_numbers_are_refused() -> None:
    row = replace(prediction("a", 0, "correct"), scores={"jaro_winkler": float("nan")})
    with pytest.raises(ValueError, match="score jaro_winkler of item a is nan"):
        summarize_predictions([row], BENCHMARKS["figfont"].metrics)


def test_conditions_are_kept_with_the_table(tmp_path: Path) -> None:
    path = tmp_path / "figfont.parquet"
    write_predictions([prediction("a", 0, "wrong")], path, {"max_tokens": "3"})
    assert read_conditions(path) == {"max_tokens": "3"}
    write_predictions([prediction("a", 0, "wrong")], path)
    assert read_conditions(path) == {}


def test_table_has_a_row_per_response_and_replaces_the_former_one(tmp_path: Path) -> None:
    path = tmp_path / "deeper" / "figfont.parquet"
    write_predictions([prediction("a", 0, "wrong")], path)
    write_predictions([prediction("b", 0, "correct", response="ΩX")], path)
    (row,) = pq.read_table(path).to_pylist()
    assert row == {
        "id": "b",
        "item_digest": "d",
        "sample": 0,
        "source": "figfont",
        "prompt": "<|user|>?",
        "num_bos": 0,
        "response": "ΩX",
        "gold": "MAD",
        "finish_reason": "stop",
        "n_tokens": 4,
        "verdict": "correct",
        "extracted": "ΩX",
        "second_verdict": None,
        "scores": [("jaro_winkler", 0.5)],
    }
    assert list(path.parent.iterdir()) == [path]


def test_a_table_that_cannot_be_written_leaves_the_former_one(tmp_path: Path) -> None:
    path = tmp_path / "figfont.parquet"
    write_predictions([prediction("a", 0, "wrong")], path)
    with pytest.raises(UnicodeEncodeError):
        write_predictions([prediction("b", 0, "wrong", response="\ud800")], path)
    assert pq.read_table(path)["id"].to_pylist() == ["a"]
    assert list(tmp_path.iterdir()) == [path]
