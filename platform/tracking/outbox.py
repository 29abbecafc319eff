"""A durable, ordered queue of MLflow writes: producers append to files, one thread delivers.

Producers never wait for a server. What the server has confirmed is stored on disk; where that is
not certain, because it was killed or its response was lost, the same is sent again, so everything
that a `Destination` does must be idempotent.
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

from deft.platform.errors import describe_error
from deft.workers.common.clock import now_ms
from deft.workers.common.files import (
    append_line,
    damaged_line,
    drop_torn_line,
    reading,
    write_atomic,
)

QueueEntry = dict[str, Any]
"""One write, see `Destination.apply`."""

MAX_POINTS = 1000
"""Metric points that MLflow accepts in one request."""

POLL_INTERVAL = 2.0
"""Seconds between looks at the queue."""

MAX_RETRY_INTERVAL = 30.0
"""Seconds between attempts after many failures; the first retries come after 1, 2, 4, …"""


@dataclass(frozen=True)
class Delivered:
    """How much of a directory's queue has been delivered, and to which MLflow run."""

    name: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Tag used to find an MLflow run again if the create request timed out."""
    created_at: int = field(default_factory=now_ms)
    """Milliseconds since the epoch."""
    run_id: str | None = None
    """The MLflow run that received it."""
    events: int = 0
    """Bytes of `events.jsonl`."""
    entries: int = 0
    """Bytes of `mlflow/outbox.jsonl`."""


class Outbox:
    """The queue of one directory: its `events.jsonl`, and everything else in `mlflow/outbox.jsonl`.

    One process at a time may hold it.
    """

    def __init__(self, directory: Path, name: str, *, record: str = "delivered") -> None:
        """Open or begin the queue of a directory.

        Args:
            directory: where the queue lies.
            name: of the MLflow run.
            record: name of the file that says how much was delivered, one for each destination.
        """
        self.directory = directory
        self._record = directory / "mlflow" / f"{record}.json"
        self.damaged: list[str] = []
        """Lines that `waiting` left out because they cannot be read, as messages."""
        self._files = {
            "events": directory / "events.jsonl",
            "entries": directory / "mlflow" / "outbox.jsonl",
        }
        self._lock = threading.Lock()
        drop_torn_line(self._files["entries"])
        delivered_before = _read_delivered(self._record)
        self.delivered = delivered_before or Delivered(name)
        # A machine that went down may have kept less of a file than was delivered from it.
        shrunk = {
            key: 0
            for key, file in self._files.items()
            if getattr(self.delivered, key) > _size(file)
        }
        if delivered_before is None or shrunk:
            self._store(**shrunk)

    def append(self, entry: QueueEntry) -> None:
        """Queue one entry, see `Destination.apply`."""
        with self._lock:
            append_line(self._files["entries"], json.dumps(entry))

    def waiting(self) -> Iterator[tuple[list[QueueEntry], dict[str, int]]]:
        """Yield undelivered entries in batches, each with the offsets to `mark` after delivery."""
        # Looked up first, so that the end of a run comes after all its metrics.
        end = _size(self._files["entries"])
        for key, until in (("events", _size(self._files["events"])), ("entries", end)):
            points, offset = 0, getattr(self.delivered, key)
            batch: list[QueueEntry] = []
            for entry, offset_after in _lines(self._files[key], offset, until, self.damaged):
                count = len(entry.get("metrics", ()))
                if batch and (not count or not points or points + count > MAX_POINTS):
                    yield batch, {key: offset}
                    points, batch = 0, []
                points, offset = points + count, offset_after
                batch.append(entry)
            if batch:
                yield batch, {key: offset}

    def size(self) -> dict[str, int]:
        """Return the bytes that have been queued so far."""
        return {key: _size(file) for key, file in self._files.items()}

    def has_delivered(self, size: dict[str, int]) -> bool:
        """Return whether everything up to ``size`` has been delivered."""
        return all(getattr(self.delivered, key) >= end for key, end in size.items())

    def bind_run(self, run_id: str) -> None:
        """Set the MLflow run that entries go to; a different one than before gets them all."""
        if run_id != self.delivered.run_id:
            self._store(run_id=run_id, events=0, entries=0)

    def mark(self, offsets: dict[str, int]) -> None:
        """Store that what `waiting` yielded with ``offsets`` was delivered."""
        self._store(**offsets)

    def _store(self, **changes: Any) -> None:
        self.delivered = replace(self.delivered, **changes)
        write_atomic(self._record, json.dumps(asdict(self.delivered)) + "\n")


def read_delivered(directory: Path) -> Delivered | None:
    """Read how much of the queue in ``directory`` was delivered; None if there is no queue."""
    return _read_delivered(directory / "mlflow" / "delivered.json")


def _read_delivered(file: Path) -> Delivered | None:
    remedy = "delete it and run the same command again; MLflow gets a second run then"
    try:
        with reading(file, remedy):
            return Delivered(**json.loads(file.read_text()))
    except FileNotFoundError:
        return None


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _lines(
    file: Path, start: int, end: int, damaged: list[str]
) -> Iterator[tuple[QueueEntry, int]]:
    """Yield the lines from byte ``start`` to ``end``, each with the offset of its end.

    One that cannot be read is an entry without content, and a message in ``damaged``.
    """
    if start >= end:
        return
    with file.open("rb") as stream:
        stream.seek(start)
        while start < end:
            line = stream.readline()
            if not line.endswith(b"\n"):  # still being written
                return
            start += len(line)
            try:
                entry = _parse(line)
            except (ValueError, LookupError, TypeError) as error:
                number = file.read_bytes()[:start].count(b"\n")
                damaged.append(damaged_line(file, number, error))
                entry = {}
            yield entry, start


def _parse(line: bytes) -> QueueEntry:
    entry: QueueEntry = dict(json.loads(line))
    if "metrics" in entry:
        metrics = {str(name): float(value) for name, value in dict(entry["metrics"]).items()}
        entry |= {"metrics": metrics, "step": int(entry["step"]), "time": int(entry["time"])}
    return entry


class RefusedError(Exception):
    """MLflow rejected an entry for good; those after it may still be accepted."""


class Destination(Protocol):
    """The MLflow run that entries are sent to."""

    @property
    def run_id(self) -> str:
        """MLflow's id of it."""

    def apply(self, entries: Sequence[QueueEntry]) -> None:
        """Write ``entries``, all or some of them; repeating it has no effect.

        Raises:
            RefusedError: one of them was rejected for good.
            Exception: they could not be written now.
        """


class DeliveryThread(threading.Thread):
    """Delivers an outbox, from `start` to `stop`."""

    def __init__(
        self,
        outbox: Outbox,
        connect: Callable[[], Destination],
        notify: Callable[[str], None],
        *,
        service: str = "MLflow",
    ) -> None:
        """Prepare to deliver; nothing is sent before `start`.

        Args:
            outbox: what is delivered.
            connect: finds or makes the destination; called again after every failure.
            notify: called once when delivery fails for the second time in a row, with the cause,
                and once when it works again.
            service: what is delivered to, for messages.
        """
        super().__init__(name=service, daemon=True)
        self._service = service
        self.outbox = outbox
        self._connect = connect
        self._notify = notify
        self._destination: Destination | None = None
        self._changed = threading.Condition()
        self._attempts = 0
        self._failures = 0
        self._moved_at = time.monotonic()
        self._stuck = False
        self._uploading = False
        self._hurried = False
        self._ended = False
        self._notified: set[str] = set()

    def stop(self) -> None:
        """Stop delivering; a request in flight may still arrive."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        # A request in flight ends with the process; the next process sends it again.
        self.join(timeout=1.0)

    def run(self) -> None:
        """Deliver what is queued, until `stop`."""
        while not self._ended:
            try:
                self._deliver()
                if self._stuck and not self._ended:
                    self._notify_once(
                        f"{self._service} answers again; the queued results were delivered"
                    )
                self._failures, self._stuck = 0, False
            except Exception as error:
                self._failures += 1
                self._destination = None
                # Parallel trials that create the same entry may collide once: no reason to warn.
                if self._failures > 1:
                    self._stuck = True
                    self._notify_once(
                        f"warning: cannot reach {self._service}; results are queued on disk and "
                        "will be retried",
                        describe_error(error)[:400],
                    )
            with self._changed:
                self._attempts += 1
                self._changed.notify_all()
                if not self._ended:
                    self._changed.wait(self._pause())

    def _pause(self) -> float:
        if self._hurried:
            return 0.5
        return (
            min(2.0 ** (self._failures - 1), MAX_RETRY_INTERVAL)
            if self._failures
            else POLL_INTERVAL
        )

    def _deliver(self) -> None:
        if self._destination is None:
            self._destination = self._connect()
            self.outbox.bind_run(self._destination.run_id)
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
            for message in self.outbox.damaged:
                self._notify_once(f"warning: {message}")
            self._failures, self._moved_at = 0, time.monotonic()

    def _deliver_one_by_one(self, destination: Destination, entries: Sequence[QueueEntry]) -> None:
        for entry in entries:
            try:
                destination.apply([entry])
            except RefusedError as refusal:
                self._notify_once(
                    f"warning: {self._service} refuses a part of this run", str(refusal)[:400]
                )

    def _notify_once(self, what: str, cause: str = "") -> None:
        if what not in self._notified:
            self._notified.add(what)
            # The console may be gone: no reason to stop delivering.
            with contextlib.suppress(Exception):
                self._notify(f"{what}: {cause}" if cause else what)

    def flush(self, patience: float) -> bool:
        """Wait until everything that is queued by now has been delivered.

        Returns:
            False if MLflow accepted nothing for ``patience`` seconds, before or during this call.
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
                is_overdue = self._attempts > attempts or now > began + patience
                if is_overdue and not self._uploading and now > self._moved_at + patience:
                    return False
                self._changed.wait(0.2)
        return True
