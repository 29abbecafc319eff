"""Curves of a run as TensorBoard's files, beside MLflow.

Such files can only be appended to. Each process writes those of its run anew, from the queue on
disk, so that nothing is in them twice.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from deft.platform.tracking.outbox import DeliveryThread, Outbox, QueueEntry

FOLDER = "tensorboard"
"""Folder of the files in a run's directory; `tensorboard --logdir ROOT` finds those of all runs."""


FLUSH_SECONDS = 5
"""Seconds after which what was written can be seen in TensorBoard."""


class TensorBoardRun:
    """Writes what is queued for MLflow, as far as TensorBoard has a place for it."""

    def __init__(self, directory: Path) -> None:
        """Begin anew, in an empty folder of the run in ``directory``."""
        from tensorboardX import SummaryWriter

        self.run_id = uuid.uuid4().hex
        shutil.rmtree(directory / FOLDER, ignore_errors=True)
        self._writer = SummaryWriter(str(directory / FOLDER), flush_secs=FLUSH_SECONDS)

    def apply(self, entries: Sequence[QueueEntry]) -> None:
        """Write the metrics, and settings as a text, among ``entries``."""
        for entry in entries:
            for name, value in entry.get("metrics", {}).items():
                seconds = entry["time"] / 1000
                self._writer.add_scalar(name, value, entry["step"], walltime=seconds)
            if "params" in entry:
                lines = (f"    {name}: {value}" for name, value in entry["params"].items())
                self._writer.add_text("settings", "\n".join(lines), 0)

    def close(self) -> None:
        """Wait until everything is in the file."""
        self._writer.close()


class TensorBoardDelivery:
    """Writes what is queued in a directory, from `start` to `stop`."""

    def __init__(self, directory: Path, notify: Callable[[str], None]) -> None:
        """Prepare to write; ``notify`` is called with a message if that fails."""
        self._directory = directory
        self._run: TensorBoardRun | None = None
        outbox = Outbox(directory, directory.name, record=FOLDER)
        self._thread = DeliveryThread(outbox, self._connect, notify, service="TensorBoard")

    def _connect(self) -> TensorBoardRun:
        if self._run is not None:
            self._run.close()
        self._run = TensorBoardRun(self._directory)
        return self._run

    def start(self) -> None:
        """Begin to write in the background."""
        self._thread.start()

    def stop(self, patience: float) -> None:
        """Write what is left; give up if nothing can be written for ``patience`` seconds."""
        self._thread.flush(patience)
        self._thread.stop()
        if self._run is not None:
            self._run.close()
