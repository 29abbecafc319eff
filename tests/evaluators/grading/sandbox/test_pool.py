"""The pool's promises, with graders that break every one of a process's limits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from deft.evaluators.grading.sandbox import pool as pool_module
from deft.evaluators.grading.sandbox.pool import GraderPool
from deft.evaluators.grading.verdicts import Grade, Verdict

UNRULY = """
import os, sys, time
from deft.evaluators.grading.verdicts import Grade, Verdict

def grade(record):
    exec_ = record["response"]
    if exec_ == "spin":
        while True:
            pass
    if exec_ == "spin in C":
        (7 ** 10**9) % 10
    if exec_ == "allocate":
        keep = [b"x" * 2**20 for _ in range(10**6)]
    if exec_ == "recurse":
        grade(record)
    if exec_ == "crash":
        os.abort()
    if exec_ == "exit":
        os._exit(0)
    if exec_ == "raise":
        raise ValueError("no")
    if exec_ == "print":
        print('{"verdict": "correct"}', flush=True)
        os.write(1, b"noise")
    if exec_ == "long":
        return Grade(Verdict.wrong, "x" * 10**6)
    return Grade(Verdict.correct, str(os.getpid()))
"""
FATAL = ["spin", "spin in C", "allocate", "crash", "exit"]


@pytest.fixture
def unruly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "unruly.py").write_text(UNRULY)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "unruly:grade"


def pids_of(marker: str) -> set[int]:
    """List processes whose command line mentions ``marker``."""
    processes = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                command = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if marker.encode() in command and b"grading.sandbox.worker" in command:
                processes.add(int(folder.name))
    return processes


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_a_killed_record_is_a_grader_error_and_the_pool_goes_on(
    unruly: str, fault: Callable[..., None]
) -> None:
    began = time.monotonic()
    with GraderPool(unruly, workers=2, timeout=0.3, memory_mib=512) as pool:
        responses = [text for fatal in FATAL for text in (fatal, "fine", "raise", "recurse")]
        grades = [pool.submit({"response": text}) for text in responses]
        for response, future in zip(responses, grades, strict=True):
            expected = Verdict.correct if response == "fine" else Verdict.grader_error
            assert future.result().verdict == expected, response
    fault(
        f"a grader dies, hangs or takes memory without end ({len(FATAL)} of {len(responses)} "
        "records, given 0.3 s)",
        "its record is a `grader_error`; the next one meets a fresh process",
        seconds=(time.monotonic() - began) / len(FATAL),
        lost="that record's verdict",
    )


def test_only_a_killed_process_is_replaced(unruly: str) -> None:
    with GraderPool(unruly, workers=1, timeout=0.3, memory_mib=512) as pool:
        texts = ["fine", "raise", "print", "fine", "spin", "fine"]
        grades = [pool.submit({"response": text}).result() for text in texts]
    assert grades[0] == grades[3]
    assert grades[5].extracted != grades[3].extracted
    assert grades[2].verdict == Verdict.correct  # what a grader prints is not taken for its reply


def test_a_long_answer_is_reported_short(unruly: str) -> None:
    with GraderPool(unruly, workers=1, memory_mib=512) as pool:
        extracted = pool.submit({"response": "long"}).result().extracted
    assert extracted is not None
    assert len(extracted) < 3000


def test_the_pool_survives_the_death_of_its_keepers(unruly: str) -> None:
    with GraderPool(unruly, workers=1, memory_mib=513) as pool:
        pool.submit({"response": "fine"}).result()
        for pid in pids_of("513"):
            os.kill(pid, signal.SIGKILL)
        grades = [pool.submit({"response": "fine"}).result() for _ in range(2)]
    assert grades[-1].verdict == Verdict.correct


def test_nothing_is_left_when_the_pool_closes(unruly: str) -> None:
    with GraderPool(unruly, workers=2, memory_mib=514) as pool:
        for future in [pool.submit({"response": "fine"}) for _ in range(20)]:
            future.result()
        assert pids_of("514")
    assert eventually(lambda: not pids_of("514"))


def test_leaving_by_an_exception_cancels_what_waits(unruly: str) -> None:
    futures = []

    def stop_early() -> None:
        with GraderPool(unruly, workers=1, timeout=0.2, memory_mib=512) as pool:
            futures.extend(pool.submit({"response": "spin"}) for _ in range(50))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_early()
    assert sum(future.cancelled() for future in futures) >= 45


@pytest.mark.parametrize("response", ["fine", "spin"])
def test_no_process_outlives_a_killed_owner(
    unruly: str, response: str, tmp_path: Path, fault: Callable[..., None]
) -> None:
    script = f"""
        import sys, time
        from deft.evaluators.grading.sandbox.pool import GraderPool
        with GraderPool({unruly!r}, workers=2, timeout=100, memory_mib=515) as pool:
            pool.submit({{"response": "fine"}}).result()
            pool.submit({{"response": {response!r}}})
            pool.submit({{"response": {response!r}}})
            print("ready", flush=True)
            time.sleep(100)
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    owner = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, env=environment
    )
    assert owner.stdout is not None
    assert owner.stdout.readline() == b"ready\n"
    assert pids_of("515")
    owner.kill()
    began = time.monotonic()
    owner.wait()
    owner.stdout.close()
    assert eventually(lambda: not pids_of("515"))
    fault(
        f"kill -9 of the process whose responses are graded ({response!r})",
        f"its grading processes end within {time.monotonic() - began:.1f} s",
        seconds="it is started again",
    )


ENDLESS = """
import time
time.sleep(1000)

def grade(record):
    pass
"""


def test_no_process_outlives_an_owner_that_is_killed_while_a_grader_is_imported(
    tmp_path: Path,
) -> None:
    (tmp_path / "endless.py").write_text(ENDLESS)
    script = (
        "from deft.evaluators.grading.sandbox.pool import GraderPool\n"
        "with GraderPool('endless:grade', workers=1, memory_mib=516) as pool:\n"
        "    pool.submit({'response': 'x'}).result()\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    owner = subprocess.Popen([sys.executable, "-c", script], env=environment)
    assert eventually(lambda: bool(pids_of("516")))
    time.sleep(1)  # it has asked the kernel by now
    owner.kill()
    owner.wait()
    assert eventually(lambda: not pids_of("516"))


def test_an_import_that_does_not_end_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[..., None]
) -> None:
    (tmp_path / "endless.py").write_text(ENDLESS)
    monkeypatch.syspath_prepend(str(tmp_path))
    allowed = pool_module.START_SECONDS
    monkeypatch.setattr(pool_module, "START_SECONDS", 0.5)
    with GraderPool("endless:grade", workers=1, memory_mib=517) as pool:
        future = pool.submit({"response": "x"})
        with pytest.raises(RuntimeError, match="its module is not imported"):
            future.result()
    assert not pids_of("517")
    fault(
        "a grader whose module is not imported in time",
        f"after {allowed:.0f} s (0.5 s in the test) it is ended, and the message names it",
        seconds="it is mended",
        lost="nothing: responses are kept",
    )


def test_a_grader_that_cannot_be_imported_fails_the_record() -> None:
    with GraderPool("no.such:grader", workers=1) as pool:
        future = pool.submit({"response": "x"})
        with pytest.raises(RuntimeError, match="did not start"):
            future.result()


@pytest.mark.parametrize(
    ("grader", "record", "message"),
    [
        ("math", {"gold": "1"}, "response: missing"),
        ("math", {"response": 5, "gold": "1"}, "response: expected a string, found 5"),
        ("math", {"response": "5", "gold": None}, "gold: expected a string or a number"),
        ("medical", {"response": "A", "gold": "A"}, "options: missing"),
        ("medical", {"response": "A", "gold": "E", "options": {"A": "x"}}, "found 'E'"),
        ("medical", {"response": "A", "gold": "A", "options": {"AB": "x"}}, "single letters"),
        ("medical", {"response": "A", "gold": "A", "options": {"A": 1}}, "options.A"),
        ("figfont", {"response": "A", "gold": 1}, "gold: expected a string"),
    ],
)
def test_a_record_that_cannot_be_graded_is_refused(
    grader: str, record: dict[str, object], message: str
) -> None:
    with GraderPool(grader, workers=1) as pool, pytest.raises(ValueError, match=message):
        pool.submit(record)


def test_unknown_graders_and_closed_pools_are_refused() -> None:
    with pytest.raises(ValueError, match="there are: math, medical, figfont"):
        GraderPool("maths", workers=1)
    pool = GraderPool("math", workers=1)
    with pytest.raises(RuntimeError, match="context manager"):
        pool.submit({"response": "1", "gold": "1"})


def test_grades_cross_the_pool_unchanged() -> None:
    with GraderPool("figfont", workers=1) as pool:
        grade = pool.submit({"response": " igad\n", "gold": "IGAD"}).result()
    assert grade == Grade(
        Verdict.correct,
        "igad",
        {
            "exact_match": 0.0,
            "case_insensitive_match": 1.0,
            "jaro_winkler": 1.0,
            "jaro_winkler_paper": 1.0,
        },
    )
