"""A request of the driver that training stops after it has stored a checkpoint.

It counts for everything that the driver started: all of it belongs to one job of Ray's.
"""

from __future__ import annotations

import ray
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

NAMESPACE = "deft.stop"
"""Namespace of Ray's key-value store that holds the requests by job."""


def request_stop() -> None:
    """Ask the training workers of this driver, and of its trials, to stop."""
    _internal_kv_put(_job(), b"1", namespace=NAMESPACE)


def is_stop_requested() -> bool:
    """Tell whether the driver that this process works for has asked for it."""
    return _internal_kv_get(_job(), namespace=NAMESPACE) is not None


def _job() -> str:
    return str(ray.get_runtime_context().get_job_id())
