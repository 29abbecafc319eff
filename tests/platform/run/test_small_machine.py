"""Runs on a machine with too little memory, shared or not."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml

from helpers import (
    DEFT,
    SMALL_RUN,
    SMALL_RUN_STEPS,
    environment_without_cluster,
    run_with_own_mounts,
    train_steps,
    wait_until,
)

Fault = Callable[..., None]


IN_A_SMALL_SHARED_MEMORY = """
set -e
mount -t tmpfs -o size=64m tmpfs /dev/shm
exec {deft} run run.yaml
"""


@pytest.mark.slow
def test_the_shared_memory_that_docker_gives_is_enough(tmp_path: Path, fault: Fault) -> None:
    """64 MiB in /dev/shm, for Ray's object store, gloo and vLLM."""
    allowed = ["unshare", "--mount", "true"]
    if subprocess.run(allowed, check=False, capture_output=True).returncode:
        pytest.skip("no rights to mount a file system")
    training = {**SMALL_RUN["training"], "num_workers": 2, "micro_batch_size": 4}
    evaluation = {**SMALL_RUN["evaluation"], "engine": {"kv_cache_gib": 0.25, "cpus": 1}}
    spec = {**SMALL_RUN, "objective": "DEFT", "training": training, "evaluation": evaluation}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(spec))
    environment = environment_without_cluster()
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", IN_A_SMALL_SHARED_MEMORY.format(deft=DEFT)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (file.parent for file in (tmp_path / "runs").glob("*/spec.json"))
    assert train_steps(run) == list(range(1, SMALL_RUN_STEPS + 1))
    assert (run / "stages" / "record.json").is_file()
    fault("/dev/shm of 64 MiB (Docker's default)", "nothing", seconds="it does not stop")


FEW_INODES = """
set -e
mount -t tmpfs -o size=1g,nr_inodes=12 tmpfs runs
status=0
{deft} run run.yaml > first.log 2>&1 || status=$?
mount -o remount,nr_inodes=100000 runs
{deft} run run.yaml > second.log 2>&1
exit $status
"""


@pytest.mark.slow
def test_a_disk_without_inodes_is_named_and_nothing_is_lost(tmp_path: Path, fault: Fault) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**SMALL_RUN, "objective": "DEFT"}))
    (tmp_path / "runs").mkdir()
    environment = environment_without_cluster()
    done = run_with_own_mounts(FEW_INODES.format(deft=DEFT), tmp_path, environment)
    first, second = ((tmp_path / f"{name}.log").read_text() for name in ("first", "second"))
    assert done.returncode == 1, first + second
    (error,) = (line for line in first.splitlines() if line.startswith("error: "))
    assert re.fullmatch(
        r"error: prepare: .+/runs/cache/.+: No space left on device; free some, .+", error
    )
    assert "Traceback" not in first
    assert "everything of this run: " in second
    fault(
        "the disk has room, but no inodes",
        "the run ends and says so; the same command goes on",
        seconds="there are some again",
    )


HUNGRY = """
import pathlib
import numpy as np
import torch
from deft.objectives import objective
from deft.objectives.functions.deformed import original

held = []

@objective()
def hungry(stats):
    here = pathlib.Path(__file__).parent
    # The check before training runs in no process group; it takes memory once.
    if torch.distributed.is_initialized() and len(list(here.glob("ate-*"))) < 1:
        (here / "ate-1").touch()
        while True:
            held.append(np.ones(2**27))
    return original(stats)
"""


@pytest.mark.slow
def test_a_worker_that_takes_too_much_memory_is_named_with_what_to_lower(
    tmp_path: Path, fault: Fault
) -> None:
    """Ray's memory monitor kills it, at 4 GiB more than what is in use now."""
    memory = psutil.virtual_memory()
    threshold = (memory.total - memory.available + 4 * 2**30) / memory.total
    if threshold > 0.95:
        pytest.skip("too little free memory")
    root = tmp_path / "runs"
    (tmp_path / "hungry_objective.py").write_text(HUNGRY)
    spec = {**SMALL_RUN, "objective": "hungry_objective:hungry"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(spec))
    environment = {
        "RAY_ADDRESS": "local",
        "RAY_memory_usage_threshold": f"{threshold:.3f}",
        "RAY_memory_monitor_refresh_ms": "100",
    }
    run = subprocess.Popen(
        [DEFT, "run", "run.yaml"],
        cwd=tmp_path,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    trained = lambda: bool(list(root.glob("*/stages/train.json")))  # noqa: E731
    wait_until(trained, seconds=300, process=run)
    run.kill()  # what else runs here may take memory while it evaluates
    output, _ = run.communicate()
    assert "warning: lost a training worker (out of memory: the node's use was " in output, output
    assert re.search(r"a worker needs about 0\.\d GiB and its libraries; lower training\.", output)
    (directory,) = (file.parent for file in root.glob("*/spec.json"))
    assert train_steps(directory) == list(range(1, SMALL_RUN_STEPS + 1))
    fault(
        "Ray's memory monitor kills a training worker",
        "it is replaced; the message says what it needed, what there was, and what to lower",
        seconds="it does not stop",
    )
