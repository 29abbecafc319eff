"""CPU, memory and GPU use over a run, where MLflow's page has a tab for them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from typing import Any

INTERVAL = 10.0
"""Seconds between two samples, as in MLflow."""


class SystemMetricsThread(threading.Thread):
    """Samples the machine of this process, from `start` to `stop`."""

    def __init__(self, log: Callable[[int, Mapping[str, float]], None]) -> None:
        """Prepare to sample.

        Args:
            log: called with the number of the sample and its metrics, ``system/<metric>``.
        """
        super().__init__(name="system-metrics", daemon=True)
        self._log = log
        self._ended = threading.Event()

    def stop(self) -> None:
        """Take no more samples."""
        self._ended.set()

    def run(self) -> None:
        """Take a sample every `INTERVAL` seconds."""
        number = 0
        while not self._ended.wait(INTERVAL):
            self._log(number, sample())
            number += 1


def sample() -> dict[str, float]:
    """Measure CPU, memory, disk and, where there is one, GPU use of this machine."""
    # Importing MLflow takes seconds, and the command that starts a run should not wait for it.
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

    measured: dict[str, float] = {}
    kinds: list[Callable[[], Any]] = [CPUMonitor, DiskMonitor, GPUMonitor]
    for kind in kinds:
        # Without an NVIDIA GPU, or a library that reads it, there is nothing to measure of one.
        with contextlib.suppress(ImportError, RuntimeError):
            monitor = kind()
            monitor.collect_metrics()
            measured |= {f"system/{name}": x for name, x in monitor.aggregate_metrics().items()}
    return measured
