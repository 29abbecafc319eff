"""The queue on disk: order, batches, and what a crash may do to it."""

from __future__ import annotations

import json
from pathlib import Path

from deft.platform.tracking.outbox import MAX_POINTS, Outbox, read_delivered
from deft.workers.common.files import drop_torn_line


def write_events(directory: Path, count: int, width: int = 1) -> None:
    with (directory / "events.jsonl").open("a") as file:
        for step in range(count):
            metrics = {f"m{i}": 0.5 for i in range(width)}
            file.write(json.dumps({"step": step, "time": 1, "metrics": metrics}) + "\n")


def test_end_of_a_run_comes_after_all_its_metrics(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, "a")
    outbox.append({"tags": {"k": "v"}})
    write_events(tmp_path, 2)
    outbox.append({"status": "FINISHED", "time": 2})
    waiting = outbox.waiting()
    entries, _ = next(waiting)
    assert [entry["step"] for entry in entries] == [0, 1]
    # What is queued while delivery is going on may rest on metrics that came after them.
    write_events(tmp_path, 1)
    outbox.append({"status": "RUNNING", "time": 3})
    assert [entries for entries, _ in waiting] == [
        [{"tags": {"k": "v"}}],
        [{"status": "FINISHED", "time": 2}],
    ]


def test_metrics_go_in_batches_that_mlflow_takes(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, "a")
    write_events(tmp_path, 250, width=9)
    outbox.append({"step": 1, "time": 1, "metrics": {"last": 1.0}})
    sizes = [sum(len(e["metrics"]) for e in entries) for entries, _ in outbox.waiting()]
    assert sizes == [999, 999, 252, 1]
    assert max(sizes) <= MAX_POINTS


def test_delivery_goes_on_after_the_last_batch_that_was_marked(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, "a")
    outbox.bind_run("r1")
    write_events(tmp_path, 250, width=9)
    waiting = outbox.waiting()
    outbox.mark(next(waiting)[1])
    again = Outbox(tmp_path, "a")
    assert again.delivered == outbox.delivered
    assert next(again.waiting())[0][0]["step"] == 111
    # Another MLflow run, perhaps of another server, has got nothing yet.
    again.bind_run("r2")
    assert next(again.waiting())[0][0]["step"] == 0
    assert again.delivered.id == outbox.delivered.id


def test_what_a_crash_left_of_a_line_is_dropped(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, "a")
    outbox.append({"tags": {"k": "v"}})
    with (tmp_path / "mlflow" / "outbox.jsonl").open("a") as file:
        file.write('{"tags": {"torn')
    # Perhaps it is only being written: it is no entry yet.
    assert [entries for entries, _ in outbox.waiting()] == [[{"tags": {"k": "v"}}]]
    again = Outbox(tmp_path, "a")
    again.append({"status": "FINISHED", "time": 1})
    assert len(list(again.waiting())) == 2


def test_a_damaged_line_is_named_and_the_rest_delivered(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, "a")
    outbox.append({"tags": {"k": "v"}})
    with (tmp_path / "mlflow" / "outbox.jsonl").open("a") as file:
        file.write('{"tags": {"torn\n{"metrics": {"m": "x"}, "step": 1, "time": 1}\n')
    outbox.append({"status": "FINISHED", "time": 1})
    for entries, offsets in outbox.waiting():
        assert [entry for entry in entries if entry] in (
            [{"tags": {"k": "v"}}, {"status": "FINISHED", "time": 1}],
            [{"tags": {"k": "v"}}],
            [{"status": "FINISHED", "time": 1}],
            [],
        )
        outbox.mark(offsets)
    assert outbox.has_delivered(outbox.size())
    places = [message.split(": ")[0].rpartition(":")[2] for message in outbox.damaged]
    assert places == ["2", "3"]


def test_file_that_is_shorter_than_what_was_delivered_is_sent_anew(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, "a")
    write_events(tmp_path, 10)
    for _, offsets in list(outbox.waiting()):
        outbox.mark(offsets)
    assert outbox.has_delivered(outbox.size())
    (tmp_path / "events.jsonl").write_text("")  # as a machine leaves it that lost its power
    write_events(tmp_path, 3)
    again = Outbox(tmp_path, "a")
    assert [len(entries) for entries, _ in again.waiting()] == [3]


def test_directory_without_a_queue_has_delivered_nothing(tmp_path: Path) -> None:
    assert read_delivered(tmp_path) is None
    drop_torn_line(tmp_path / "none")
