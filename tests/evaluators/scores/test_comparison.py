"""Runs on the same items: what is called a difference, and what is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from deft.evaluators.scores.comparison import ItemScores, compare, read_heldout, read_predictions
from deft.evaluators.scores.heldout_table import RowLoss, write_losses
from deft.evaluators.scores.predictions import Prediction, write_predictions


def measured(
    values: np.ndarray, *, single: bool = True, ids: list[str] | None = None
) -> ItemScores:
    return ItemScores(
        ids=ids or [str(i) for i in range(len(values))],
        values=values.astype(float),
        weights=np.ones(len(values)),
        single=values.astype(bool) if single else None,
        rates={},
    )


def test_differences_are_told_from_noise_over_the_whole_grid() -> None:
    first = np.array([0] * 40 + [1] * 20)
    clear = np.array([1] * 20 + [0] * 20 + [1] * 20)
    slight = np.array([1] * 6 + [0] * 34 + [1] * 20)
    contrasts = compare(
        {"math": {"a": measured(first), "b": measured(clear), "c": measured(slight)}}, "a"
    )
    assert list(contrasts) == [("math", "b"), ("math", "c")]
    # 20 and 6 items that only the other run has right: 2/2²⁰ and 2/2⁶ by McNemar's exact test.
    assert contrasts["math", "b"].p_value == pytest.approx(2 / 2**20)
    assert contrasts["math", "c"].p_value == pytest.approx(2 / 2**6)
    assert contrasts["math", "c"].adjusted_p == pytest.approx(2 / 2**6)
    assert contrasts["math", "b"].distinguishable
    assert contrasts["math", "b"].difference.mean == pytest.approx(20 / 60)
    assert contrasts["math", "c"].distinguishable

    grid = {name: {"a": measured(first), "c": measured(slight)} for name in ("x", "y", "z")}
    # The same three times over: each p of 0.03 counts three times, and is noise.
    assert [c.adjusted_p for c in compare(grid, "a").values()] == pytest.approx([6 / 64] * 3)
    assert not any(c.distinguishable for c in compare(grid, "a").values())


def test_only_shared_items_are_compared() -> None:
    first = measured(np.array([0, 1, 1]), ids=["a", "b", "c"])
    second = measured(np.array([1, 1, 0]), ids=["c", "b", "d"])
    contrasts = compare({"math": {"one": first, "two": second}}, "one")
    assert contrasts["math", "two"].difference.num_items == 2
    assert contrasts["math", "two"].difference.mean == 0
    apart = measured(np.array([1]), ids=["z"])
    assert compare({"math": {"one": first, "two": apart}}, "one") == {}
    assert compare({"math": {"two": second}}, "one") == {}


def test_other_questions_under_the_same_ids_are_refused() -> None:
    first = measured(np.array([0, 1, 1]), ids=["a", "b", "c"])
    other = replace(first, digests=["1", "2", "3"])
    same = replace(first, ids=["c", "b", "z"], digests=["3", "2", "9"])
    assert compare({"math": {"one": other, "two": same}}, "one")["math", "two"]
    changed = replace(first, digests=["1", "x", "y"])
    with pytest.raises(ValueError, match=r"math: one and two have .* for 2 of 3 .* is 'b'"):
        compare({"math": {"one": other, "two": changed}}, "one")


def test_several_samples_are_compared_by_a_paired_t_test() -> None:
    rng = np.random.default_rng(3)
    first = rng.random(200)
    second = first + 0.1 + rng.normal(0, 0.1, 200)
    contrasts = compare(
        {"m": {"a": measured(first, single=False), "b": measured(second, single=False)}}, "a"
    )
    assert contrasts["m", "b"].p_value == pytest.approx(
        stats.ttest_rel(second, first).pvalue, rel=0.5
    )
    low, high = contrasts["m", "b"].difference.interval
    assert low < 0.1 < high


def test_predictions_are_read_as_means_over_samples(tmp_path: Path) -> None:
    def prediction(item: str, sample: int, verdict: str, score: float) -> Prediction:
        reason = "length" if verdict == "truncated" else "stop"
        return Prediction(
            item,
            "d",
            sample,
            "s",
            "p",
            0,
            "r",
            "g",
            reason,
            1,
            verdict,
            None,
            {"similarity": score},
        )

    path = tmp_path / "p.parquet"
    rows = [
        prediction("a", 0, "correct", 1.0),
        prediction("a", 1, "truncated", 0.5),
        prediction("b", 0, "no_answer", 0.0),
        prediction("b", 1, "grader_error", 0.2),
    ]
    write_predictions(rows, path)
    predictions = read_predictions(path, "avg")
    assert (predictions.ids, predictions.values.tolist(), predictions.single) == (
        ["a", "b"],
        [0.5, 0.0],
        None,
    )
    quarters = dict.fromkeys(("truncated", "no answer", "grader error"), 0.25)
    assert predictions.rates == quarters | {"prompt too long": 0}
    assert predictions.digests == ["d", "d"]
    assert read_predictions(path, "similarity").values.tolist() == [0.75, 0.1]
    write_predictions(rows[::2], path)
    single = read_predictions(path, "avg").single
    assert single is not None
    assert single.tolist() == [True, False]
    assert read_predictions(path, "similarity").single is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_no_numbers_are_refused_with_their_file(tmp_path: Path, bad: float) -> None:
    predictions, losses = tmp_path / "p.parquet", tmp_path / "l.parquet"
    row = Prediction(
        "a", "d", 0, "s", "p", 0, "r", "g", "stop", 1, "correct", None, {"similarity": bad}
    )
    write_predictions([row], predictions)
    with pytest.raises(ValueError, match=r"p\.parquet: the value of item a is (nan|inf)"):
        read_predictions(predictions, "similarity")
    write_losses([RowLoss(0, bad, 0, 1, 2, 1, 5, 1)], losses)
    with pytest.raises(ValueError, match=r"l\.parquet: the value of item 0/5 is (nan|inf)"):
        read_heldout(losses)
