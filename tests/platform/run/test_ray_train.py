"""Training that is interrupted must end in the same curve as training that is not."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.train import WorkerGroupError

from deft.platform.run import ray_train as training
from deft.platform.run.ray_train import chosen_checkpoint, fetch_model, fit
from deft.workers.data.example_store import open_rows
from deft.workers.data.prepare import prepare
from deft.workers.dataset_spec import DatasetSpec
from deft.workers.spec import ModelSpec, TrainingSpec
from deft.workers.training.job import TrainJob

STEPS, CHECKPOINT_EVERY, DEATH = 10, 3, 5
SPEC = TrainingSpec(
    batch_size=8,
    micro_batch_size=2,
    max_length=256,
    learning_rate=2e-3,
    dtype="float32",
    checkpoint_every=CHECKPOINT_EVERY,
)


class FileEvents:
    """Writes events to a file; if asked, a process is killed after a certain step, once.

    Args:
        file: where to.
        death: the step; None for never.
        num_checkpoints: that are stored by then.
        kill: the signal; SIGSTOP freezes a process.
        victim: what Ray calls the process, of those on this node; None for the worker itself.
    """

    def __init__(
        self,
        file: Path,
        death: int | None,
        num_checkpoints: int,
        kill: signal.Signals,
        victim: str | None,
    ) -> None:
        self.file = file
        self.death = death
        self.num_checkpoints = num_checkpoints
        self.kill = kill
        self.victim = victim

    def put(self, event: dict[str, Any]) -> None:
        with self.file.open("a") as file:
            file.write(json.dumps({**event, "time": time.monotonic()}) + "\n")
        died = self.file.with_suffix(".died")
        if event["event"] == "train" and event["step"] == self.death and not died.exists():
            # Checkpoints are stored in the background, and steps here take milliseconds.
            wait_for_checkpoints(self.file.parent / "storage" / "run", self.num_checkpoints)
            died.touch()
            os.kill(find_sibling(self.victim) if self.victim else os.getpid(), self.kill)

    def curve(self) -> dict[int, list[float]]:
        """Return the objective at each step, once for every time that the step was taken."""
        points: dict[int, list[float]] = {}
        for line in self.file.read_text().splitlines():
            event = json.loads(line)
            if event["event"] == "train":
                points.setdefault(event["step"], []).append(event["metrics"]["objective"])
        return points

    def damage(self) -> list[tuple[int, str]]:
        """Step and file of every checkpoint that was found damaged."""
        events = map(json.loads, self.file.read_text().splitlines())
        damaged = (event for event in events if event["event"] == "damaged_checkpoint")
        return [(event["step"], event["metrics"]["file"]) for event in damaged]

    def pause(self) -> float:
        """Seconds between the step of the death and the first step after it."""
        events = map(json.loads, self.file.read_text().splitlines())
        times = [event["time"] for event in events if event["event"] == "train"]
        assert self.death is not None
        return float(times[self.death] - times[self.death - 1])


def find_sibling(name: str) -> int:
    """Process id of the one process of this node that Ray calls ``name``."""
    raylet = psutil.Process().parent()
    assert raylet is not None
    (checkpoint,) = (
        child.pid for child in raylet.children() if " ".join(child.cmdline()).startswith(name)
    )
    return checkpoint


def wait_for_checkpoints(run: Path, number: int) -> None:
    """Wait until Ray Train has so many checkpoints on record."""
    record = run / "checkpoint_manager_snapshot.json"
    deadline = time.monotonic() + 60
    while not (record.exists() and len(recorded_checkpoints(record)) >= number):
        assert time.monotonic() < deadline, "not so many checkpoints within a minute"
        time.sleep(0.05)


def recorded_checkpoints(record: Path) -> list[str]:
    """Names of the checkpoints on record, which is written while it is read."""
    try:
        results = json.loads(record.read_text())["checkpoint_results"]
    except ValueError:
        return []
    return [result["checkpoint_dir_name"] for result in results]


@pytest.fixture(scope="module")
def job(make_job: Callable[..., TrainJob]) -> TrainJob:
    return make_job(SPEC, objective="DEFT", num_steps=STEPS)


def run(
    job: TrainJob,
    directory: Path,
    death: int | None,
    *,
    num_checkpoints: int = 1,
    kill: signal.Signals = signal.SIGKILL,
    victim: str | None = None,
    **changes: Any,
) -> tuple[FileEvents, Any, list[str]]:
    """Train ``job`` with changed settings under ``directory``; returns what happened.

    The others are arguments of `FileEvents`.
    """
    directory.mkdir(exist_ok=True)
    events = FileEvents(directory / "events.jsonl", death, num_checkpoints, kill, victim)
    restarts: list[str] = []
    changed = replace(
        job,
        training=TrainingSpec(**{**dict(job.training), **changes}),
        events=events,  # type: ignore[arg-type]
    )
    result = fit(
        changed,
        name="run",
        storage=str(directory / "storage"),
        use_gpu=False,
        on_restart=restarts.append,
        is_training=lambda: False,
    )
    return events, result, restarts


@pytest.fixture(scope="module")
def uninterrupted(
    ray_cluster: None, job: TrainJob, tmp_path_factory: pytest.TempPathFactory
) -> list[float]:
    """Return ZeRO-2's curve; the stages' curves agree (tests/workers/training/test_sft_loop.py)."""
    events, *_ = run(job, tmp_path_factory.mktemp("whole") / "run", None)
    curve = events.curve()
    assert sorted(curve) == list(range(1, STEPS + 1))
    return [point for (point,) in curve.values()]


def assert_same_curve(
    events: FileEvents, expected: list[float], resumed_at: int = DEATH - DEATH % CHECKPOINT_EVERY
) -> None:
    curve = events.curve()
    assert sorted(curve) == list(range(1, STEPS + 1))
    repeated = [step for step, points in curve.items() if len(points) > 1]
    assert events.death is not None
    assert repeated == list(range(resumed_at + 1, events.death + 1))
    for step, points in curve.items():
        assert points == pytest.approx([expected[step - 1]] * len(points), rel=2e-4), step


@pytest.mark.slow
def test_the_best_checkpoint_is_kept_and_chosen(
    ray_cluster: None, job: TrainJob, tmp_path: Path
) -> None:
    # With such a learning rate the held-out NLL falls, and then explodes.
    events, result, _ = run(
        job,
        tmp_path / "run",
        None,
        keep="best",
        keep_checkpoints=1,
        checkpoint_every=2,
        learning_rate=0.2,
        warmup_ratio=0.8,
        checkpoint_storage=None,
        num_workers=1,
    )
    lines = map(json.loads, events.file.read_text().splitlines())
    nll = {e["step"]: e["metrics"]["nll"] for e in lines if e["event"] == "validation"}
    assert sorted(nll) == [0, 2, 4, 6, 8, 10]
    best = min((step for step in nll if step), key=nll.__getitem__)
    assert best != STEPS
    chosen = chosen_checkpoint(result, "best")
    with chosen.as_directory() as directory:
        assert json.loads(Path(directory, "progress.json").read_text())["step"] == best
    assert chosen_checkpoint(result, "last").path != chosen.path
    # The last one is kept besides, to continue from; all others are gone.
    kept = [path for path in (tmp_path / "run" / "storage" / "run").iterdir() if path.is_dir()]
    assert sorted(kept) == sorted(Path(c.path) for c in (chosen, result.checkpoint))
    fetch_model(chosen, tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").exists()
    last = Path(result.checkpoint.path)
    flip_a_bit(last / "model" / "model.safetensors")
    with pytest.raises(OSError, match=r"model/model\.safetensors is not what was stored"):
        fetch_model(result.checkpoint, tmp_path / "damaged")
    assert not (tmp_path / "damaged").exists()
    # What was exported can be trained further: the same tokenizer, and the weights as they were.
    prepared = prepare(
        DatasetSpec(name="figfont", size=60),
        ModelSpec(name=str(tmp_path / "model")),
        max_length=256,
        seed=0,
        cache=tmp_path / "cache",
    )
    rows, before = (open_rows(where) for where in (prepared.rows_dir, job.rows_dir))
    assert rows["input_ids"][:] == before["input_ids"][:]
    further = replace(job, model_dir=prepared.model_dir, num_steps=1)
    events, *_ = run(further, tmp_path / "further", None, num_workers=1, checkpoint_every=None)
    first = json.loads(events.file.read_text().splitlines()[0])
    assert (first["event"], first["step"]) == ("validation", 0)
    assert first["metrics"]["nll"] == pytest.approx(nll[best], rel=1e-4)


@pytest.mark.parametrize("stage", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_killed_worker_is_replaced(
    uninterrupted: list[float],
    job: TrainJob,
    tmp_path: Path,
    stage: int,
    fault: Callable[..., None],
) -> None:
    left_by_an_earlier_attempt = Path(job.scratch_dir) / "checkpoint-left"
    left_by_an_earlier_attempt.mkdir()
    events, result, restarts = run(job, tmp_path / "run", DEATH, zero_stage=stage)
    assert len(restarts) == 1
    assert not left_by_an_earlier_attempt.exists()
    assert_same_curve(events, uninterrupted)
    fault(
        f"kill -9 of a training worker (ZeRO {stage})",
        "workers are replaced and go on from the last checkpoint",
        seconds=events.pause(),
    )
    fetch_model(chosen_checkpoint(result, "last"), tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").exists()
    # What training would go on from is not stored where nothing goes on.
    assert {path.name for path in Path(result.checkpoint.path).iterdir()} == {
        "model",
        "progress.json",
        "checksums",
    }
    if stage == 3:
        events, again, _ = run(job, tmp_path / "run", DEATH, zero_stage=stage)
        assert_same_curve(events, uninterrupted)
        assert again.checkpoint.path == result.checkpoint.path


@pytest.mark.parametrize(
    ("stage", "num_workers"),
    [
        (2, 2),
        pytest.param(3, 1, marks=pytest.mark.slow),
        pytest.param(1, 2, marks=pytest.mark.slow),
        pytest.param(2, 1, marks=pytest.mark.slow),
    ],
)
def test_a_killed_job_goes_on_with_as_many_workers_as_there_are(
    uninterrupted: list[float],
    job: TrainJob,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: int,
    num_workers: int,
) -> None:
    monkeypatch.setattr(training, "MAX_RESTARTS", 0)
    with pytest.raises(WorkerGroupError):
        run(job, tmp_path / "run", DEATH, zero_stage=stage)
    events, *_ = run(job, tmp_path / "run", DEATH, zero_stage=stage, num_workers=num_workers)
    assert_same_curve(events, uninterrupted)


@pytest.mark.slow
def test_a_killed_controller_is_replaced_and_gives_back_what_it_had(
    uninterrupted: list[float], job: TrainJob, tmp_path: Path, fault: Callable[..., None]
) -> None:
    events, _, restarts = run(job, tmp_path / "run", DEATH, victim="ray::TrainController")
    assert len(restarts) == 1
    assert_same_curve(events, uninterrupted)
    deadline = time.monotonic() + 30
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline, "the killed controller's placement group is still there"
        time.sleep(0.2)
    fault(
        "kill -9 of Ray Train's controller",
        "so is the controller, with its workers",
        seconds=events.pause(),
    )


@pytest.mark.slow
def test_a_hung_worker_is_replaced(
    uninterrupted: list[float],
    job: TrainJob,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[..., None],
) -> None:
    monkeypatch.setenv("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", "15")  # ten minutes by default
    events, _, restarts = run(job, tmp_path / "run", DEATH, kill=signal.SIGSTOP)
    assert len(restarts) == 1
    assert_same_curve(events, uninterrupted)
    fault(
        "a training worker hangs (SIGSTOP; health checks given 15 s)",
        "after 10 minutes, here 15 s, as if it were dead",
        seconds=events.pause(),
    )


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


DAMAGES = {
    "with a flipped bit": (flip_a_bit, "engine/state/*zero_pp_rank_1*"),
    "cut off": (truncate, "engine/state/mp_rank_00*"),
    "with a file missing": (Path.unlink, "progress.json"),
}


@pytest.mark.parametrize(
    "damage",
    [
        name if index == 0 else pytest.param(name, marks=pytest.mark.slow)
        for index, name in enumerate(DAMAGES)
    ],
)
def test_a_damaged_checkpoint_is_passed_over(
    uninterrupted: list[float],
    job: TrainJob,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: str,
    fault: Callable[..., None],
) -> None:
    monkeypatch.setattr(training, "MAX_RESTARTS", 0)
    death = 2 * CHECKPOINT_EVERY + 2
    with pytest.raises(WorkerGroupError):
        run(job, tmp_path / "run", death, num_checkpoints=2)
    record = tmp_path / "run" / "storage" / "run" / "checkpoint_manager_snapshot.json"
    last = record.parent / recorded_checkpoints(record)[-1]
    apply, pattern = DAMAGES[damage]
    (file,) = last.glob(pattern)
    apply(file)
    events, *_ = run(job, tmp_path / "run", death)
    assert events.damage() == [(2 * CHECKPOINT_EVERY, str(file.relative_to(last)))]
    assert_same_curve(events, uninterrupted, resumed_at=CHECKPOINT_EVERY)
    fault(
        f"a checkpoint {damage} ({file.relative_to(last)})",
        "checksums tell; the checkpoint before is used",
        seconds=events.pause(),
    )
