"""Runs that are killed at random moments end as if they had not been."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from helpers import ROOT


@pytest.mark.slow
def test_nothing_of_a_killed_run_is_lost(fault: Callable[..., None]) -> None:
    script = ROOT / "tests" / "bench" / "kills.py"
    done = subprocess.run(
        [sys.executable, str(script), "--rounds", "5"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    fault(
        f"kill -9 at random moments, again and again; {done.stdout.splitlines()[-1]}",
        "the same command ends with the same events, predictions, MLflow history and weights",
        seconds="it is started again",
    )
