"""Tasks of lm-evaluation-harness, the library's real code on local rows and a tiny model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from deft.evaluators.benchmarks.catalog import get_benchmark
from deft.evaluators.benchmarks.definition import definition_digest
from deft.evaluators.benchmarks.items import read_items
from deft.evaluators.generation.actor import Evaluator
from deft.evaluators.harness import tasks as harness_tasks_module
from deft.evaluators.scores.comparison import different_conditions, read_predictions
from deft.evaluators.spec import EvaluationSpec
from helpers import evaluation_job


def test_scores_are_those_of_the_library_s_own_model(
    evaluator: Evaluator,
    model_paths: dict[str, str],
    harness_tasks: dict[str, str],
    tmp_path: Path,
) -> None:
    path, name = model_paths["undecided"], harness_tasks["own_group"]
    one = evaluation_job(path, tmp_path, name=name, size=10, num_fewshot=2)
    result = evaluator.run(one)
    folder = Path(name.removeprefix("lm_eval:")).parent
    theirs = simple_evaluate(
        model=HFLM(pretrained=path, dtype="float32", device="cpu", batch_size=1),
        tasks=["own_choice", "own_text"],
        num_fewshot=2,
        limit=5,
        bootstrap_iters=0,
        task_manager=TaskManager(include_defaults=False, include_path=folder),
    )
    assert theirs is not None
    rows = {row["id"]: row for row in pq.read_table(one.predictions).to_pylist()}
    assert len(rows) == 10
    for sample in theirs["samples"]["own_choice"]:
        row = rows[f"own_choice/{sample['doc_id']}"]
        assert row["prompt"] == sample["arguments"][0][0]
        logps = [answer[0] for (answer,) in sample["resps"]]
        best = sample["doc"]["choices"][logps.index(max(logps))]
        assert row["response"] == best
        assert dict(row["scores"]) == {"acc": sample["acc"], "acc_norm": sample["acc_norm"]}
        assert (row["verdict"] == "correct") == (sample["acc_norm"] == 1)
    for sample in theirs["samples"]["own_text"]:
        row = rows[f"own_text/{sample['doc_id']}"]
        assert row["response"] == sample["resps"][0][0]
        assert dict(row["scores"]) == {"exact_match": sample["exact_match"]}
    expected = theirs["results"]["own_choice"]["acc_norm,none"]
    assert result.metrics["own_choice/avg_at_1"] == pytest.approx(expected)
    assert result.metrics["num_items"] == 10
    assert result.prompt.style == "lm_eval"


def test_shards_and_resumed_jobs_give_what_one_job_gives(
    evaluator: Evaluator,
    model_paths: dict[str, str],
    harness_tasks: dict[str, str],
    tmp_path: Path,
) -> None:
    """Examples in a prompt and drawn tokens do not depend on how the work was spread."""
    settings = {"name": harness_tasks["own_group"], "num_fewshot": 1}
    whole = evaluation_job(model_paths["undecided"], tmp_path / "whole", **settings)
    expected = evaluator.run(whole)
    parts = evaluation_job(model_paths["undecided"], tmp_path / "parts", **settings)
    results = [evaluator.run(replace(parts, shard=n, num_shards=2)) for n in range(2)]
    assert sum(result.num_generated for result in results) == expected.num_generated == 9 * 3 + 9
    merged = evaluator.run(replace(parts, num_merged=2))
    assert (merged.num_generated, merged.metrics) == (0, expected.metrics)
    assert pq.read_table(parts.predictions).equals(pq.read_table(whole.predictions))
    assert [path.name for path in parts.responses.parent.iterdir()] == [parts.responses.name]

    lines = whole.responses.read_text().splitlines()
    whole.responses.write_text("\n".join(lines[:20]) + '\n{"id": "own_')
    resumed = evaluator.run(whole)
    assert (resumed.num_resumed, resumed.num_generated) == (20, 16)
    assert resumed.metrics == expected.metrics


def test_chat_template_is_used_where_it_is_asked_for(
    evaluator: Evaluator,
    model_paths: dict[str, str],
    harness_tasks: dict[str, str],
    tmp_path: Path,
) -> None:
    name = harness_tasks["own_text"]
    plain, chat = (
        evaluation_job(
            model_paths["first"], tmp_path / str(style), name=name, size=2, prompt_style=style
        )
        for style in (None, "chat")
    )
    evaluator.run(plain)
    result = evaluator.run(chat)
    assert result.prompt.style == "chat"
    prompts = pq.read_table(chat.predictions).column("prompt").to_pylist()
    assert prompts[0].startswith("<|im_start|>")
    tables = [read_predictions(each.predictions, "avg") for each in (plain, chat)]
    assert different_conditions(*(table.conditions for table in tables)) == [
        "prompt style (lm_eval / chat)"
    ]
    assert tables[0].conditions["lm_eval"] == "0.4.13"
    assert tables[0].conditions["task version"] == "1.0"


def test_items_are_the_questions_without_examples(
    harness_tasks: dict[str, str], tmp_path: Path
) -> None:
    one = evaluation_job("nowhere", tmp_path, name=harness_tasks["own_choice"], num_fewshot=3)
    first, second, *_ = read_items(Path(one.items))
    assert (first.id, first.question, first.gold) == ("0", "0 + 0 = ", "A")
    assert (second.gold, second.options) == ("B", {"A": "2", "B": "11", "C": "none"})


def test_a_changed_task_is_another_benchmark(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    digests = set()
    for version in (1, 2):
        file.write_text(f"task: mine\nmetadata: {{version: {version}}}\n")
        digests.add(definition_digest(get_benchmark(f"lm_eval:{file}")))
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("benchmark", "message"),
    [
        ("lm_eval:arc_chalenge", r"no such task; did you mean lm_eval:arc_challenge\?"),
        ("lm_eval:humaneval_instruct", "runs code that the model writes"),
        ("lm_eval:nowhere.yaml", "there is no file .*nowhere.yaml"),
        ({"name": "lm_eval:ifeval", "samples": 4}, "samples: lm_eval:ifeval sets it itself"),
        ({"name": "lm_eval:ifeval", "prompt_style": "qwen-boxed"}, "plain text, or in the model"),
        ({"name": "gsm8k", "num_fewshot": 2}, "num_fewshot: only lm_eval:TASK takes it"),
    ],
)
def test_what_cannot_be_asked_is_refused(benchmark: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvaluationSpec.model_validate({"benchmarks": [benchmark]})


@pytest.mark.parametrize(
    ("task", "several"),
    [
        ("mmlu", True),
        ("mmlu_astronomy", False),
        ("arc_challenge", False),
        ("gpqa_diamond_zeroshot", False),
        ("ifeval", False),
        ("hellaswag", False),
    ],
)
def test_tasks_of_the_field_are_known_by_their_names(task: str, several: bool) -> None:
    benchmark = get_benchmark(f"lm_eval:{task}")
    assert (benchmark.name, benchmark.several_sources) == (f"lm_eval:{task}", several)


def test_a_missing_library_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness_tasks_module, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"is not installed; .* pip install 'lm_eval\[ifeval\]"):
        get_benchmark("lm_eval:arc_challenge")
