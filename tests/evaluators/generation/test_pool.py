"""Evaluators on a real Ray cluster with real vLLM engines, against decoding by transformers.

All tests but the last share one pool, whose engines are swapped and restarted as they go.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import ray
import torch
from ray.util.queue import Queue
from transformers import AutoModelForCausalLM

from deft.evaluators.benchmarks.catalog import BENCHMARKS
from deft.evaluators.benchmarks.items import prepare_items, read_items
from deft.evaluators.generation import pool as pool_module
from deft.evaluators.generation.actor import Evaluator
from deft.evaluators.generation.job import EvaluationJob, JobResult
from deft.evaluators.generation.pool import EvaluatorPool
from deft.evaluators.generation.prompts import encode_item
from deft.evaluators.spec import BenchmarkSpec, EngineSpec
from helpers import wait_until

SIZE, MAX_TOKENS = 6, 8
FIGFONT = {"name": "figfont", "size": SIZE, "max_tokens": MAX_TOKENS}


def processes(*names: str) -> list[psutil.Process]:
    """List this session's cluster processes whose command line holds one of ``names``."""
    processes = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if any(name in " ".join(process.cmdline()) for name in names):
                processes.append(process)
    return processes


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("cache")
    return prepare_items(BenchmarkSpec.model_validate(FIGFONT), None, cache)


@pytest.fixture(scope="module")
def prompts(items: Path, tiny_tokenizer: Any) -> list[list[int]]:
    figfont = BENCHMARKS["figfont"]
    return [encode_item(tiny_tokenizer, item, figfont, "chat") for item in read_items(items)]


@pytest.fixture(scope="module")
def pool(ray_cluster: None, prompts: list[list[int]]) -> Iterator[EvaluatorPool]:
    # The context ends where the longest prompt does, so that one item cannot be asked.
    spec = EngineSpec(max_model_len=max(map(len, prompts)), kv_cache_gib=0.25, cpus=1)
    with EvaluatorPool(spec, use_gpu=False) as pool:
        yield pool


def job(items: Path, model: str, out: Path, label: str = "tiny", **settings: Any) -> EvaluationJob:
    spec = BenchmarkSpec.model_validate({**FIGFONT, **settings})
    return EvaluationJob(label, model, spec, str(items), "chat", str(out))


def run(
    pool: EvaluatorPool, *jobs: EvaluationJob, progress: Queue | None = None
) -> list[tuple[JobResult, dict[str, list[Any]]]]:
    """Return the result of each job, and its table, in the order of ``jobs``."""
    done = dict(pool.run(jobs, progress))
    return [(done[job], pq.read_table(job.predictions).to_pydict()) for job in jobs]


def greedy_responses(model_path: str, tokenizer: Any, prompts: list[list[int]]) -> list[str]:
    """Generate with transformers, one prompt at a time; nothing for the longest prompt."""
    model: Any = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    longest = max(map(len, prompts))
    responses = []
    for prompt in prompts:
        room = min(MAX_TOKENS, longest - len(prompt))
        if room == 0:
            responses.append("")
            continue
        ids = torch.tensor([prompt])
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=room, do_sample=False
        )
        responses.append(tokenizer.decode(output[0, len(prompt) :], skip_special_tokens=True))
    return responses


def test_warm_engine_answers_like_transformers(
    pool: EvaluatorPool,
    items: Path,
    model_paths: dict[str, str],
    tiny_tokenizer: Any,
    prompts: list[list[int]],
    tmp_path: Path,
) -> None:
    """Weights that are swapped in answer as an engine of their own does, and back again."""
    progress = Queue()
    answers = {}
    for number, (model, how) in enumerate(
        [
            ("first", "started"),
            ("second", "swapped"),
            ("first", "swapped"),
            ("first untied", "started"),
            ("second untied", "swapped"),
            ("second", "started"),
        ]
    ):
        one = job(items, model_paths[model], tmp_path / str(number))
        ((result, rows),) = run(pool, one, progress=progress)
        events = progress.get_nowait_batch(progress.qsize())
        assert [event["how"] for event in events if event["event"] == "engine_ready"] == [how]
        expected = greedy_responses(model_paths[model], tiny_tokenizer, prompts)
        assert rows["response"] == expected, (model, how)
        answers[model] = expected
    assert len(set(map(tuple, answers.values()))) == 4
    progress.shutdown()

    metrics = result.metrics
    assert metrics["num_items"] == SIZE
    assert metrics["prompt_too_long_rate"] == 1 / SIZE
    assert metrics["truncated_rate"] == rows["finish_reason"].count("length") / SIZE > 0
    asked = read_items(items)
    assert rows["id"] == [item.id for item in asked]
    assert rows["gold"] == [item.gold for item in asked]
    assert rows["prompt"] == [tiny_tokenizer.decode(prompt) for prompt in prompts]
    assert set(rows["num_bos"]) == {0}
    scores = [dict(row).get("jaro_winkler", 0.0) for row in rows["scores"]]
    assert metrics["jaro_winkler"] == pytest.approx(sum(scores) / SIZE)
    assert result.prompt.style == "chat"
    assert set(result.prompt.stop.token_ids) == {0, tiny_tokenizer.eos_token_id}


def test_most_likely_option_is_that_of_transformers(
    pool: EvaluatorPool, model_paths: dict[str, str], tmp_path: Path
) -> None:
    rows = [
        {"question": f"{n}?", "options": dict.fromkeys("ABCDE"[: 2 + n], "x"), "answer_idx": "B"}
        for n in range(4)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    spec = BenchmarkSpec.model_validate(
        {"name": "medical_likelihood", "file": str(tmp_path / "rows.jsonl")}
    )
    items = str(prepare_items(spec, None, tmp_path / "cache"))
    ours, theirs = (
        EvaluationJob("tiny", model_paths["first"], spec, items, "chat", str(tmp_path / engine))
        for engine in ("vllm", "transformers")
    )
    ((_, table),) = run(pool, ours)
    Evaluator(EngineSpec(type="transformers")).run(theirs)
    assert table["response"] == pq.read_table(theirs.predictions)["response"].to_pylist()
    assert set(table["response"]) <= set("ABCDE")


def test_tasks_of_lm_evaluation_harness_are_scored_like_by_transformers(
    pool: EvaluatorPool,
    model_paths: dict[str, str],
    harness_tasks: dict[str, str],
    tmp_path: Path,
) -> None:
    spec = BenchmarkSpec.model_validate({"name": harness_tasks["own_group"], "num_fewshot": 1})
    items = str(prepare_items(spec, None, tmp_path / "cache"))
    ours, theirs = (
        EvaluationJob("tiny", model_paths["first"], spec, items, "chat", str(tmp_path / engine))
        for engine in ("vllm", "transformers")
    )
    ((result, table),) = run(pool, ours)
    expected = Evaluator(EngineSpec(type="transformers")).run(theirs)
    assert table == pq.read_table(theirs.predictions).to_pydict()
    assert result.metrics == expected.metrics
    scored, reference = (
        [json.loads(line) for line in each.responses.read_text().splitlines()]
        for each in (ours, theirs)
    )
    by_key = {(row["id"], row["sample"]): row["response"] for row in reference}
    for row in scored:
        theirs_said = by_key[row["id"], row["sample"]]
        if row["id"].startswith("own_choice"):
            logp, is_greedy = json.loads(row["response"])
            their_logp, they_are_greedy = json.loads(theirs_said)
            assert logp == pytest.approx(their_logp, abs=1e-3)
            assert is_greedy == they_are_greedy
        else:
            assert row["response"] == theirs_said


def test_response_ends_at_eos(
    pool: EvaluatorPool, items: Path, model_paths: dict[str, str], tmp_path: Path
) -> None:
    ((result, rows),) = run(pool, job(items, model_paths["silent"], tmp_path))
    asked = SIZE - rows["finish_reason"].count("prompt_too_long")
    assert rows["response"] == [""] * SIZE
    assert rows["finish_reason"].count("stop") == rows["n_tokens"].count(1) == asked == SIZE - 1
    assert result.metrics["no_answer_rate"] == asked / SIZE
    assert result.metrics["truncated_rate"] == result.metrics["jaro_winkler"] == 0


def reordered(items: Path, path: Path, rows: slice) -> Path:
    lines = items.read_text().splitlines()[rows]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("settings", [{}, {"samples": 3, "seed": 5}], ids=["greedy", "sampled"])
def test_responses_do_not_depend_on_order_nor_on_the_actor(
    pool: EvaluatorPool,
    items: Path,
    model_paths: dict[str, str],
    tmp_path: Path,
    settings: dict[str, Any],
) -> None:
    """All at once on one engine; then backwards, split over two."""
    model = model_paths["first"]
    ((_, rows),) = run(pool, job(items, model, tmp_path / "whole", **settings))
    whole = dict(zip(zip(rows["id"], rows["sample"], strict=True), rows["response"], strict=True))

    cuts = {"back": slice(None, 2, -1), "front": slice(2, None, -1)}
    files = {name: reordered(items, tmp_path / name, cut) for name, cut in cuts.items()}
    jobs = [
        job(file, model, tmp_path / f"{name} out", label=name, **settings)
        for name, file in files.items()
    ]
    parts: dict[Any, str] = {}
    for _, rows in run(pool, *jobs):
        keys = zip(rows["id"], rows["sample"], strict=True)
        parts |= dict(zip(keys, rows["response"], strict=True))
    assert parts == whole
    assert len(processes("ray::Evaluator")) == 2
    if settings:
        other = job(items, model, tmp_path / "other", samples=3, seed=6)
        ((_, rows),) = run(pool, other)
        assert rows["response"] != list(whole.values())
        per_item = [set(rows["response"][i : i + 3]) for i in range(0, len(rows["id"]), 3)]
        assert max(map(len, per_item)) == 3


def test_responses_that_are_there_are_not_generated_again(
    pool: EvaluatorPool, items: Path, model_paths: dict[str, str], tmp_path: Path
) -> None:
    one = job(items, model_paths["first"], tmp_path, samples=2)
    ((first, rows),) = run(pool, one)
    assert (first.num_generated, first.num_resumed) == (2 * SIZE, 0)
    lines = one.responses.read_text().splitlines()
    forged = {**json.loads(lines[0]), "response": "FORGED"}
    one.responses.write_text("\n".join([json.dumps(forged), *lines[1:5]]) + "\n")
    ((second, again),) = run(pool, one)
    assert (second.num_generated, second.num_resumed) == (2 * SIZE - 5, 5)
    key = list(zip(again["id"], again["sample"], strict=True)).index(
        (forged["id"], forged["sample"])
    )
    assert again["response"][key] == "FORGED"
    del again["response"][key], rows["response"][key]
    assert again["response"] == rows["response"]
    # Other sampling is another journal.
    ((third, _),) = run(pool, job(items, model_paths["first"], tmp_path, samples=2, seed=1))
    assert third.num_resumed == 0


def test_progress_is_announced(
    pool: EvaluatorPool, items: Path, model_paths: dict[str, str], tmp_path: Path
) -> None:
    progress = Queue()
    run(pool, job(items, model_paths["second"], tmp_path), progress=progress)
    events = progress.get_nowait_batch(progress.qsize())
    progress.shutdown()
    counts = [event for event in events if event["event"] == "eval_progress"]
    done = [count.pop("done") for count in counts]
    common = {"event": "eval_progress", "model": "tiny", "benchmark": "figfont", "total": SIZE}
    assert all(count == common for count in counts)
    assert done == list(range(SIZE + 1))


def test_bad_models_are_standard_errors_and_leave_the_pool_usable(
    pool: EvaluatorPool, items: Path, model_paths: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match="no model directory"):
        run(pool, job(items, str(tmp_path), tmp_path / "out"))
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in Path(model_paths["first"]).iterdir():
        if file.suffix != ".safetensors":
            (broken / file.name).write_bytes(file.read_bytes())
    with pytest.raises(FileNotFoundError, match="no weights"):
        run(pool, job(items, str(broken), tmp_path / "out"))
    config = json.loads((Path(model_paths["first"]) / "config.json").read_text())
    config["architectures"] = ["NobodyForCausalLM"]
    weights = Path(model_paths["first"], "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights)
    (broken / "config.json").write_text(json.dumps({**config, "model_type": "nobody"}))
    with pytest.raises((RuntimeError, ValueError), match="nobody"):
        run(pool, job(items, str(broken), tmp_path / "out"))
    ((result, _),) = run(pool, job(items, model_paths["first"], tmp_path / "out"))
    assert result.num_generated == SIZE


@pytest.mark.parametrize(
    "blow", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)]
)
def test_killed_actor_loses_nothing_and_leaves_nothing_behind(
    ray_cluster: None,
    items: Path,
    model_paths: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    blow: signal.Signals,
    fault: Callable[..., None],
) -> None:
    """In the middle of a benchmark: what is missing, and only that, is generated again.

    An actor that is stopped does not die; it only responds no more.
    """
    if blow == signal.SIGSTOP:
        monkeypatch.setattr(pool_module, "POLL_SECONDS", 1.0)
        monkeypatch.setattr(pool_module, "HUNG_ENGINE_SECONDS", 60.0)
    kinds = ("ray::Evaluator", "deft.evaluators.grading.sandbox.worker")
    before = set(processes(*kinds))
    started: set[psutil.Process] = set()
    progress = Queue()
    one = job(items, model_paths["first"], tmp_path, samples=15, max_tokens=60)
    total = 15 * SIZE
    killed: list[list[str]] = []
    pauses: list[float] = []

    def kill_half_way() -> None:
        wait_until(
            lambda: one.responses.exists() and one.responses.read_bytes().count(b"\n") > 10,
            seconds=240,
        )
        started.update(set(processes(*kinds)) - before)
        (process,) = set(processes("ray::Evaluator")) - before
        os.kill(process.pid, blow)
        at = time.monotonic()
        killed.append(one.responses.read_text().splitlines())
        wait_until(lambda: one.responses.read_bytes().count(b"\n") > len(killed[0]), seconds=240)
        pauses.append(time.monotonic() - at)

    # One response after the other, so that there is a middle.
    spec = EngineSpec(batch_invariant=True, kv_cache_gib=0.25, cpus=1, max_model_len=1024)
    killer = threading.Thread(target=kill_half_way)
    killer.start()
    with EvaluatorPool(spec, use_gpu=False, max_engines=1) as pool:
        ((result, rows),) = run(pool, one, progress=progress)
        events = [event["event"] for event in progress.get_nowait_batch(progress.qsize())]
        assert events.count("evaluator_died") == 1
        killer.join()
        started.update(set(processes(*kinds)) - before)
        resources = ray.available_resources()["CPU"]
    (seen,) = killed
    assert 10 < len(seen) < total
    assert one.responses.read_text().splitlines()[: len(seen)] == seen
    assert result.num_resumed >= len(seen)
    assert result.num_generated == total - result.num_resumed
    assert len(set(zip(rows["id"], rows["sample"], strict=True))) == total

    wait_until(lambda: ray.available_resources()["CPU"] == resources + 1)
    # Two actors, and the graders that each had started.
    assert len(started) >= 4
    wait_until(lambda: not any(process.is_running() for process in started))
    fault(
        "kill -9 of an evaluation actor"
        if blow == signal.SIGKILL
        else "an evaluation actor hangs (SIGSTOP; given 60 s, an hour by default)",
        "another takes its devices and generates what is missing",
        seconds=pauses[0],
    )


def test_engine_that_no_node_can_hold_is_refused(ray_cluster: None) -> None:
    with pytest.raises(ValueError, match="it needs 64 CPUs on one node"):
        EvaluatorPool(EngineSpec(cpus=64), use_gpu=False)
    with pytest.raises(ValueError, match="it needs 1 CPUs and 2 GPUs on one node"):
        EvaluatorPool(EngineSpec(tensor_parallel=2), use_gpu=True)


@pytest.mark.slow
def test_batch_invariant_engine_does_not_even_depend_on_rounding(
    ray_cluster: None, items: Path, model_paths: dict[str, str], tmp_path: Path
) -> None:
    """A model that hardly prefers any token: the last bit of a logit decides what it says."""
    spec = EngineSpec(batch_invariant=True, kv_cache_gib=0.25, cpus=1, max_model_len=1024)
    backwards = reordered(items, tmp_path / "backwards", slice(None, None, -1))
    results = []
    with EvaluatorPool(spec, use_gpu=False, max_engines=1) as pool:
        for file in (items, backwards):
            one = job(
                file,
                model_paths["undecided"],
                tmp_path / f"{file.stem} out",
                max_tokens=64,
                samples=2,
            )
            ((_, rows),) = run(pool, one)
            keys = zip(rows["id"], rows["sample"], strict=True)
            results.append(dict(zip(keys, rows["response"], strict=True)))
    assert results[0] == results[1]
    assert len(set(results[0].values())) > SIZE


@pytest.mark.slow
def test_model_that_two_processes_hold_answers_alike_and_leaves_none_behind(
    ray_cluster: None,
    items: Path,
    model_paths: dict[str, str],
    tiny_tokenizer: Any,
    prompts: list[list[int]],
    tmp_path: Path,
) -> None:
    """Tensor parallelism, on CPUs where there are no GPUs; a second model swaps into both."""
    length = max(map(len, prompts))
    spec = EngineSpec(tensor_parallel=2, kv_cache_gib=0.25, cpus=2, max_model_len=length)
    with EvaluatorPool(spec, use_gpu=False, max_engines=1) as pool:
        for model in ("first", "second"):
            ((_, rows),) = run(pool, job(items, model_paths[model], tmp_path / model))
            assert rows["response"] == greedy_responses(model_paths[model], tiny_tokenizer, prompts)
        assert len(processes("VLLM::Worker")) == 2
    wait_until(lambda: not processes("VLLM::Worker"))
