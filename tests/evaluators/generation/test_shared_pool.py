"""Engines lent to several runs at once, on a real Ray cluster."""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import ray
from ray.util import placement_group_table

from deft.evaluators.benchmarks.items import prepare_items
from deft.evaluators.generation.actor import Evaluator
from deft.evaluators.generation.job import EvaluationJob
from deft.evaluators.generation.shared_pool import SharedPool
from deft.evaluators.spec import BenchmarkSpec, EngineSpec


def evaluators() -> int:
    """Count the evaluator actors of this session's cluster that are alive."""
    num_evaluators = 0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            num_evaluators += "ray::Evaluator" in " ".join(process.cmdline())
    return num_evaluators


def test_runs_share_one_engine_which_takes_no_devices(
    ray_cluster: None, model_paths: dict[str, str], tmp_path: Path
) -> None:
    benchmark = BenchmarkSpec.model_validate({"name": "figfont", "size": 4, "max_tokens": 8})
    items = prepare_items(benchmark, None, tmp_path / "cache")
    spec = EngineSpec(type="transformers", cpus=1)
    groups = len(placement_group_table())
    free = ray.available_resources()

    def evaluate(pool: SharedPool, model: str) -> tuple[list[str], list[str]]:
        out = tmp_path / model
        jobs = [
            EvaluationJob(label, model_paths[model], benchmark, str(items), "chat", str(out))
            for label in ("base", "eval")
        ]
        done = list(pool.run(jobs))
        tables = [pq.read_table(job.predictions).to_pydict()["response"] for job, _ in done]
        return tables[0], tables[1]

    with SharedPool(spec, 1, use_gpu=False, reserve=False) as pool:
        with ThreadPoolExecutor() as threads:
            results = dict(
                zip(
                    ("first", "second"),
                    threads.map(lambda model: evaluate(pool, model), ("first", "second")),
                    strict=True,
                )
            )
        assert evaluators() == 1
        assert len(placement_group_table()) == groups
        assert ray.available_resources()["CPU"] == free["CPU"]
    for base, trained in results.values():
        assert base == trained
        assert any(base)
    assert results["first"] != results["second"]
    deadline = time.monotonic() + 60
    while evaluators() > 0:
        assert time.monotonic() < deadline, "an engine is left over"
        time.sleep(0.1)


def test_idle_engines_share_a_benchmark(
    ray_cluster: None, model_paths: dict[str, str], tmp_path: Path
) -> None:
    settings = {"name": "figfont", "size": 16, "samples": 8, "max_tokens": 2}
    benchmark = BenchmarkSpec.model_validate(settings)
    items = prepare_items(benchmark, None, tmp_path / "cache")
    spec = EngineSpec(type="transformers", cpus=1, batch_invariant=True)
    cut, uncut = (
        EvaluationJob("eval", model_paths["first"], benchmark, str(items), "chat", str(out))
        for out in (tmp_path / "cut", tmp_path / "uncut")
    )
    with SharedPool(spec, 2, use_gpu=False, reserve=False) as pool:
        ((done, result),) = pool.run([cut])
        assert evaluators() == 2
    assert done == cut
    assert result.num_generated == 128
    assert result.metrics == Evaluator(spec).run(uncut).metrics
    rows, expected = (pq.read_table(job.predictions).to_pylist() for job in (cut, uncut))
    assert [row for row in rows if row not in expected] == []
    assert cut.predictions.read_bytes() == uncut.predictions.read_bytes()
