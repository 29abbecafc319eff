"""DeepSpeed's extension, compiled for real."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

LOAD = """
from deft.workers.training.ray_entry import prepare_process
prepare_process()
from deft.workers.training.deepspeed_build import load_collectives
load_collectives()
"""


def load(environment: dict[str, str]) -> None:
    subprocess.run([sys.executable, "-c", LOAD], env=environment, check=True, timeout=300)


def test_a_guard_whose_process_is_gone_is_not_waited_for() -> None:
    from torch.utils.cpp_extension import _get_build_directory

    guard = Path(_get_build_directory("deepspeed_shm_comm", verbose=False), "lock")
    guard.touch()
    load({**os.environ})
    assert not guard.exists()


@pytest.mark.slow
def test_a_worker_killed_while_it_compiles_leaves_nothing_to_wait_for(
    tmp_path: Path, fault: Callable[..., None]
) -> None:
    environment = {**os.environ, "TORCH_EXTENSIONS_DIR": str(tmp_path)}
    guard = tmp_path / "deepspeed_shm_comm" / "lock"
    with subprocess.Popen([sys.executable, "-c", LOAD], env=environment) as killed:
        while not guard.exists():
            assert killed.poll() is None
            time.sleep(0.01)
        killed.kill()
    assert guard.exists()
    started = time.monotonic()
    load(environment)
    assert not guard.exists()
    assert (guard.parent / "deepspeed_shm_comm.so").is_file()
    fault(
        "kill -9 of a worker that compiles DeepSpeed's extension",
        "the next one compiles it",
        seconds=time.monotonic() - started,
    )
