"""Kill a run at random moments, again and again until it finishes; nothing of it may show.

    python tests/bench/kills.py --rounds 100

In each round the driver, the training worker, the engine or Ray's GCS, one as likely as another, is
killed (SIGKILL) at a random moment of its life, once or twice, and the same command is given until
it finishes. Events, predictions, MLflow's history and weights are then those of a run that nobody
disturbed, and no process and no directory of Ray is left.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import yaml
from mlflow import MlflowClient

from deft.platform.records.run_directory import read_events

DEFT = Path(sys.executable).with_name("deft")
RUN: dict[str, Any] = {
    "name": "killed",
    "dataset": {"name": "figfont", "size": 120},
    "model": "tiny",
    "objective": "DEFT",
    "training": {
        "num_workers": 1,
        "epochs": 10,
        "max_steps": 40,
        "batch_size": 8,
        "micro_batch_size": 8,
        "max_length": 256,
        "dtype": "float32",
        "checkpoint_every": 10,
        "validate_every": 20,
    },
    "evaluation": {
        "general": False,
        "benchmarks": [{"name": "figfont", "size": 16, "max_tokens": 8}],
        "engine": {"type": "transformers"},
    },
}
VICTIMS = {
    "driver": "deft run",
    "worker": "ray::RayTrainWorker",
    "engine": "ray::Evaluator",
    "GCS": "gcs_server",
}
"""What is killed, and a part of the command line of its process."""
MAX_KILLS = 2
"""Kills in one round."""
MAX_STARTS = 12
"""Starts after which a round is given up."""
SECONDS_BETWEEN_LOOKS = 0.2
"""Seconds between two looks at the processes of a run."""
SECONDS_TO_END = 30.0
"""Seconds that a round's processes may stay behind its last command."""


@dataclass(frozen=True)
class Outcome:
    """What a finished run leaves, as far as it must not depend on how it went."""

    events: list[tuple[int, dict[str, float]]]
    predictions: dict[str, list[dict[str, Any]]]
    history: dict[str, list[tuple[int, float]]]
    weights: str


TIMED = re.compile("system/|.*(tokens_per_second|seconds)$")
"""Metrics that measure the machine."""


def outcome_of(root: Path) -> Outcome:
    """Read what the one run in ``root`` has left, on disk and in MLflow."""
    (run,) = root.glob("killed-*")
    events = [(event.step, _untimed(event.metrics)) for event in read_events(run)]
    predictions = {
        file.name: pq.read_table(file).to_pylist() for file in run.glob("predictions/*.parquet")
    }
    weights = hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest()
    return Outcome(sorted(events, key=str), predictions, _history(root), weights)


def _untimed(metrics: dict[str, float]) -> dict[str, float]:
    return {name: x for name, x in metrics.items() if not TIMED.match(name)}


def _history(root: Path) -> dict[str, list[tuple[int, float]]]:
    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("deft")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED", run.info.status
    return {
        name: [
            (point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)
        ]
        for name in sorted(run.data.metrics)
        if not TIMED.match(name)
    }


def start(folder: Path) -> subprocess.Popen[bytes]:
    """Start the run in ``folder``, on a Ray of its own, which keeps its files there too."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [DEFT, "run", "run.yaml"],
            cwd=folder,
            env={**environment, "TMPDIR": str(folder)},
            stdout=log,
            stderr=log,
        )


def victims(driver: subprocess.Popen[bytes]) -> dict[str, psutil.Process]:
    """Find the victims among the processes of a command."""
    there: dict[str, psutil.Process] = {}
    with suppress(psutil.NoSuchProcess):
        family = psutil.Process(driver.pid)
        for process in (family, *family.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                command = " ".join(process.cmdline())
                there |= {name: process for name, part in VICTIMS.items() if part in command}
    return there


def lifetimes(driver: subprocess.Popen[bytes]) -> dict[str, float]:
    """Wait for a command and return how many seconds each of the victims has lived."""
    seconds = dict.fromkeys(VICTIMS, 0.0)
    while driver.poll() is None:
        before = time.monotonic()
        time.sleep(SECONDS_BETWEEN_LOOKS)
        for victim in victims(driver):
            seconds[victim] += time.monotonic() - before
    return seconds


def kill(driver: subprocess.Popen[bytes], victim: str, age: float) -> bool:
    """Kill ``victim`` when it has lived for ``age`` seconds; return whether it lived that long."""
    born: float | None = None
    while driver.poll() is None:
        process = victims(driver).get(victim)
        if process is None and born is not None:
            return False
        if process is not None:
            born = born or time.monotonic()
            if time.monotonic() - born >= age:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
                    return True
        time.sleep(SECONDS_BETWEEN_LOOKS)
    return False


def disturbed(folder: Path, seconds: dict[str, float], randomness: random.Random) -> Counter[str]:
    """Run and kill until the run has finished; return what was killed how often, at least once.

    ``seconds`` says how long each of the victims lives where nobody kills it.
    """
    kills: Counter[str] = Counter()
    planned = randomness.randint(1, MAX_KILLS)
    for _ in range(MAX_STARTS):
        driver = start(folder)
        while driver.poll() is None and kills.total() < planned:
            victim = randomness.choice(sorted(VICTIMS))
            if kill(driver, victim, randomness.uniform(0, seconds[victim])):
                kills[victim] += 1
        if driver.wait() == 0:
            if kills:
                return kills
            shutil.rmtree(folder / "runs")  # it was faster; once more
    raise AssertionError((folder / "log").read_text())


def leftovers(folder: Path) -> list[str]:
    """Name the processes of a round and the directories of its Ray that have outlived it."""
    last = time.monotonic() + SECONDS_TO_END
    while (left := _processes_in(folder)) and time.monotonic() < last:
        time.sleep(0.2)
    files = [*folder.glob("deft-ray-*"), *folder.glob("deft-ray-*/**/*")]
    return left + [str(path) for path in sorted(files)[:10]]


def _processes_in(folder: Path) -> list[str]:
    left = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.cwd().startswith(str(folder)):
                left.append(" ".join(process.cmdline())[:200])
    return left


def kill_rounds(rounds: int, seed: int) -> Counter[str]:
    """Compare ``rounds`` disturbed runs with an undisturbed one; return what was killed how often.

    Raises:
        AssertionError: something of a run was lost or is another.
    """
    kills: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="k-") as directory:
        first = _folder(directory, 0)
        driver = start(first)
        seconds = lifetimes(driver)
        assert driver.returncode == 0, (first / "log").read_text()
        undisturbed = outcome_of(first / "runs")
        for number in range(1, rounds + 1):
            folder = _folder(directory, number)
            killed = disturbed(folder, seconds, random.Random(f"{seed} {number}"))
            outcome = outcome_of(folder / "runs")
            for field in ("events", "predictions", "history", "weights"):
                same = getattr(outcome, field) == getattr(undisturbed, field)
                log = (folder / "log").read_text()
                assert same, f"round {number}, {describe(killed)} killed: other {field}\n{log}"
            assert (left := leftovers(folder)) == [], (number, describe(killed), left)
            kills += killed
            print(f"round {number}: {describe(killed)}", flush=True)
            shutil.rmtree(folder)
    return kills


def _folder(directory: str, number: int) -> Path:
    folder = Path(directory) / f"{number}"
    folder.mkdir()
    (folder / "run.yaml").write_text(yaml.safe_dump(RUN))
    return folder


def describe(kills: Counter[str]) -> str:
    """Say what was killed how often."""
    return ", ".join(f"{victim} {number} times" for victim, number in sorted(kills.items()))


def main() -> None:
    """Run the rounds that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    kills = kill_rounds(arguments.rounds, arguments.seed)
    print(f"in {arguments.rounds} runs: {describe(kills)}")


if __name__ == "__main__":
    main()
