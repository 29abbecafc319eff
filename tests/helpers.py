"""Helpers that tests of several packages share, importable by `pythonpath` in pyproject.toml."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from deft.evaluators.generation.job import PromptRecord
from deft.evaluators.generation.prompts import Stops
from deft.platform.records.manifests import (
    BenchmarkOverlap,
    BenchmarkResult,
    EvaluateManifest,
    ModelResult,
    PrepareManifest,
    Timings,
    TrainManifest,
)
from deft.workers.data.prepare import Prepared, SourceCounts

ROOT = Path(__file__).resolve().parent.parent
"""The checkout."""
SHARED = ROOT.parent / "shared"
"""Data beside the checkout that some machines have; tests that read it skip where it is absent."""


def wait_until(
    condition: Callable[[], bool],
    what: str = "the condition",
    *,
    seconds: float = 60,
    process: subprocess.Popen[Any] | None = None,
) -> None:
    """Wait until ``condition`` holds; fail after ``seconds``, or when ``process`` has ended."""
    deadline = time.monotonic() + seconds
    while not condition():
        if process is not None:
            assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def free_ports(number: int) -> list[int]:
    """Return distinct ports of the loopback interface that nothing listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [bound.getsockname()[1] for bound in sockets]
    for bound in sockets:
        bound.close()
    return ports


def free_port() -> int:
    """Return a port of the loopback interface that nothing listens on."""
    return free_ports(1)[0]


def make_prepare_manifest(
    items: dict[str, str] | None = None,
    overlap: dict[str, BenchmarkOverlap] | None = None,
    **fields: Any,
) -> PrepareManifest:
    """Return what a prepare stage leaves; ``fields`` replaces fields of `Prepared`."""
    prepared = Prepared(
        model_dir="/cache/models/tiny",
        examples_dir="/cache/examples/0123456789ab",
        rows_dir="/cache/rows/ba9876543210/train",
        validation_dir="/cache/rows/ba9876543210/validation",
        num_examples=90,
        num_validation_examples=5,
        num_too_long=0,
        num_truncated=0,
        num_noisy_examples=0,
        bad_records={},
        bad_records_file="/cache/rows/ba9876543210/bad_records.jsonl",
        num_tokens=9000,
        num_target_tokens=400,
        prompt_style="chat",
        format_hash="0123456789ab",
        num_bos=1,
        sources=(
            SourceCounts(
                name="figfont",
                revision=None,
                format_hash="0123456789ab",
                num_examples=90,
                num_validation_examples=5,
                num_noisy_examples=0,
                num_tokens=9000,
                num_target_tokens=400,
            ),
        ),
    )
    return PrepareManifest(
        prepared=replace(prepared, **fields), items=items or {}, overlap=overlap or {}
    )


def make_train_manifest(step: int, seconds: float = 1.0) -> TrainManifest:
    """Return what a train stage leaves that ended after ``step`` steps."""
    return TrainManifest(model="model", seconds=seconds, step=step, metrics={})


def make_benchmark_result(
    metrics: dict[str, float], predictions: str = "", primary_metric: str = "avg"
) -> BenchmarkResult:
    """Return the result of one model on one benchmark, asked in the chat style."""
    return BenchmarkResult(
        metrics=metrics,
        primary_metric=primary_metric,
        predictions=predictions,
        prompt=PromptRecord(
            style="chat", hash="abcabcabcabc", num_bos=1, stop=Stops(token_ids=[2], strings=[])
        ),
    )


def make_evaluate_manifest(
    models: dict[str, ModelResult], seconds: float = 1.0
) -> EvaluateManifest:
    """Return what an evaluate stage leaves."""
    return EvaluateManifest(
        models=models, num_generated=0, num_resumed=0, timings=Timings(total=seconds)
    )
