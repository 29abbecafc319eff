"""Metrics over predictions and the table they are kept in."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from deft.evaluators.predictions import Prediction, summarize, write_predictions


def prediction(score: float, response: str = "MAD", finish_reason: str = "stop") -> Prediction:
    return Prediction(
        id=f"item/{score}",
        prompt="<|user|>?",
        response=response,
        gold="MAD",
        finish_reason=finish_reason,
        n_tokens=4,
        scores={"exact_match": score},
    )


def test_means_are_over_all_items_and_failures_are_told_apart() -> None:
    metrics = summarize(
        [
            prediction(1),
            prediction(0, response=" \n"),
            prediction(0, response="", finish_reason="prompt_too_long"),
            prediction(1, finish_reason="length"),
            prediction(1),
        ]
    )
    assert metrics == {
        "num_items": 5,
        "exact_match": pytest.approx(3 / 5),
        # Sample variance of (1, 0, 0, 1, 1): (3·0.4² + 2·0.6²)/4 = 0.3.
        "exact_match_stderr": pytest.approx(math.sqrt(0.3 / 5)),
        "truncated_rate": 1 / 5,
        "prompt_too_long_rate": 1 / 5,
        "empty_rate": 1 / 5,
    }
    assert all(type(value) is float for value in metrics.values())


def test_one_item_has_no_standard_error() -> None:
    assert math.isnan(summarize([prediction(1)])["exact_match_stderr"])


def test_nothing_to_summarize_is_an_error() -> None:
    with pytest.raises(ValueError, match="no predictions"):
        summarize([])


def test_table_has_a_row_per_item_and_replaces_the_former_one(tmp_path: Path) -> None:
    path = tmp_path / "deeper" / "figfont.parquet"
    write_predictions([prediction(0.25)], path)
    write_predictions([prediction(0.5, response="ΩX"), prediction(1)], path)
    assert pq.read_table(path).to_pylist()[0] == {
        "id": "item/0.5",
        "prompt": "<|user|>?",
        "response": "ΩX",
        "gold": "MAD",
        "finish_reason": "stop",
        "n_tokens": 4,
        "exact_match": 0.5,
    }
    assert list(path.parent.iterdir()) == [path]


def test_a_table_that_cannot_be_written_leaves_the_former_one(tmp_path: Path) -> None:
    path = tmp_path / "figfont.parquet"
    write_predictions([prediction(0.25)], path)
    unwritable = prediction(1, response="\ud800")
    with pytest.raises(UnicodeEncodeError):
        write_predictions([unwritable], path)
    assert pq.read_table(path)["exact_match"].to_pylist() == [0.25]
    assert list(tmp_path.iterdir()) == [path]
