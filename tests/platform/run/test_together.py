"""Commands side by side on one run root, and roots that are not as they should be."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from helpers import DEFT, SMALL_RUN, SMALL_RUN_STEPS, free_port, train_steps, wait_until

OBJECTIVES = ["original", "DEFT"]

Fault = Callable[..., None]


def write(folder: Path, name: str, content: dict[str, Any]) -> str:
    (folder / name).write_text(yaml.safe_dump(content))
    return name


@contextmanager
def started(folder: Path, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [DEFT, *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    """Wait until a command ends as it should; return what it said."""
    output, _ = process.communicate(timeout=400)
    assert process.returncode == code, output
    assert "Traceback" not in output, output
    return output


def require_whole_runs(root: Path, number: int) -> None:
    """Require that every run under ``root`` was trained once, evaluated, and recorded once."""
    runs = [file.parent for file in root.glob("*/spec.json")]
    assert len(runs) == number
    for run in runs:
        assert train_steps(run) == list(range(1, SMALL_RUN_STEPS + 1))
        stages = {file.stem for file in (run / "stages").iterdir()}
        assert stages == {"prepare", "train", "evaluate", "record"}
    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("deft")
    assert experiment is not None
    recorded = client.search_runs([experiment.experiment_id])
    names = sorted(run.info.run_name for run in recorded if "objective" in run.data.params)
    assert names == sorted(run.name for run in runs)
    assert {run.info.status for run in recorded} == {"FINISHED"}
    leftovers = [path for path in root.rglob(".*") if path.suffix != ".lock" != path.name]
    assert leftovers == []


@pytest.mark.slow
def test_two_runs_at_once(tmp_path: Path, ray_address: str, fault: Fault) -> None:
    """They prepare the same model and data, and evaluate the same model before training."""
    for name in OBJECTIVES:
        write(tmp_path, f"{name}.yaml", {**SMALL_RUN, "name": name, "objective": name})
    with (
        started(tmp_path, "run", "original.yaml", RAY_ADDRESS=ray_address) as first,
        started(tmp_path, "run", "DEFT.yaml", RAY_ADDRESS=ray_address) as second,
    ):
        finish(first)
        finish(second)
    require_whole_runs(tmp_path / "runs", 2)
    for kind in ("models", "examples", "rows"):
        entries = [path for path in (tmp_path / "runs/cache" / kind).iterdir() if path.is_dir()]
        assert len(entries) == 1, kind
    fault("two runs at once under one root", "both finish", seconds="it does not stop")


@pytest.mark.slow
def test_a_sweep_waits_for_a_run_that_is_one_of_its_cells(
    tmp_path: Path, ray_address: str, fault: Fault
) -> None:
    base = {**SMALL_RUN, "training": {**SMALL_RUN["training"], "max_steps": SMALL_RUN_STEPS}}
    write(tmp_path, "sweep.yaml", {"base": base, "grid": {"objective": OBJECTIVES}})
    write(tmp_path, "run.yaml", {**base, "objective": "DEFT"})
    root = tmp_path / "runs"
    with started(tmp_path, "run", "run.yaml", RAY_ADDRESS=ray_address) as run:
        wait_until(lambda: bool(list(root.glob("*/events.jsonl"))), seconds=300, process=run)
        with started(tmp_path, "sweep", "sweep.yaml", RAY_ADDRESS=ray_address) as sweep:
            finish(run)
            finish(sweep)
    require_whole_runs(root, 2)
    fault(
        "a sweep, one of whose cells is a run that another command works on",
        "the cell waits for it, and is finished then",
        seconds="it does not stop",
    )


@pytest.mark.slow
def test_two_sweeps_over_the_same_cells_while_others_read_them(
    tmp_path: Path, ray_address: str, fault: Fault
) -> None:
    for name in ("a", "b"):
        sweep = {"name": name, "base": SMALL_RUN, "grid": {"objective": OBJECTIVES}}
        write(tmp_path, f"{name}.yaml", sweep)
    root, port = tmp_path / "runs", free_port()
    with (
        started(tmp_path, "sweep", "a.yaml", RAY_ADDRESS=ray_address) as first,
        started(tmp_path, "sweep", "b.yaml", RAY_ADDRESS=ray_address) as second,
    ):
        wait_until(lambda: (root / "mlflow.db").exists(), seconds=300, process=first)
        wait_until(lambda: len(list(root.glob("sweeps/*/cells.jsonl"))) == 2, process=second)
        with started(tmp_path, "ui", "--port", str(port), "--no-browser") as ui:
            reads = 0
            while first.poll() is None or second.poll() is None:
                for name in ("a", "b"):
                    with started(tmp_path, "report", name) as report:
                        finish(report)
                    reads += 1
                assert answers(port) or reads < 20
            finish(first)
            finish(second)
            assert ui.poll() is None
            assert answers(port)
            ui.send_signal(signal.SIGINT)
            ui.communicate(timeout=60)
    assert reads > 2
    require_whole_runs(root, 2)
    fault(
        "two sweeps over the same cells at once, while `deft report` and `deft ui` read them",
        "each cell is run by one of them; both finish",
        seconds="it does not stop",
    )


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=20):
            return True
    except OSError:
        return False


@pytest.mark.slow
def test_a_root_that_is_deleted_is_named(tmp_path: Path, ray_address: str, fault: Fault) -> None:
    long = {**SMALL_RUN, "training": {**SMALL_RUN["training"], "epochs": 1000, "max_steps": 3000}}
    write(tmp_path, "run.yaml", {**long, "objective": "DEFT"})
    root = tmp_path / "runs"
    with started(tmp_path, "run", "run.yaml", RAY_ADDRESS=ray_address) as run:
        wait_until(lambda: bool(list(root.glob("*/events.jsonl"))), seconds=300, process=run)
        shutil.rmtree(root, ignore_errors=True)
        shutil.rmtree(root, ignore_errors=True)
        began = time.monotonic()
        output = finish(run, code=2)
        seconds = time.monotonic() - began
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, output
    assert str(root) in errors[0]
    fault(
        "the run root is deleted under a run",
        f"the command ends after {seconds:.0f} s and names a file that is gone",
        seconds="it is started again",
        lost="what was deleted",
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["blanks and letters", "symbolic link", "question mark and hash"])
def test_roots_of_any_name(kind: str, tmp_path: Path, ray_address: str) -> None:
    write(tmp_path, "run.yaml", {**SMALL_RUN, "objective": "DEFT"})
    root = tmp_path / "läufe von heute, 日本"
    arguments = ["run", "run.yaml"]
    if kind == "symbolic link":
        (tmp_path / "elsewhere").mkdir()
        root = tmp_path / "link"
        root.symlink_to(tmp_path / "elsewhere")
    elif kind == "question mark and hash":
        root = tmp_path / "what?is#this %41"
        arguments += ["--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db"]
    with started(tmp_path, *arguments, "--root", str(root), RAY_ADDRESS=ray_address) as run:
        finish(run)
    (directory,) = (file.parent for file in root.glob("*/spec.json"))
    assert train_steps(directory) == list(range(1, SMALL_RUN_STEPS + 1))
    assert (directory / "stages" / "record.json").is_file()
    for command in (["compare", directory.name], ["view", directory.name, "--no-browser"]):
        with started(tmp_path, *command, "--root", str(root)) as reader:
            finish(reader)
