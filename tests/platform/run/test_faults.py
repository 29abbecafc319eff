"""The command, as a user runs it, on a machine that fails it: full, or beside others."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import psutil
import pytest
import yaml

from helpers import DEFT, run_with_own_mounts, wait_until

RUN: dict[str, Any] = {
    "name": "faulty",
    "dataset": {"name": "figfont", "size": 200},
    "model": "tiny",
    "objective": "DEFT",
    "training": {
        "num_workers": 1,
        "epochs": 20,
        "max_steps": 60,
        "batch_size": 8,
        "micro_batch_size": 8,
        "max_length": 256,
        "dtype": "float32",
        "checkpoint_every": 20,
    },
    "evaluation": {"benchmarks": [], "general": False},
}

Deft = Callable[..., CompletedProcess[str]]
Curve = list[tuple[int, float]]
ReadCurve = Callable[[Path], Curve]


def write_run(folder: Path, **training: Any) -> Path:
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump({**RUN, "training": {**RUN["training"], **training}}))
    return file


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, read_curve: ReadCurve) -> Curve:
    """Return the curve of `RUN`."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_run(folder)
    subprocess.run([DEFT, "run", "run.yaml"], cwd=folder, check=True, capture_output=True)
    return read_curve(folder / "runs")


def start(folder: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [DEFT, "run", "run.yaml"],
        cwd=folder,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_a_second_driver_of_a_run_says_that_there_is_one(
    deft: Deft,
    tmp_path: Path,
    ray_address: str,
    read_curve: ReadCurve,
    fault: Callable[..., None],
) -> None:
    write_run(tmp_path, max_steps=400)
    first = start(tmp_path, RAY_ADDRESS=ray_address)
    wait_until(lambda: len(read_curve(tmp_path / "runs")) > 2, seconds=300, process=first)
    second = deft("run", "run.yaml", RAY_ADDRESS=ray_address)
    assert first.poll() is None
    assert second.returncode == 2
    assert "another process is already running this run" in second.stderr
    assert "Traceback" not in second.stderr + second.stdout
    output, _ = first.communicate(timeout=400)
    assert first.returncode == 0, output
    assert [step for step, _ in read_curve(tmp_path / "runs")] == list(range(1, 401))
    fault(
        "a second `deft run` of the same file",
        "the second says so and ends with code 2, the first goes on",
        seconds="it does not stop",
    )


SMALL_DISK = 32
"""MiB: enough for a run and its first checkpoint, but not for the second."""
IN_A_SMALL_DISK = """
set -e
mount -t tmpfs -o size={size}m tmpfs "$PWD/runs"
status=0
{deft} run run.yaml > first.log 2>&1 || status=$?
echo $status > first.status
cp runs/*/events.jsonl first.jsonl
mount -o remount,size=1g "$PWD/runs"
{deft} run run.yaml > second.log 2>&1
cp runs/*/events.jsonl second.jsonl
"""


@pytest.mark.slow
def test_a_full_disk_is_named_and_nothing_is_lost(
    tmp_path: Path, undisturbed: Curve, read_curve: ReadCurve, fault: Callable[..., None]
) -> None:
    """The run root is a file system of its own."""
    write_run(tmp_path)
    (tmp_path / "runs").mkdir()
    script = IN_A_SMALL_DISK.format(deft=DEFT, size=SMALL_DISK)
    done = run_with_own_mounts(script, tmp_path)
    output = {name: (tmp_path / name).read_text() for name in ("first.log", "second.log")}
    assert done.returncode == 0, (done.stderr, output)
    assert (tmp_path / "first.status").read_text().strip() == "1", output
    assert "No space left on device" in output["first.log"]
    assert "Traceback" not in output["first.log"]
    # Steps go on while a checkpoint is stored, so how many there were is a matter of speed.
    steps = read_curve(tmp_path / "first.jsonl")
    assert len(steps) > 20
    assert steps == undisturbed[: len(steps)]
    assert read_curve(tmp_path / "second.jsonl") == undisturbed
    assert "held out, after 0 steps" not in output["second.log"]  # it did not start anew
    fault(
        "the disk is full while a checkpoint is stored",
        "the run ends and says so; the same command goes on from the last checkpoint",
        seconds="there is room",
    )


HOG = """
import sys, time
import numpy as np, ray
ray.init(log_to_driver=False)
size = ray.cluster_resources()["object_store_memory"]
held = [ray.put(np.zeros(2**20, np.uint8)) for _ in range(int(size / 2**20 * 1.2))]
print("full", flush=True)
time.sleep(600)
"""


HEAD = "127.0.0.1:26479"
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "of this test"}
ON_HEAD = {"RAY_ADDRESS": HEAD, **TOKEN}


@contextmanager
def ray_head(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a cluster of one node at `HEAD`, in a process group of its own."""
    # Ray's sockets lie in it, and their paths may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="node-"))
    command = [DEFT.with_name("ray"), "start", "--head", f"--port={HEAD.partition(':')[2]}"]
    command += ["--num-cpus=2", "--include-dashboard=false", "--disable-usage-stats", "--block"]
    command += [f"--temp-dir={folder}", *arguments]
    log = folder / "said.txt"
    with (
        log.open("w") as out,
        subprocess.Popen(
            command, stdout=out, env={**os.environ, **TOKEN}, start_new_session=True
        ) as head,
    ):
        try:
            wait_until(lambda: "Ray runtime started" in log.read_text(), seconds=300, process=head)
            yield head
        finally:
            head.terminate()
            head.wait()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_a_full_object_store_changes_nothing(
    tmp_path: Path, undisturbed: Curve, read_curve: ReadCurve, fault: Callable[..., None]
) -> None:
    """Another job of the cluster fills it, and its spilling, with objects that it keeps."""
    write_run(tmp_path)
    with ray_head(f"--object-store-memory={80 * 2**20}"):
        hog = subprocess.Popen(
            [sys.executable, "-c", HOG],
            env={**os.environ, **ON_HEAD},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert hog.stdout is not None
        assert hog.stdout.readline() == "full\n"
        run = start(tmp_path, **ON_HEAD)
        output, _ = run.communicate(timeout=300)
        hog.kill()
        hog.wait()
    assert run.returncode == 0, output
    assert read_curve(tmp_path / "runs") == undisturbed
    fault("Ray's object store is full", "nothing", seconds="it does not stop")


@pytest.mark.slow
def test_a_head_that_dies_is_named_and_nothing_is_lost(
    tmp_path: Path, undisturbed: Curve, read_curve: ReadCurve, fault: Callable[..., None]
) -> None:
    write_run(tmp_path)
    with ray_head() as head:
        run = start(tmp_path, **ON_HEAD)
        wait_until(lambda: len(read_curve(tmp_path / "runs")) > 30, seconds=300, process=run)
        (gcs,) = (
            child
            for child in psutil.Process(head.pid).children(recursive=True)
            if child.name() == "gcs_server"
        )
        gcs.kill()
        began = time.monotonic()
        output, _ = run.communicate(timeout=120)
        seconds = time.monotonic() - began
    assert run.returncode == 1, output
    assert re.search(
        r"error: the head of the Ray cluster .+:26479. has not answered for 40 s", output
    )
    assert "Traceback" not in output, output
    with ray_head():
        run = start(tmp_path, **ON_HEAD)
        output, _ = run.communicate(timeout=300)
    assert run.returncode == 0, output
    assert "held out, after 0 steps" not in output  # it did not start anew
    assert read_curve(tmp_path / "runs") == undisturbed
    fault(
        "the head of a cluster dies (kill -9 of its GCS)",
        f"commands say so after {seconds:.0f} s and end; the same command goes on from the last "
        "checkpoint",
        seconds="there is a head again",
    )
