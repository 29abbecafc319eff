"""Helpers that tests of several packages share, importable by `pythonpath` in pyproject.toml."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
