"""SIGINT and SIGTERM: what a command says and keeps, and that none of its processes is left."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from mlflow import MlflowClient

from helpers import DEFT, wait_until

RUN: dict[str, Any] = {
    "name": "ended",
    "dataset": {"name": "figfont", "size": 200},
    "model": "tiny",
    "objective": "DEFT",
    "training": {
        "num_workers": 1,
        "epochs": 1000,
        "max_steps": 3000,
        "batch_size": 8,
        "micro_batch_size": 8,
        "max_length": 256,
        "dtype": "float32",
        "checkpoint_every": 3000,
    },
    "evaluation": {"benchmarks": [], "general": False},
}

SLOW_BENCHMARK = """
import time
from deft.evaluators.benchmarks.base import Benchmark, Item, Sampling
from deft.evaluators.grading.verdicts import Grade, Verdict
from deft.evaluators.scores.metrics import accuracy


def rows():
    return ({"a": a} for a in range(400))


def read(record, number):
    return Item(str(number), ({"role": "user", "content": f"Count to {record['a']}"},), "1")


def grade(record):
    time.sleep(1)
    return Grade(Verdict.wrong, record["response"])


slow = Benchmark(
    name="slow",
    summary="takes its time",
    source="made up",
    records=rows,
    read=read,
    grader="slow_benchmark:grade",
    sampling=Sampling(max_tokens=6),
    metrics=(accuracy,),
)
"""


def start(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [DEFT, *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str], *signals: signal.Signals) -> tuple[str, str, float, float]:
    """Send ``signals``; return output, errors, and seconds until it and its processes had ended."""
    family = psutil.Process(process.pid).children(recursive=True)
    began = time.monotonic()
    for number in signals:
        process.send_signal(number)
        time.sleep(0.2)
    output, errors = process.communicate(timeout=60)
    seconds = time.monotonic() - began
    _, left = psutil.wait_procs(family, timeout=15)
    assert left == [], output + errors
    return output, errors, seconds, time.monotonic() - began


def mlflow_status(root: Path) -> list[str]:
    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("deft")
    assert experiment is not None
    return [run.info.status for run in client.search_runs([experiment.experiment_id])]


def has_steps(root: Path, number: int = 3) -> bool:
    files = list(root.glob("*/events.jsonl"))
    return bool(files) and len(files[0].read_bytes().splitlines()) > number


def test_sigterm_stores_a_checkpoint_and_marks_the_run_killed(
    tmp_path: Path, ray_address: str, fault: Callable[..., None]
) -> None:
    """What docker stop, Kubernetes, SLURM and `timeout` send."""
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(RUN))
    root = tmp_path / "läufe von heute, 日本"
    process = start(tmp_path, "run", "run.yaml", "--root", str(root), RAY_ADDRESS=ray_address)
    wait_until(lambda: has_steps(root), seconds=300, process=process)
    output, errors, seconds, _ = end(process, signal.SIGTERM)
    assert process.returncode == 143, output + errors
    assert errors == (
        "error: ended by SIGTERM; finished stages and stored checkpoints are kept; the same "
        "command goes on from there\n"
    )
    stored = re.search(r"asked to end; step (\d+) is stored", output)
    assert stored is not None, output
    assert seconds < 20
    (run,) = root.glob("ended-*")
    (progress,) = run.glob("checkpoints/*/checkpoint_*/progress.json")
    assert json.loads(progress.read_text())["step"] == int(stored[1])
    assert mlflow_status(root) == ["KILLED"]
    fault(
        "SIGTERM (`docker stop`, Kubernetes, SLURM, `timeout`) while a run trains",
        f"a checkpoint is stored, MLflow says KILLED, the command ends with code 143 after "
        f"{seconds:.0f} s",
        seconds="it is started again",
    )


IMPORT_INTERRUPTED = """
import os, signal, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
from deft.platform.entry_point import main
main()
"""


def test_ctrl_c_while_the_command_is_imported_shows_no_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_INTERRUPTED], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_a_report_that_is_interrupted_says_so(tmp_path: Path, fault: Callable[..., None]) -> None:
    sweep = tmp_path / "runs" / "sweeps" / "small-0123456789"
    sweep.mkdir(parents=True)
    about = {"name": "small", "file": "", "baseline": "DEFT", "axes": [], "select": None}
    (sweep / "sweep.json").write_text(json.dumps(about))
    os.mkfifo(sweep / "cells.jsonl")
    process = start(tmp_path, "report", "small")
    with (sweep / "cells.jsonl").open("w"):  # opens once the command reads
        output, errors, seconds, _ = end(process, signal.SIGTERM)
    assert process.returncode == 143
    assert errors == (
        "error: ended by SIGTERM; the sweep is as it was; the same command writes the report\n"
    )
    assert output == ""
    fault(
        "SIGTERM to `deft report`",
        f"the sweep is as it was; the command ends with code 143 after {seconds:.1f} s",
        seconds="it is started again",
    )


def test_a_submission_that_is_interrupted_says_so(
    tmp_path: Path, fault: Callable[..., None]
) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(RUN))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        root = str(tmp_path / "runs")
        process = start(tmp_path, "submit", "run.yaml", "--address", address, "--root", root)
        connection, _ = silent.accept()
        _, errors, seconds, _ = end(process, signal.SIGINT)
        connection.close()
    assert process.returncode == 130
    assert errors == (
        "error: ended by SIGINT; nothing was submitted, or the job goes on; `ray job list` tells\n"
    )
    fault(
        "Ctrl-C (SIGINT) to `deft submit`",
        f"it says how to find out whether the job goes on, and ends with code 130 after "
        f"{seconds:.1f} s",
        seconds="it is started again",
    )


def write_inputs(folder: Path) -> None:
    (folder / "run.yaml").write_text(yaml.safe_dump(RUN))
    base = {name: value for name, value in RUN.items() if name not in ("name", "objective")}
    sweep = {"base": base, "grid": {"objective": ["original", "DEFT"]}}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    (folder / "slow_benchmark.py").write_text(SLOW_BENCHMARK)


EVALUATE = (
    *("evaluate", "--model", "my-model", "--benchmarks", "slow_benchmark:slow"),
    *("--set", "evaluation.engine.type=transformers"),
)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", ["run", "sweep", "evaluate"])
def test_a_signal_ends_a_command_with_its_own_ray(
    command: str,
    number: signal.Signals,
    tmp_path: Path,
    save_small_model: Callable[[Path], None],
    fault: Callable[..., None],
) -> None:
    write_inputs(tmp_path)
    root = tmp_path / "runs"
    if command == "evaluate":
        save_small_model(tmp_path / "my-model")
        process = start(tmp_path, *EVALUATE)
        begun = lambda: any(file.stat().st_size for file in root.glob("*/responses/*"))  # noqa: E731
    else:
        process = start(tmp_path, command, f"{command}.yaml")
        begun = lambda: has_steps(root)  # noqa: E731
    wait_until(begun, seconds=300, process=process)
    wait_until(lambda: (root / "mlflow.db").exists() and "RUNNING" in mlflow_status(root))
    output, errors, seconds, until_gone = end(process, number)
    assert process.returncode == 128 + number, output + errors
    assert errors.startswith(f"error: ended by {number.name}; "), errors
    assert errors.count("\n") == 1, errors
    assert set(mlflow_status(root)) == {"KILLED"}
    if number == signal.SIGTERM and command != "evaluate":
        assert list(root.glob("*/checkpoints/*/checkpoint_*/progress.json"))
    fault(
        f"{number.name} to `deft {command}`",
        f"MLflow says KILLED, the command ends with code {128 + number} after {seconds:.0f} s, "
        f"its last process after {until_gone:.0f} s",
        seconds="it is started again",
    )


@pytest.mark.slow
def test_sigterm_to_all_processes_stores_a_checkpoint(
    tmp_path: Path, fault: Callable[..., None]
) -> None:
    """What `timeout`, SLURM and a service manager send."""
    write_inputs(tmp_path)
    root = tmp_path / "runs"
    process = start(tmp_path, "run", "run.yaml")
    wait_until(lambda: has_steps(root), seconds=300, process=process)
    for other in psutil.Process(process.pid).children(recursive=True):
        other.send_signal(signal.SIGTERM)
    output, errors, seconds, until_gone = end(process, signal.SIGTERM)
    assert process.returncode == 143, output + errors
    assert errors.startswith("error: ended by SIGTERM; "), errors
    assert list(root.glob("*/checkpoints/*/checkpoint_*/progress.json"))
    assert mlflow_status(root) == ["KILLED"]
    fault(
        "SIGTERM to `deft run` and all its processes (`timeout`, SLURM)",
        f"a checkpoint is stored, MLflow says KILLED, the command ends with code 143 after "
        f"{seconds:.0f} s, its last process after {until_gone:.0f} s",
        seconds="it is started again",
    )


@pytest.mark.slow
def test_a_second_signal_ends_at_once(tmp_path: Path, fault: Callable[..., None]) -> None:
    write_inputs(tmp_path)
    process = start(tmp_path, "run", "run.yaml")
    wait_until(lambda: has_steps(tmp_path / "runs"), seconds=300, process=process)
    output, errors, seconds, until_gone = end(process, signal.SIGTERM, signal.SIGTERM)
    assert process.returncode == 143, output + errors
    assert seconds < 1
    fault(
        "a second SIGTERM or SIGINT",
        f"the command ends at once, its last process after {until_gone:.0f} s",
        seconds="it is started again",
        lost="steps since the last checkpoint",
    )
