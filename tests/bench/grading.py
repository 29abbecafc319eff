"""How fast and how right the graders are: records/s, slowest case, and math-verify beside it.

    .venv/bin/python tests/bench/grading.py [--workers 2] [--repeat 5] [--skip-peer]

Throughput is measured through `GraderPool` on the labeled rows of the tests, after the processes
have started; the slowest case is the longest wall time among the hostile records, one at a time.
The peer is math-verify's own ``parse`` and ``verify`` with their default settings, on the same
rows, in this process.
"""

from __future__ import annotations

import argparse
import os
import runpy
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from deft.evaluators.grading import GRADERS
from deft.evaluators.grading.sandbox.pool import GraderPool

TESTS = Path(__file__).resolve().parent.parent / "evaluators" / "grading"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeat", type=int, default=5, help="times each labeled row is graded")
    parser.add_argument("--skip-peer", action="store_true")
    arguments = parser.parse_args()
    read_labeled = runpy.run_path(str(TESTS / "test_labeled.py"))["read_labeled"]
    for grader in ("math", "medical"):
        rows = [(row.label, row.record) for row in read_labeled(grader)]
        bench_pool(grader, rows, arguments.workers, arguments.repeat)
    bench_hostile()
    bench_repeated()
    if not arguments.skip_peer:
        bench_peer([(row.label, row.record) for row in read_labeled("math")])


def bench_pool(
    grader: str, rows: list[tuple[str, dict[str, Any]]], workers: int, repeat: int
) -> None:
    with GraderPool(grader, workers=workers) as pool:
        began = time.perf_counter()
        for future in [pool.submit(rows[0][1]) for _ in range(workers)]:
            future.result()
        started = time.perf_counter() - began
        began = time.perf_counter()
        futures = [pool.submit(record) for _ in range(repeat) for _, record in rows]
        verdicts = [future.result().verdict for future in futures]
        seconds = time.perf_counter() - began
    pairs = list(zip((label for label, _ in rows), verdicts, strict=False))
    show(f"deft, {grader}", pairs, len(futures) / seconds)
    print(
        f"{'':<16} {workers} workers, started in {started:.1f} s; "
        f"1,000 responses in {1000 * seconds / len(futures):.2f} s"
    )


def bench_hostile() -> None:
    hostile = runpy.run_path(str(TESTS / "test_hostile.py"))
    records = {
        **{
            name: {"response": rf"\boxed{{{answer}}}", "gold": "7"}
            for name, answer in hostile["ANSWERS"].items()
        },
        **{name: {"response": text, "gold": "7"} for name, text in hostile["RESPONSES"].items()},
    }
    taken = {}
    with GraderPool("math", workers=1) as pool:
        pool.submit({"response": "1", "gold": "1"}).result()
        for name, record in records.items():
            began = time.perf_counter()
            verdict = pool.submit(record).result().verdict
            taken[name] = (time.perf_counter() - began, verdict)
    slowest = max(taken, key=lambda name: taken[name][0])
    killed = sum(verdict == "grader_error" for _, verdict in taken.values())
    total = sum(seconds for seconds, _ in taken.values())
    print(
        f"hostile          {len(taken)} records in {total:.1f} s, {killed} killed; "
        f"slowest {taken[slowest][0]:.2f} s ({slowest})"
    )


REPEATED = [
    *"aA1 \n\t(){}[]<>*_#`-.,:;!?|/$%&'\"~^=+\\é答",
    "\\[",
    "A. ",
    "not ",
    "- A\n",
    "it is ",
]
"""Characters, and a few short texts, of which 100 kB are graded."""


def bench_repeated() -> None:
    """Measure the slowest of 100 kB of one character: time must be linear in the length."""
    options = {"A": "Iron deficiency", "B": "Iron deficiency anemia", "C": "10 mg every 5 hours"}
    for grader in ("math", "medical"):
        module, _, name = GRADERS[grader].partition(":")
        grade = getattr(import_module(module), name)
        taken = {}
        for unit in REPEATED:
            response = unit * (100_000 // len(unit))
            record = {"response": response, "gold": "A", "options": options}
            began = time.process_time()
            grade(record)
            taken[unit] = time.process_time() - began
        slowest = max(taken, key=lambda unit: taken[unit])
        print(
            f"repeated, {grader:<7} {len(taken)} responses of 100 kB; "
            f"slowest {taken[slowest]:.3f} s of CPU time ({slowest!r})"
        )


def bench_peer(rows: list[tuple[str, dict[str, Any]]]) -> None:
    import logging

    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)
    pairs = []
    began = time.perf_counter()
    for label, record in rows:
        # Its parser wants a gold answer between dollars.
        right = verify(parse(f"${record['gold']}$"), parse(record["response"]))
        pairs.append((label, "correct" if right else "wrong"))
    show("math-verify", pairs, len(rows) / (time.perf_counter() - began))


def show(name: str, pairs: list[tuple[str, str]], per_second: float) -> None:
    agreed = sum((label == "correct") == (verdict == "correct") for label, verdict in pairs)
    false_positives = sum(label != "correct" and verdict == "correct" for label, verdict in pairs)
    print(
        f"{name:<16} {per_second:6.0f} records/s, right or wrong as labeled "
        f"{agreed / len(pairs):6.1%} of {len(pairs)}, false positives {false_positives}"
    )


if __name__ == "__main__":
    main()
