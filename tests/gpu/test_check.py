"""The script for GPU machines runs, at tiny sizes on a CPU, without what such a machine lacks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from helpers import ROOT

ABSENT = ("ray", "vllm", "mlflow", "reasoning_gym", "math_verify")
"""Packages that are too large to carry to a GPU machine without network."""


def test_every_step_passes_on_a_cpu_without_the_packages_a_gpu_machine_lacks(
    tmp_path: Path,
) -> None:
    for package in ABSENT:
        (tmp_path / f"{package}.py").write_text(f"raise ImportError('{package} is not there')\n")
    done = subprocess.run(
        ["bash", "tests/gpu/check.sh", "--tiny"],
        cwd=ROOT,
        env={**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=3000,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].endswith(" passed, 0 failed")
