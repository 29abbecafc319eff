"""TensorBoard's files beside MLflow: each value once, however often a run is taken up again."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from deft.platform.config.loading import load_spec
from deft.platform.errors import UserError
from deft.platform.records.run_directory import RunDirectory
from deft.platform.tracking.experiment_recorder import ExperimentRecorder
from deft.platform.tracking.tensorboard import FOLDER
from deft.platform.tracking.uri import default_tracking_uri

NAMES = {"dataset": "figfont", "model": "tiny", "objective": "DEFT"}
BOTH = "tracking=[mlflow, tensorboard]"


def read_events(folder: Path) -> Iterator[Event]:
    """Read TensorBoard's records: length and its checksum, an event and its checksum."""
    for file in folder.iterdir():
        content = file.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = Event()
            event.ParseFromString(content[12 : 12 + length])
            yield event
            content = content[12 + length + 4 :]


def test_each_value_is_there_once_after_a_second_start(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, load_spec(None, NAMES, [BOTH]))
    run.create()
    for start in (0, 1):
        with ExperimentRecorder(run, default_tracking_uri(tmp_path), pytest.fail) as recorder:
            run.append_event(start + 1, {"train/nll": 3.0 - start})
            recorder.log(start, {"eval/figfont/avg": 0.5 + start}, 1_700_000_000_000)
    events = list(read_events(run.path / FOLDER))
    values = [
        (value.tag, event.step, value.simple_value)
        for event in events
        for value in event.summary.value
        if value.tag.startswith(("train/", "eval/"))
    ]
    assert sorted(values) == [
        ("eval/figfont/avg", 0, 0.5),
        ("eval/figfont/avg", 1, 1.5),
        ("train/nll", 1, 3.0),
        ("train/nll", 2, 2.0),
    ]
    assert {
        event.wall_time
        for event in events
        if event.summary.value[:1] and event.summary.value[0].tag == "eval/figfont/avg"
    } == {1_700_000_000.0}
    assert any(value.tag.startswith("settings") for e in events for value in e.summary.value)


def test_where_curves_go_does_not_make_another_run() -> None:
    plain, both = load_spec(None, NAMES), load_spec(None, NAMES, [BOTH])
    assert plain.run_name == both.run_name
    assert "tracking" not in plain.model_dump()
    with pytest.raises(UserError, match=r"tracking: .*give \[mlflow, tensorboard\]"):
        load_spec(None, NAMES, ["tracking=[tensorboard]"])
