"""`deft grade`: score stored responses, without a model."""

from __future__ import annotations

import json
import os
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from deft.evaluators.benchmarks.catalog import BENCHMARKS, get_benchmark
from deft.evaluators.generation.grader_failure import require_some_grade
from deft.evaluators.grading import GRADERS
from deft.evaluators.grading.records import check_record
from deft.evaluators.grading.sandbox.pool import GraderPool
from deft.evaluators.grading.verdicts import Grade, Verdict
from deft.evaluators.spec import GENERAL_BENCHMARK
from deft.platform.console import RunConsole
from deft.platform.errors import UserError
from deft.workers.common.files import atomic_file
from deft.workers.common.names import unknown_name

IN_FLIGHT_PER_WORKER = 32
"""Number of lines per process that are read ahead of the last one written."""


def grader_of(benchmark: str) -> str:
    """Return the grader of ``benchmark``, which is a benchmark's name or the grader's own.

    Raises:
        UserError: there is neither, or the benchmark's items have graders of their own.
    """
    if benchmark in GRADERS:
        return benchmark
    if benchmark == GENERAL_BENCHMARK:
        raise UserError(
            f"{GENERAL_BENCHMARK}: its items have different graders; `deft evaluate` knows them"
        )
    if benchmark not in BENCHMARKS and ":" not in benchmark:
        raise UserError(unknown_name("benchmark", benchmark, {*GRADERS, *BENCHMARKS}))
    try:
        grader = get_benchmark(benchmark).grader
    except ValueError as error:
        raise UserError(str(error)) from None
    if not grader:
        raise UserError(f"{benchmark}: lm-evaluation-harness grades it; `deft evaluate` asks it")
    return grader


def grade_file(benchmark: str, source: Path, out: Path, console: RunConsole) -> Counter[Verdict]:
    """Grade each line of a JSONL file into ``out``, which appears whole or not at all.

    The lines keep their order and fields and get ``verdict``, ``extracted`` and the grader's
    scores. Neither file is ever in memory as a whole; every line is checked before any is graded.

    Returns:
        How often each verdict was given.

    Raises:
        UserError: a line cannot be graded, or a file cannot be read or written.
    """
    grader = grader_of(benchmark)
    total = sum(1 for _ in read_response_lines(grader, source))
    workers = len(os.sched_getaffinity(0))
    counts: Counter[Verdict] = Counter()
    waiting: deque[tuple[dict[str, Any], Future[Grade]]] = deque()
    try:
        with (
            atomic_file(out) as file,
            GraderPool(grader, workers=workers) as pool,
            console.progress("lines") as view,
        ):

            def write_first() -> None:
                record, future = waiting.popleft()
                grade = future.result()
                counts[grade.verdict] += 1
                file.write(encode(record, grade))
                view.update(source.name, counts.total(), total)

            for record in read_response_lines(grader, source):
                waiting.append((record, pool.submit(record)))
                if len(waiting) >= IN_FLIGHT_PER_WORKER * workers:
                    write_first()
            while waiting:
                write_first()
            if total:
                failed = counts[Verdict.grader_error]
                require_some_grade(str(source), grader, failed, total, record)
    except ValueError as error:
        raise UserError(str(error)) from None
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written: {error.strerror}; choose another --out"
        ) from error
    return counts


def read_response_lines(grader: str, source: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a JSONL file; empty lines are skipped.

    Raises:
        UserError: naming file and line, and what was expected there.
    """
    try:
        file = source.open("rb")
    except OSError as error:
        raise UserError(
            f"{source}: {error.strerror}; give a file that this user may read"
        ) from error
    with file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                if not isinstance(record, dict):
                    raise ValueError(f"expected a JSON object, found {type(record).__name__}")
                check_record(grader, record)
            except json.JSONDecodeError as error:
                message = f"expected a JSON object: {error.msg} at column {error.colno}"
                raise UserError(f"{source}:{number}: {message}") from error
            except (ValueError, RecursionError) as error:
                raise UserError(f"{source}:{number}: {error}") from error
            yield record


def encode(record: Mapping[str, Any], grade: Grade) -> bytes:
    """Encode one line of output; lone surrogates, which UTF-8 lacks, stay JSON escapes."""
    graded = {**record, "verdict": grade.verdict, "extracted": grade.extracted, **grade.scores}
    return json.dumps(graded, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def show_counts(counts: Counter[Verdict], out: Path, console: RunConsole) -> None:
    """Print how often each verdict was given."""
    total = max(counts.total(), 1)
    rows = [
        [verdict, f"{counts[verdict]}", f"{counts[verdict] / total:.1%}"] for verdict in Verdict
    ]
    console.table("verdicts", ["", "lines", "share"], rows)
    console.print(f"graded lines: {out}")
