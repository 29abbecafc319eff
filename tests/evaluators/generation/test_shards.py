"""A benchmark in shards gives what it gives in one piece, byte for byte."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deft.evaluators.benchmarks.items import prepare_items
from deft.evaluators.generation import shards as shards_module
from deft.evaluators.generation.actor import Evaluator
from deft.evaluators.generation.job import EvaluationJob, JobResult
from deft.evaluators.generation.shards import ShardedJobs, cut
from deft.evaluators.spec import BenchmarkSpec, EngineSpec

SIZE, SAMPLES = 7, 2


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    # One response after the other: what else is in a batch does not even change rounding.
    return Evaluator(EngineSpec(type="transformers", batch_invariant=True))


@pytest.fixture
def job(model_paths: dict[str, str], tmp_path: Path) -> EvaluationJob:
    benchmark = {"name": "figfont", "size": SIZE, "samples": SAMPLES, "max_tokens": 8}
    spec = BenchmarkSpec.model_validate(benchmark)
    items = str(prepare_items(spec, None, tmp_path / "cache"))
    return EvaluationJob("eval", model_paths["first"], spec, items, "chat", str(tmp_path / "cut"))


def run_all(evaluator: Evaluator, sharded: ShardedJobs) -> list[tuple[EvaluationJob, JobResult]]:
    done = []
    while sharded.pending:
        one = sharded.pending.pop(0)
        whole = sharded.add(one, evaluator.run(one))
        if whole is not None:
            done.append(whole)
    return done


def test_shards_put_together_are_the_uncut_benchmark(
    evaluator: Evaluator, job: EvaluationJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards_module, "MIN_RESPONSES", 2)
    uncut = replace(job, out=str(tmp_path / "uncut"))
    expected = evaluator.run(uncut)
    sharded = ShardedJobs([job], num_engines=3)
    assert [shard.num_shards for shard in sharded.pending] == [3, 3, 3]
    ((done, result),) = run_all(evaluator, sharded)
    assert done == job
    assert job.predictions.read_bytes() == uncut.predictions.read_bytes()
    assert result.metrics == expected.metrics
    assert result.prompt == expected.prompt
    assert (result.num_generated, result.num_resumed) == (SIZE * SAMPLES, 0)
    # One journal is left, and nothing beside it.
    (journal,) = job.responses.parent.iterdir()
    lines = sorted(uncut.responses.read_text().splitlines())
    assert sorted(journal.read_text().splitlines()) == lines


def test_what_shards_have_generated_is_kept_whatever_the_next_cut(
    evaluator: Evaluator, job: EvaluationJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed with one of three shards done and one in the middle; then on one or two engines."""
    monkeypatch.setattr(shards_module, "MIN_RESPONSES", 2)
    uncut = replace(job, out=str(tmp_path / "uncut"))
    evaluator.run(uncut)
    for num_engines in (1, 2):
        again = replace(job, out=str(tmp_path / str(num_engines)))
        first, second, _ = ShardedJobs([again], num_engines=3).pending
        kept = sum(evaluator.run(shard).num_generated for shard in (first, second)) - 1
        lines = second.journal.read_text().splitlines()
        second.journal.write_text("\n".join(lines[:-1]) + '\n{"id": "3", "sam')
        ((_, result),) = run_all(evaluator, ShardedJobs([again], num_engines))
        assert (result.num_generated, result.num_resumed) == (SIZE * SAMPLES - kept, kept)
        assert again.predictions.read_bytes() == uncut.predictions.read_bytes()


def test_no_shard_is_more_than_an_engine_s_share(job: EvaluationJob) -> None:
    def sized(samples: int, **settings: Any) -> EvaluationJob:
        spec = job.benchmark.model_copy(update={"samples": samples, **settings})
        return replace(job, benchmark=spec)

    small, large = sized(1), sized(1000)
    for jobs, num_engines, expected in [
        ([large], 1, [1]),
        ([large], 4, [4]),
        ([small], 4, [1]),
        ([small, large], 4, [1, 4]),
        ([large, large], 4, [2, 2]),
        ([large, large, large], 2, [1, 1, 1]),
        # Its items are fewer than the engines.
        ([large], 64, [SIZE]),
    ]:
        assert [len(shards) for shards in cut(jobs, num_engines)] == expected
