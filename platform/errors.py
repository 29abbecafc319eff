"""Errors that end a command: bad input, and failures inside a stage."""

from __future__ import annotations

import errno
import os
import re
import sys
from functools import cache
from typing import NoReturn

from deft.workers.common.secrets import without_secrets
from deft.workers.common.text import printable


class UserError(ValueError):
    """Bad input: reported in one message, exit code 2, nothing written."""


class StageError(RuntimeError):
    """A stage failed: its cause is reported in one paragraph, exit code 1."""


def root_cause(error: BaseException) -> BaseException:
    """Unwrap the exception that a worker, task or actor raised from Ray's own exceptions."""
    from ray.exceptions import RayTaskError
    from ray.train import ControllerError, WorkerGroupError
    from ray.train.v2._internal.exceptions import (
        UserExceptionWithTraceback,
        WorkerHealthCheckFailedError,
    )

    match error:
        case RayTaskError(cause=BaseException() as cause):
            return root_cause(cause)
        case WorkerGroupError(worker_failures=failures) if failures:
            return min(
                (root_cause(failures[rank]) for rank in sorted(failures)), key=is_secondary_failure
            )
        case WorkerHealthCheckFailedError(health_check_failure=cause):
            return root_cause(cause)
        case ControllerError(controller_failure=cause):
            return root_cause(cause)
        case UserExceptionWithTraceback(_base_exc=cause):
            return root_cause(cause)
    return error


def is_secondary_failure(cause: BaseException) -> bool:
    """Return whether a rank's collective failed only because another rank was gone."""
    return "gloo" in str(cause) or "NCCL" in str(cause)


def lost_worker(error: BaseException) -> BaseException | None:
    """Return why a training worker died or hung; None if it raised an error of its own."""
    from ray.exceptions import OutOfMemoryError, RayActorError
    from ray.train.v2._internal.exceptions import WorkerHealthCheckTimeoutError

    cause = root_cause(error)
    lost = (RayActorError, OutOfMemoryError, WorkerHealthCheckTimeoutError)
    return cause if isinstance(cause, lost) or is_secondary_failure(cause) else None


MEMORY_USE = re.compile(r"Memory on the node .{,200}? was ([\d.]+)GB used / ([\d.]+)GB limit")
"""What Ray's memory monitor says of a node, in a text of a page."""


def describe_memory_use(error: BaseException) -> str | None:
    """Say how full a node was when Ray's memory monitor ended a process; None if it did not."""
    use = MEMORY_USE.search(str(error))
    return f"the node's use was {use[1]} GB of {use[2]} GB" if use else None


def describe_error(error: BaseException) -> str:
    """Format ``error`` as one paragraph without traceback and without passwords in addresses."""
    if use := describe_memory_use(error):
        return (
            f"out of memory: Ray ended a process when {use}; let less run on it at a time, or "
            "give it more memory"
        )
    if isinstance(error, OSError) and error.filename and error.errno in FULL:
        return without_secrets(describe_os_error(error))
    text = without_secrets(" ".join(str(error).split()))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


RELOCATE = "choose another --root, or give this user the right to it"
IN_THE_WAY = "something else lies in its place: move that away, or choose another --root"
FULL = (errno.ENOSPC, errno.EDQUOT)
"""Numbers of the errors of a full disk."""
FREE_SPACE = (
    "free some, or inodes where there is some (`df -i`); the same command goes on from there"
)
REMEDIES = {
    errno.EACCES: RELOCATE,
    errno.EPERM: RELOCATE,
    errno.EROFS: RELOCATE,
    errno.ENOTDIR: IN_THE_WAY,
    errno.EISDIR: IN_THE_WAY,
    errno.EEXIST: IN_THE_WAY,
    **dict.fromkeys(FULL, FREE_SPACE),
    errno.ENAMETOOLONG: "choose a shorter --root",
    errno.ENOENT: "the command that made it makes it again",
}
"""What to do about an operating system's error, by its number."""


def describe_os_error(error: OSError) -> str:
    """Say in one line which path an operation failed on, why, and what to do."""
    if error.errno is None or error.strerror is None:
        return describe_error(error)
    paths = " and ".join(str(path) for path in (error.filename, error.filename2) if path)
    remedy = REMEDIES.get(error.errno, "check the disk and the file system")
    return f"{paths or os.getcwd()}: {error.strerror}; {remedy}"


@cache
def warn_once(message: str) -> None:
    """Print a warning, the same one once in a process."""
    print(f"warning: {printable(without_secrets(message))}", file=sys.stderr, flush=True)


def print_error(message: str) -> None:
    """Print why a command ends; control characters and passwords in the message are masked."""
    print(f"error: {printable(without_secrets(message))}", file=sys.stderr, flush=True)


def fail(message: str, code: int) -> NoReturn:
    """Print why a command ends, and exit."""
    print_error(message)
    sys.exit(code)
