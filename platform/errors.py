"""Errors that end a command: what the user can mend, and what went wrong inside a stage."""

from __future__ import annotations


class UserError(ValueError):
    """Bad input: reported in one message, exit code 2, nothing written."""


class StageError(RuntimeError):
    """A stage failed: its cause is reported in one paragraph, exit code 1."""


def root_cause(error: BaseException) -> BaseException:
    """The exception that a worker, task or actor raised, out of what Ray wrapped it in."""
    from ray.exceptions import RayTaskError
    from ray.train import ControllerError, WorkerGroupError
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

    match error:
        case RayTaskError(cause=BaseException() as cause):
            return root_cause(cause)
        case WorkerGroupError(worker_failures=failures) if failures:
            # When one rank raises, the others' collectives fail in its wake.
            causes = [root_cause(failures[rank]) for rank in sorted(failures)]
            return min(causes, key=lambda cause: "gloo" in str(cause) or "NCCL" in str(cause))
        case ControllerError(controller_failure=cause):
            return root_cause(cause)
        case UserExceptionWithTraceback(_base_exc=cause):
            return root_cause(cause)
    return error


def describe(error: BaseException) -> str:
    """``error`` as one paragraph without traceback."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
