"""The process behind `GraderPool`: a zygote that reads records, and its child that grades them.

The zygote imports and warms the grader once, then forks the child, which inherits the warm state.
A child that is killed is replaced by another fork in milliseconds, where a fresh interpreter would
take seconds. The zygote has one thread, so that forking it is safe, and touches no record.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import resource
import select
import signal
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import IO, Any

from deft.evaluators.grading.verdicts import Grade, Verdict

Grader = Callable[[Mapping[str, Any]], Grade]
WALL_SECONDS_PER_CPU_SECOND = 20
"""A child that waits instead of computing is killed after this many times its CPU limit."""
MAX_EXTRACTED = 2000
"""Characters of the extracted answer that are reported."""
PR_SET_PDEATHSIG = 1
"""Request to the kernel, see prctl(2)."""
KILLED = "the process ran out of time or memory, or crashed"


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process as soon as its parent, ``parent``, is gone."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was gone before
        os._exit(1)


class Child:
    """A forked process that grades until its pipe closes or it is killed."""

    def __init__(self, grader: Grader, timeout: float, memory_mib: int) -> None:
        request_read, request_write = os.pipe()
        reply_read, reply_write = os.pipe()
        self._timeout = timeout
        zygote = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            end_with_parent(zygote)
            os.close(request_write)
            os.close(reply_read)
            try:
                _grade_lines(
                    grader, os.fdopen(request_read, "rb"), reply_write, timeout, memory_mib
                )
            finally:
                os._exit(1)
        os.close(request_read)
        os.close(reply_write)
        self._requests = os.fdopen(request_write, "wb")
        self._replies = os.fdopen(reply_read, "rb")

    def ask(self, line: bytes) -> bytes | None:
        """Return the reply to one line; None if the child died over it."""
        try:
            self._requests.write(line)
            self._requests.flush()
        except OSError:
            return None
        wall = self._timeout * WALL_SECONDS_PER_CPU_SECOND
        ready, _, _ = select.select([self._replies, sys.stdin], [], [], wall)
        if ready == [sys.stdin]:  # the owner sends nothing before it has its reply: it is gone
            self.kill_and_reap()
            sys.exit()
        reply = self._replies.readline() if ready else b""
        return reply if reply.endswith(b"\n") else None

    def kill_and_reap(self) -> None:
        """Kill the child and collect its exit status."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        for pipe in (self._requests, self._replies):
            with contextlib.suppress(OSError):  # what could not be flushed into a dead child
                pipe.close()


def _grade_lines(
    grader: Grader, requests: IO[bytes], replies: int, timeout: float, memory_mib: int
) -> None:
    # Libraries print: nothing they say may reach the pipes, nor the user's terminal.
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    limit = memory_mib * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in requests:
        # SIGPROF keeps its default action: the kernel ends the process, whatever it is doing.
        signal.setitimer(signal.ITIMER_PROF, timeout)
        grade = _grade_line(grader, line)
        signal.setitimer(signal.ITIMER_PROF, 0)
        os.write(replies, _encode(grade))
    os._exit(0)


def _grade_line(grader: Grader, line: bytes) -> Grade:
    try:
        return grader(json.loads(line))
    except MemoryError:
        raise  # the process may be in any state: let it end
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        return Grade(Verdict.grader_error, error=cause[:MAX_EXTRACTED])


def _encode(grade: Grade) -> bytes:
    extracted = grade.extracted
    if extracted is not None and len(extracted) > MAX_EXTRACTED:
        extracted = extracted[:MAX_EXTRACTED] + "…"
    reply = {
        "verdict": grade.verdict,
        "extracted": extracted,
        "scores": grade.scores,
        "error": grade.error,
    }
    return json.dumps(reply).encode() + b"\n"


def main(grader_path: str, timeout: float, memory_mib: int, owner: int) -> None:
    """Answer each line of standard input by one line on standard output.

    The process ends with its ``owner``, whatever it is doing.
    """
    end_with_parent(owner)
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    module, _, name = grader_path.partition(":")
    grader: Grader = getattr(import_module(module), name)
    warm_up = getattr(import_module(module), "warm_up", None)
    if warm_up is not None:
        warm_up()
    gc.freeze()  # keeps the pages that children share with the zygote from being copied
    replies.write(b"ready\n")
    replies.flush()
    child = Child(grader, timeout, memory_mib)
    for line in sys.stdin.buffer:
        reply = child.ask(line)
        if reply is None:
            child.kill_and_reap()
            child = Child(grader, timeout, memory_mib)
            reply = _encode(Grade(Verdict.grader_error, error=KILLED))
        replies.write(reply)
        replies.flush()
    child.kill_and_reap()


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
