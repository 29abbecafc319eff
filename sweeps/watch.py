"""What becomes of the cells of a running sweep, stored and shown."""

from __future__ import annotations

from collections.abc import Callable

from deft.sweeps.directory import SweepDirectory
from deft.sweeps.progress import SweepView


class CellWatch:
    """Stores and shows how cells end."""

    def __init__(
        self, directory: SweepDirectory, view: SweepView, ended: Callable[[str], None]
    ) -> None:
        """Watch the cells of a sweep.

        Args:
            directory: of the sweep.
            view: where ends are shown.
            ended: called with the name of each run that has ended, whether it failed or not.
        """
        self.directory = directory
        self.view = view
        self.ended = ended

    def completed(self, run: str) -> None:
        """Take in that a cell has returned, or that Ray Tune has stopped it."""
        if self.directory.is_evaluated(run):
            self.view.finished(run)
            self.ended(run)
        else:
            self._fail(run, "stopped early: others were ahead of it on held-out examples")

    def retried(self, run: str) -> None:
        """Take in that a cell has failed and is tried again."""
        self.view.retried(run)

    def failed(self, run: str) -> None:
        """Take in that a cell has failed for good."""
        # A cell that raises has recorded the cause itself.
        self._fail(run, "its process died")

    def _fail(self, run: str, otherwise: str) -> None:
        if self.directory.failure(run) is None:
            self.directory.fail(run, otherwise)
        self.view.failed(run, self.directory.failure(run) or otherwise)
        self.ended(run)
