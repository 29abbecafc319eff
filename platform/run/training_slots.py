"""Devices that the cells of a sweep take turns with, for training and held-out losses."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from deft.workers.common.files import exclusive

INTERVAL = 1.0
"""Seconds between attempts to take a slot while all are taken."""


@dataclass(frozen=True)
class TrainingSlots:
    """A number of slots, each of the devices that a cell needs at most at a time.

    Who holds one finds its devices free: a cell that has trained needs not wait, to measure its
    held-out loss, for the training of the cell that comes next. A slot is a lock file, so that a
    process that dies gives it back.
    """

    folder: Path
    """On storage that all nodes share."""
    number: int

    @contextmanager
    def one(self) -> Iterator[None]:
        """Hold a slot for this block; waits until one is free."""
        with ExitStack() as stack:
            while not self._take(stack):
                time.sleep(INTERVAL)
            yield

    def _take(self, stack: ExitStack) -> bool:
        for index in range(self.number):
            try:
                stack.enter_context(exclusive(self.folder / f"{index}.lock", patience=0))
            except BlockingIOError:
                continue
            return True
        return False
