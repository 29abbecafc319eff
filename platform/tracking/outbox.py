"""What MLflow shall get: queued in files by whoever has it, delivered in order by one thread.

Whoever queues never waits for a server. What a server has taken is remembered on disk; where that
is not known for certain, because it was killed or its answer was lost, the same is sent again, so
everything that a `Destination` does must be without effect the second time.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from deft.platform.errors import describe
from deft.workers.common.files import drop_torn_line, write_atomic

Entry = dict[str, Any]

MAX_POINTS = 1000
"""Metric points that MLflow takes in one request."""

INTERVAL = 2.0
"""Seconds between looks at the queue."""

LONGEST_PAUSE = 30.0
"""Seconds between attempts when there have been many in vain; the first come after 1, 2, 4, …"""


@dataclass(frozen=True)
class Delivered:
    """How much of a directory's queue is where."""

    name: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    """By which an MLflow run is found again whose creation was not answered."""
    created_at: int = field(default_factory=lambda: time.time_ns() // 1_000_000)
    """Milliseconds since the epoch."""
    run_id: str | None = None
    """The MLflow run that has got so much."""
    events: int = 0
    """Bytes of `events.jsonl`."""
    entries: int = 0
    """Bytes of `mlflow/outbox.jsonl`."""


class Outbox:
    """The queue of one directory: its `events.jsonl`, and everything else in `mlflow/outbox.jsonl`.

    One process at a time may hold it.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self.directory = directory
        self._files = {
            "events": directory / "events.jsonl",
            "entries": directory / "mlflow" / "outbox.jsonl",
        }
        drop_torn_line(self._files["entries"])
        known = read_delivered(directory)
        self.delivered = known or Delivered(name)
        # A machine that went down may have kept less of a file than was delivered from it.
        shrunk = {
            key: 0
            for key, file in self._files.items()
            if getattr(self.delivered, key) > _size(file)
        }
        if known is None or shrunk:
            self._remember(**shrunk)

    def append(self, entry: Entry) -> None:
        """Queue one entry, see `Destination.apply`."""
        file = self._files["entries"]
        with file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")

    def waiting(self) -> Iterator[tuple[list[Entry], dict[str, int]]]:
        """What has not been delivered: entries to send in one go, and what to remember of them."""
        # Looked up first, so that the end of a run comes after all its metrics.
        end = _size(self._files["entries"])
        for key, until in (("events", _size(self._files["events"])), ("entries", end)):
            points, offset = 0, getattr(self.delivered, key)
            batch: list[Entry] = []
            for entry, offset_after in _lines(self._files[key], offset, until):
                count = len(entry.get("metrics", ()))
                if batch and (not count or not points or points + count > MAX_POINTS):
                    yield batch, {key: offset}
                    points, batch = 0, []
                points, offset = points + count, offset_after
                batch.append(entry)
            if batch:
                yield batch, {key: offset}

    def size(self) -> dict[str, int]:
        """Bytes that have been queued so far."""
        return {key: _size(file) for key, file in self._files.items()}

    def has_delivered(self, size: dict[str, int]) -> bool:
        """Whether everything up to ``size`` has been delivered."""
        return all(getattr(self.delivered, key) >= end for key, end in size.items())

    def deliver_to(self, run_id: str) -> None:
        """Say which MLflow run entries go to; another one than before needs them all."""
        if run_id != self.delivered.run_id:
            self._remember(run_id=run_id, events=0, entries=0)

    def mark(self, offsets: dict[str, int]) -> None:
        """Remember that what `waiting` yielded with ``offsets`` was delivered."""
        self._remember(**offsets)

    def _remember(self, **changes: Any) -> None:
        self.delivered = replace(self.delivered, **changes)
        write_atomic(_delivered_file(self.directory), json.dumps(asdict(self.delivered)) + "\n")


def read_delivered(directory: Path) -> Delivered | None:
    """How much of the queue in ``directory`` is where; None if there is none."""
    try:
        return Delivered(**json.loads(_delivered_file(directory).read_text()))
    except FileNotFoundError:
        return None


def _delivered_file(directory: Path) -> Path:
    return directory / "mlflow" / "delivered.json"


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _lines(file: Path, start: int, end: int) -> Iterator[tuple[Entry, int]]:
    """The lines from byte ``start`` to ``end``, and where each of them ends."""
    if start >= end:
        return
    with file.open("rb") as stream:
        stream.seek(start)
        while start < end:
            line = stream.readline()
            if not line.endswith(b"\n"):  # still being written
                return
            start += len(line)
            yield json.loads(line), start


class RefusedError(Exception):
    """An entry that will never be taken, and why; those after it may be."""


class Destination(Protocol):
    """Where entries go."""

    @property
    def run_id(self) -> str:
        """The MLflow run that they go to."""

    def apply(self, entries: Sequence[Entry]) -> None:
        """Take ``entries``, wholly or in part, any number of times.

        Raises:
            RefusedError: one of them will never be taken.
            Exception: they could not be taken now.
        """


class Courier(threading.Thread):
    """Delivers an outbox, from `start` to `stop`."""

    def __init__(
        self, outbox: Outbox, connect: Callable[[], Destination], say: Callable[[str], None]
    ) -> None:
        """Nothing is sent before `start`.

        Args:
            outbox: what is delivered.
            connect: finds or makes the destination; called again after every failure.
            say: told once that nothing can be delivered, and why, at the second attempt in vain;
                and once that it could be.
        """
        super().__init__(name="mlflow", daemon=True)
        self.outbox = outbox
        self._connect = connect
        self._say = say
        self._destination: Destination | None = None
        self._changed = threading.Condition()
        self._attempts = 0
        self._failures = 0
        self._moved_at = time.monotonic()
        self._stuck = False
        self._uploading = False
        self._hurried = False
        self._ended = False
        self._said: set[str] = set()

    def stop(self) -> None:
        """Deliver no more; what is on its way may still arrive."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        # A request in flight is cut off with the process; whoever comes next sends it again.
        self.join(timeout=1.0)

    def run(self) -> None:
        """Deliver what there is, time and again."""
        while not self._ended:
            try:
                self._deliver()
                if self._stuck and not self._ended:
                    self._say_once("MLflow answers again; what was waiting has been delivered")
                self._failures, self._stuck = 0, False
            except Exception as error:
                self._failures += 1
                self._destination = None
                # Parallel trials that make the same entry collide for a moment; no reason to warn.
                if self._failures > 1:
                    self._stuck = True
                    self._say_once(
                        "warning: MLflow takes nothing now, everything waits on disk",
                        describe(error)[:400],
                    )
            with self._changed:
                self._attempts += 1
                self._changed.notify_all()
                if not self._ended:
                    self._changed.wait(self._pause())

    def _pause(self) -> float:
        if self._hurried:
            return 0.5
        return min(2.0 ** (self._failures - 1), LONGEST_PAUSE) if self._failures else INTERVAL

    def _deliver(self) -> None:
        if self._destination is None:
            self._destination = self._connect()
            self.outbox.deliver_to(self._destination.run_id)
        for entries, offsets in self.outbox.waiting():
            if self._ended:
                return
            self._uploading = "artifact" in entries[0]
            try:
                self._destination.apply(entries)
            except RefusedError:
                self._deliver_one_by_one(self._destination, entries)
            finally:
                self._uploading = False
            self.outbox.mark(offsets)
            self._failures, self._moved_at = 0, time.monotonic()

    def _deliver_one_by_one(self, destination: Destination, entries: Sequence[Entry]) -> None:
        for entry in entries:
            try:
                destination.apply([entry])
            except RefusedError as refusal:
                self._say_once("warning: MLflow refuses a part of this run", str(refusal)[:400])

    def _say_once(self, what: str, cause: str = "") -> None:
        if what not in self._said:
            self._said.add(what)
            # Whoever listens may be gone: no reason to stop delivering.
            with contextlib.suppress(Exception):
                self._say(f"{what}: {cause}" if cause else what)

    def flush(self, patience: float) -> bool:
        """Wait until everything that is queued by now has been delivered.

        Returns:
            False if MLflow took nothing for ``patience`` seconds, before this call or during it.
        """
        size, attempts, began = self.outbox.size(), self._attempts, time.monotonic()
        with self._changed:
            if not self._failures:
                self._moved_at = began
            self._hurried = True
            self._changed.notify_all()
            while not self.outbox.has_delivered(size):
                now = time.monotonic()
                # After a long time in vain, one more attempt decides. A file may take longer than
                # that to upload; one that no longer moves is given up by what uploads it.
                tried = self._attempts > attempts or now > began + patience
                if tried and not self._uploading and now > self._moved_at + patience:
                    return False
                self._changed.wait(0.2)
        return True
