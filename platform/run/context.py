"""The settings and resources that all parts of a command share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from deft.evaluators.generation.pool import Pool
from deft.platform.console import RunConsole
from deft.platform.private_ray import remove_leftovers, sessions_folder
from deft.platform.records.find import require_root
from deft.platform.run.cluster import ray_cluster, require_workers
from deft.platform.run.training_slots import TrainingSlots
from deft.platform.tracking.uri import default_tracking_uri


@dataclass(frozen=True)
class RunContext:
    """Root, output, MLflow store and devices of the runs of one command."""

    root: Path
    """Run root, absolute: runs, the cache and the default MLflow store lie there."""
    console: RunConsole
    tracking_uri: str
    verbose: bool = False
    """Whether Ray's, DeepSpeed's and vLLM's own output is shown."""
    use_gpu: bool = False
    """Whether the cluster has GPUs, see `on_cluster`."""
    pool: Pool | None = None
    """Warm engines that several runs share; without, each run starts its own."""
    slots: TrainingSlots | None = None
    """Devices that several runs take turns with; without, they are this run's alone."""

    @property
    def cache(self) -> Path:
        """Folder of models, data and evaluations that runs share."""
        return self.root / "cache"

    def training_slot(self) -> AbstractContextManager[None]:
        """Hold devices for training and held-out losses during a block."""
        if self.slots is None:
            return nullcontext()
        return self._entering(self.slots.one(), "awaiting free devices")

    def cluster(self) -> AbstractContextManager[None]:
        """Connect to the Ray cluster for a block, or start one, see `ray_cluster`."""
        return self._entering(ray_cluster(verbose=self.verbose), "starting Ray")

    @contextmanager
    def _entering(self, block: AbstractContextManager[None], what: str) -> Iterator[None]:
        """Say ``what`` until ``block`` is entered."""
        with ExitStack() as stack:
            with self.console.waiting(what):
                stack.enter_context(block)
            yield

    def on_cluster(self, num_workers: int = 0) -> RunContext:
        """Return the context on the cluster that this process is connected to.

        Raises:
            UserError: the cluster cannot hold ``num_workers`` training workers.
        """
        return replace(self, use_gpu=require_workers(num_workers))


def open_context(
    root: Path, console: RunConsole, tracking_uri: str | None, *, verbose: bool
) -> RunContext:
    """Gather what a command's runs share, and remove what commands that were killed left of Ray.

    Raises:
        UserError: the run root cannot be made or written to.
    """
    require_root(root)
    remove_leftovers(sessions_folder())  # this command may need no Ray
    if not root.exists():
        # A run root is its owner's, with all that is in it; who wants another one makes it before.
        os.umask(0o077)
    return RunContext(
        root=root.resolve(),
        console=console,
        tracking_uri=tracking_uri or default_tracking_uri(root),
        verbose=verbose,
    )
