"""A run on disk: its spec, the manifests of its finished stages, and its events."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict

from deft.platform.errors import UserError
from deft.platform.records.manifests import (
    AnyManifest,
    Manifest,
    Stage,
    manifest_file,
    read_manifest,
    require_manifest,
    save_manifest,
)
from deft.workers.common.clock import now_ms
from deft.workers.common.files import drop_torn_line, exclusive, write_atomic


class RunSpec(Protocol):
    """The part of a run's spec that its directory needs."""

    @property
    def run_name(self) -> str:
        """The directory's name: the same spec is the same run."""

    def model_dump_json(self, *, indent: int) -> str:
        """Return all settings as JSON."""


AnySpec = TypeVar("AnySpec", bound=RunSpec)


class Event(BaseModel):
    """Metrics of one optimizer step, as ``train/<metric>`` or ``validation/<metric>``."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")

    time: int
    """When they were logged, in milliseconds since the epoch."""
    step: int
    metrics: dict[str, float]


class RunDirectory(Generic[AnySpec]):
    """``ROOT/<name>-<hash>``; nothing is written before `create`.

    A stage that has no manifest did not happen.
    """

    def __init__(self, root: Path, spec: AnySpec) -> None:
        self.path = root / spec.run_name
        self.spec = spec
        self.events_file = self.path / "events.jsonl"

    def create(self) -> None:
        """Make the directory and write the resolved spec into it."""
        write_atomic(self.path / "spec.json", self.spec.model_dump_json(indent=2) + "\n")

    def has_finished(self, stage: Stage) -> bool:
        """Return whether ``stage`` has left its manifest."""
        return manifest_file(self.path, stage).is_file()

    def manifest(self, kind: type[AnyManifest]) -> AnyManifest | None:
        """Read the manifest of a stage; None if it has not finished."""
        return read_manifest(self.path, kind)

    def require_manifest(self, kind: type[AnyManifest]) -> AnyManifest:
        """Read the manifest of a stage that is known to have finished."""
        return require_manifest(self.path, kind)

    def finish(self, manifest: Manifest) -> None:
        """Declare the stage of ``manifest`` finished."""
        save_manifest(manifest_file(self.path, manifest.stage), manifest)

    def append_event(self, step: int, metrics: dict[str, float]) -> None:
        """Append one line to the run's events: metrics of an optimizer step, and the time."""
        event = Event(time=now_ms(), step=step, metrics=metrics)
        with self.events_file.open("a", encoding="utf-8") as file:
            file.write(event.model_dump_json() + "\n")

    def events(self) -> list[Event]:
        """Read all events so far."""
        return list(read_events(self.path))

    def train_events(self) -> list[Event]:
        """Read the events of optimizer steps, without those of validations."""
        return [event for event in self.events() if "train/nll" in event.metrics]

    @contextmanager
    def locked(self, patience: float = 0.0) -> Iterator[None]:
        """Hold the run for this process; ``patience`` is how long to wait for another, in seconds.

        Raises:
            UserError: another process is working on the same run.
        """
        with held(self.path, "run", patience=patience):
            drop_torn_line(self.events_file)
            yield


@contextmanager
def held(directory: Path, what: str, *, patience: float = 0.0) -> Iterator[None]:
    """Hold a directory of results for this process.

    Args:
        directory: that nobody else may work on.
        what: it holds, for the message.
        patience: seconds to wait for another process.

    Raises:
        UserError: another process holds it.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive(directory / ".lock", patience=patience))
        except BlockingIOError:
            raise UserError(
                f"{directory}: another process is already running this {what}; wait until it has "
                "ended"
            ) from None
        yield


def read_events(run: Path) -> Iterator[Event]:
    """Read the events of the run in directory ``run``, if it has any, one by one."""
    file = run / "events.jsonl"
    if not file.exists():
        return
    with file.open("rb") as lines:
        for line in lines:
            yield Event.model_validate_json(line)
