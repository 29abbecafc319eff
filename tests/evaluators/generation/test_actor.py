"""The evaluator in this process, on the engine of transformers: what it leaves and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

from deft.evaluators.benchmarks.catalog import get_benchmark
from deft.evaluators.benchmarks.items import read_items
from deft.evaluators.generation.actor import Evaluator
from deft.evaluators.generation.journal import Response, ResponseJournal
from deft.evaluators.generation.prompts import encode_item
from deft.evaluators.scores.comparison import different_conditions, read_predictions
from deft.evaluators.scores.second_opinions import read_second_opinions
from helpers import evaluation_job

BENCHMARK = """
from dataclasses import replace
from deft.evaluators.benchmarks.chain_sum import CHAIN_SUM

def grade(record):
    raise LookupError(f"nothing for {record['gold']}")

own = replace(CHAIN_SUM, name="own", grader="failing_benchmark:grade")
"""


def test_most_likely_option_is_that_of_the_logits(
    evaluator: Evaluator, model_paths: dict[str, str], tiny_tokenizer: Any, tmp_path: Path
) -> None:
    """Only letters of the item's own options can be answered, and the likeliest one is."""
    rows = [
        {"question": f"{n}?", "options": dict.fromkeys("ABCDE"[: 2 + n], "x"), "answer_idx": "B"}
        for n in range(4)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    path, file = model_paths["first"], str(tmp_path / "rows.jsonl")
    one = evaluation_job(path, tmp_path, name="medical_likelihood", file=file)
    result = evaluator.run(one)
    table = pq.read_table(one.predictions).to_pydict()
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    benchmark = get_benchmark("medical_likelihood")
    for item, response in zip(read_items(Path(one.items)), table["response"], strict=True):
        prompt = encode_item(tiny_tokenizer, item, benchmark, "chat")
        with torch.no_grad():
            logits = model(torch.tensor([prompt])).logits[0, -1]
        assert item.options is not None
        scores = {
            letter: float(logits[tiny_tokenizer.convert_tokens_to_ids(letter)])
            for letter in item.options
        }
        assert response == max(scores, key=scores.__getitem__)
    right = [response == "B" for response in table["response"]]
    assert [verdict == "correct" for verdict in table["verdict"]] == right
    assert set(table["finish_reason"]) == {"stop"}
    assert result.metrics["no_answer_rate"] == result.metrics["truncated_rate"] == 0


def test_tables_hold_what_a_comparison_must_know(
    evaluator: Evaluator, model_paths: dict[str, str], tmp_path: Path
) -> None:
    settings = {"name": "chain_sum", "size": 3}
    jobs = [
        evaluation_job(model_paths["first"], tmp_path / str(limit), **settings, max_tokens=limit)
        for limit in (2, 3)
    ]
    for one in jobs:
        evaluator.run(one)
    first, second = (read_predictions(one.predictions, "avg") for one in jobs)
    assert first.digests == [item.digest for item in read_items(Path(jobs[0].items))]
    assert len(set(first.digests)) == 3
    assert different_conditions(first.conditions, second.conditions) == ["max_tokens (2 / 3)"]


def test_math_is_graded_by_a_second_grader_as_well(
    evaluator: Evaluator, model_paths: dict[str, str], tmp_path: Path
) -> None:
    """Responses that the journal holds are graded without being generated again."""
    rows = [{"question": f"1 + {n}?", "answer": f"#### {n + 1}"} for n in range(3)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    file = str(tmp_path / "rows.jsonl")
    one = evaluation_job(model_paths["first"], tmp_path, name="gsm8k", file=file)
    texts = ["It is $\\boxed{1}$.", "$x = 2$\n\nCheck: $2 + 8 = 10$", "No idea."]
    with ResponseJournal(one.responses) as journal:
        for item, text in zip(read_items(Path(one.items)), texts, strict=True):
            journal.append(Response(item.id, 0, text, item.gold, None, "stop", 3, item.question))
    result = evaluator.run(one)
    assert (result.num_generated, result.num_resumed) == (0, 3)
    table = pq.read_table(one.predictions).to_pydict()
    assert table["verdict"] == ["correct", "correct", "no_answer"]
    assert table["second_verdict"] == ["correct", "wrong", "no_answer"]
    assert result.metrics["disagreement_rate"] == pytest.approx(1 / 3)
    opinions = read_second_opinions(one.predictions)
    assert opinions.num_compared == 3
    assert [(d.gold, d.verdict, d.second_verdict) for d in opinions.disagreements] == [
        ("2", "correct", "wrong")
    ]


def test_grader_that_fails_on_all_responses_ends_the_evaluation(
    evaluator: Evaluator,
    model_paths: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "failing_benchmark.py").write_text(BENCHMARK)
    monkeypatch.syspath_prepend(tmp_path)
    one = evaluation_job(
        model_paths["first"], tmp_path, name="failing_benchmark:own", size=2, max_tokens=2
    )
    with pytest.raises(ValueError, match=r"own: the grader .* all 2 responses: LookupError: noth"):
        evaluator.run(one)
    assert not one.predictions.exists()
    # Nothing is generated again when the grader has been mended.
    assert one.responses.read_bytes().count(b"\n") == 2
