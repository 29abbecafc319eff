"""A pool of processes that grade, each killed when a record takes too much time or memory."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from types import TracebackType
from typing import Any

from deft.evaluators.grading import GRADERS
from deft.evaluators.grading.records import check_record
from deft.evaluators.grading.verdicts import Grade, Verdict

START_SECONDS = 120.0
"""Seconds in which a grading process must have imported its grader."""

_Job = tuple[bytes, "Future[Grade]"]


class GraderPool:
    """Grade records in ``workers`` processes while the caller goes on; a context manager.

    Everything about one record, extraction as well as comparison, happens in a process of its
    own kind: a record that takes too long, too much memory or crashes it yields the verdict
    ``grader_error``, and the next record meets a fresh process. Leaving the block waits for what
    was submitted; leaving it by an exception cancels what has not started. No process outlives
    the pool's own, even if that is killed while a grader's module is imported.
    """

    def __init__(
        self,
        grader: str,
        *,
        workers: int,
        timeout: float = 1.0,
        memory_mib: int = 1024,
    ) -> None:
        """Start no process yet: each starts with its first record.

        Args:
            grader: a name in `GRADERS`, or ``package.module:function`` from record to `Grade`.
            workers: number of processes.
            timeout: CPU seconds that one record may take. CPU time, so that a verdict does not
                depend on what else the machine is doing.
            memory_mib: address space of one process (RLIMIT_AS), in MiB.

        Raises:
            ValueError: there is no such grader.
        """
        if grader not in GRADERS and ":" not in grader:
            raise ValueError(f"no grader {grader!r}; there are: {', '.join(GRADERS)}")
        self._grader = grader
        self._command = [
            *(sys.executable, "-P", "-m", "deft.evaluators.grading.sandbox.worker"),
            *(GRADERS.get(grader, grader), str(timeout), str(memory_mib), str(os.getpid())),
        ]
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._serve, name=f"grader-{i}", daemon=True)
            for i in range(workers)
        ]
        self._closed = False

    def __enter__(self) -> GraderPool:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._closed = True
        if kind is not None:
            self._cancel_waiting()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def submit(self, record: Mapping[str, Any]) -> Future[Grade]:
        """Grade one record as soon as a process is free.

        Args:
            record: ``response`` and ``gold``; medical also ``options`` (letter to text), gold
                being a letter; all optionally ``finish_reason`` (``stop`` or ``length``),
                ``question`` (text) and ``opens_thought`` (whether the prompt ended within a
                thought). Other fields are ignored.

        Returns:
            The grade to come; it holds an exception only if no process can be started at all.

        Raises:
            ValueError: a field is missing or of the wrong type.
            RuntimeError: the pool is not open.
        """
        if self._closed or not self._threads[0].is_alive():
            raise RuntimeError("the pool is not open: use it as a context manager")
        check_record(self._grader, record)
        read_fields = ("response", "gold", "options", "finish_reason", "question", "opens_thought")
        fields = record if self._grader not in GRADERS else {k: record.get(k) for k in read_fields}
        future: Future[Grade] = Future()
        self._jobs.put((json.dumps(dict(fields)).encode() + b"\n", future))
        return future

    def _cancel_waiting(self) -> None:
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return
            if job is not None:
                job[1].cancel()

    def _serve(self) -> None:
        process: _Process | None = None
        try:
            while (job := self._jobs.get()) is not None:
                line, future = job
                if not future.set_running_or_notify_cancel():
                    continue
                try:
                    process = process or _Process(self._command)
                    reply = process.ask(line)
                    if reply is None:
                        process.kill()
                        process = None
                        reply = Grade(Verdict.grader_error, error="the grading process is gone")
                    future.set_result(reply)
                except BaseException as error:
                    future.set_exception(error)
        finally:
            if process is not None:
                process.kill()


class _Process:
    """One grading process, which answers line for line."""

    def __init__(self, command: list[str]) -> None:
        path = os.pathsep.join(folder for folder in sys.path if folder)
        self._popen = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            # Ctrl-C is for the owner, which then ends the group.
            start_new_session=True,
        )
        self._started = False
        assert self._popen.stdout is not None
        began, _, _ = select.select([self._popen.stdout], [], [], START_SECONDS)
        if not began or self._popen.stdout.readline() != b"ready\n":
            self.kill()
            late = "" if began else f" within {START_SECONDS:.0f} s: its module is not imported"
            raise RuntimeError(f"the grading process did not start{late}: {' '.join(command)}")

    def ask(self, line: bytes) -> Grade | None:
        """Return the grade of one record; None if the process is gone or its reply is malformed."""
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        try:
            self._popen.stdin.write(line)
            self._popen.stdin.flush()
            reply = json.loads(self._popen.stdout.readline())
            return Grade(
                Verdict(reply["verdict"]), reply["extracted"], reply["scores"], reply["error"]
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def kill(self) -> None:
        """End the process and its children, and wait until it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait()
        for stream in (self._popen.stdin, self._popen.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):  # what could not be flushed into a dead process
                    stream.close()
