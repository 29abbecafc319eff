"""Benchmarks cut into shards, so that no engine idles while another has a whole one to do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from deft.evaluators.benchmarks.items import read_items
from deft.evaluators.generation.job import EvaluationJob, JobResult

MIN_RESPONSES = 64
"""Responses of a shard at least: an engine generates many at once in the time of a few."""


class ShardedJobs:
    """Jobs, cut into shards for a number of engines, and the results of those that are done.

    Whoever runs them takes them from `pending` and gives each result to `add`.
    """

    def __init__(self, jobs: Sequence[EvaluationJob], num_engines: int) -> None:
        self.pending = [shard for job in cut(jobs, num_engines) for shard in job]
        """What is to be run; `add` puts a job that joins shards at the front."""
        self._parts: dict[EvaluationJob, list[JobResult]] = {}

    def add(self, job: EvaluationJob, result: JobResult) -> tuple[EvaluationJob, JobResult] | None:
        """Take in what a job has returned; returns the uncut job and its result once it is done."""
        if job.num_merged:
            return job.whole, _add_up(result, self._parts.pop(job.whole))
        if job.num_shards == 1:
            return job, result
        parts = self._parts.setdefault(job.whole, [])
        parts.append(result)
        if len(parts) == job.num_shards:
            self.pending.insert(0, replace(job.whole, num_merged=job.num_shards))
        return None


def cut(jobs: Sequence[EvaluationJob], num_engines: int) -> list[list[EvaluationJob]]:
    """Cut each job into so many shards that none is more than an engine's share of all work.

    Work is measured in tokens that may be generated at most.
    """
    if num_engines == 1:
        return [[job] for job in jobs]
    num_items = [len(read_items(Path(job.items))) for job in jobs]
    tokens = [
        items * job.benchmark.samples * job.benchmark.max_tokens
        for items, job in zip(num_items, jobs, strict=True)
    ]
    share = sum(tokens) / num_engines
    shards = []
    for job, items, work in zip(jobs, num_items, tokens, strict=True):
        most = min(items, items * job.benchmark.samples // MIN_RESPONSES)
        number = max(1, min(most, math.ceil(work / share)))
        shards.append([replace(job, shard=shard, num_shards=number) for shard in range(number)])
    return shards


def _add_up(merged: JobResult, parts: Sequence[JobResult]) -> JobResult:
    return replace(
        merged,
        num_generated=sum(part.num_generated for part in parts),
        num_resumed=sum(part.num_resumed for part in parts),
        start_seconds=sum(part.start_seconds for part in parts),
        work_seconds=merged.work_seconds + sum(part.work_seconds for part in parts),
    )
