"""The MLflow run of a sweep, parent of the runs of its cells."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from deft.platform.tracking.recorder import MlflowQueue, flatten
from deft.workers.common.clock import now_ms


class SweepRecorder(MlflowQueue):
    """The MLflow run of a sweep, for as long as the block runs.

    One process holds it. Cells record themselves, each in its own process, by
    ``run_experiment(…, sweep=name)``.
    """

    def __init__(
        self, directory: Path, name: str, tracking_uri: str, notify: Callable[[str], None]
    ) -> None:
        """Prepare to send, see `MlflowQueue`.

        Args:
            directory: of the sweep.
            name: of the sweep: what `run_experiment` gets as ``sweep``.
            tracking_uri: of MLflow.
            notify: called once with a message that MLflow cannot be reached, and why.
        """
        super().__init__(directory, name, tracking_uri, notify)
        self.directory = directory
        self.name = name

    def __enter__(self) -> Self:
        tags = {
            "deft.sweep": self.name,
            "deft.kind": "sweep",
            "deft.directory": str(self.directory.resolve()),
            "mlflow.source.name": "deft sweep",
        }
        self._start(tags, {"sweep": self.name})
        return self

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log settings of the sweep, such as its axes; nested ones become dotted keys."""
        self._outbox.append({"params": flatten(params)})

    def log_note(self, markdown: str) -> None:
        """Describe the sweep where MLflow shows it."""
        self._outbox.append({"tags": {"mlflow.note.content": markdown}})

    def add_cell(self, run: Path) -> None:
        """Make the run in directory ``run`` a child, whichever sweep it was of before.

        Called when a cell has ended, or was found finished.
        """
        self._outbox.append({"child": str(run.resolve()), "sweep": self.name})

    def end_cell(self, run: Path) -> None:
        """Mark the run in directory ``run`` as killed, if it is still said to be running."""
        self._outbox.append({"killed": str(run.resolve()), "time": now_ms()})

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log numbers of the sweep as a whole."""
        self._outbox.append({"step": step, "time": now_ms(), "metrics": dict(metrics)})

    def log_artifacts(self, path: Path) -> None:
        """Log a file, or a directory under its own name, such as the report's."""
        self._send_files(path)

    def finish(self) -> str | None:
        """End the run; return its MLflow id as `Recorder.finish` does."""
        return self._finish()
