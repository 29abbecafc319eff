"""Checkpoints: every rank writes its shard and Ray Train stores them; and resuming from one.

A checkpoint holds `engine/`, DeepSpeed's shards; `progress.json`, which says after how many steps
and on how many workers they were written; `checksums/`, by which damage is found; and, where it is
exported, `model/`. After the last step there is `engine/` only if the checkpoint is kept.

Files are gathered in the job's scratch directory, which the next start of the same run empties.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import ray.train
import torch
from ray.train import Checkpoint, CheckpointConsistencyMode, CheckpointUploadMode

from deft.workers.common.checksums import damaged_file_of, file_names, write_checksums

if TYPE_CHECKING:
    import deepspeed


@contextmanager
def temporary_files_in(scratch: str) -> Iterator[None]:
    """Let Ray Train, which has no setting for it, put downloads into ``scratch`` meanwhile."""
    before, tempfile.tempdir = tempfile.tempdir, scratch
    try:
        yield
    finally:
        tempfile.tempdir = before


def clear_scratch(scratch: str) -> None:
    """Delete what a killed attempt of this run left; one process of each node does.

    Raises:
        ValueError: there can be no such directory.
    """
    if ray.train.get_context().get_local_rank() == 0:
        shutil.rmtree(scratch, ignore_errors=True)
    torch.distributed.barrier()
    try:
        Path(scratch).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"training.scratch: {scratch} cannot be made on this node ({error.strerror}); give a "
            "directory that can be written on every node"
        ) from error


def save_checkpoint(
    engine: deepspeed.DeepSpeedEngine,
    export: Callable[[Path], None] | None,
    step: int,
    metrics: dict[str, float],
    scratch: Path,
    keeps_optimizer: bool,
) -> None:
    """Hand this rank's part to Ray Train, which merges and stores the parts in the background.

    Args:
        engine: what to save.
        export: writes the model into a directory; None exports none.
        step: optimizer steps done.
        metrics: of this step.
        scratch: the job's scratch directory.
        keeps_optimizer: whether to save what training goes on from.
    """
    directory = Path(tempfile.mkdtemp(prefix="checkpoint-", dir=scratch))
    if keeps_optimizer:
        engine.save_checkpoint(directory / "engine", tag="state")
    if export is not None:
        export(directory / "model")
    if torch.distributed.get_rank() == 0:
        progress = {"step": step, "world_size": torch.distributed.get_world_size()}
        (directory / "progress.json").write_text(json.dumps(progress))
    _leave_out_what_others_store(directory)
    ray.train.report(
        {"step": step, **metrics},
        checkpoint=Checkpoint.from_directory(directory),
        checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
        checkpoint_upload_fn=_store,
        delete_local_checkpoint_after_upload=True,
    )


def _leave_out_what_others_store(directory: Path) -> None:
    """Delete files that a lower rank has as well: one copy of each goes into the checkpoint."""
    names = set(file_names(directory))
    held: list[set[str]] = [set()] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(held, names)
    for name in names.intersection(set().union(*held[: torch.distributed.get_rank()])):
        (directory / name).unlink()


def _store(checkpoint: Checkpoint, name: str) -> Checkpoint:
    """Store this rank's part, with its checksums, in a thread of Ray Train's."""
    context = ray.train.get_context()
    write_checksums(Path(checkpoint.path), context.get_world_rank())
    stored: Checkpoint = context.get_storage().persist_current_checkpoint(checkpoint, name)
    return stored


class Resumption:
    """The last checkpoint that is whole, if there is one, as local files while a block lasts.

    If it was written by another number of workers, it is converted to DeepSpeed's universal format,
    which any number can load.

    Args:
        rank: this process's.
        world_size: number of processes.
        scratch: the job's scratch directory.
        on_damage: called with the step and a damaged file of every checkpoint that is passed over.
    """

    def __init__(
        self, rank: int, world_size: int, scratch: str, on_damage: Callable[[int, str], None]
    ) -> None:
        self._rank = rank
        self._world_size = world_size
        self._scratch = scratch
        self._on_damage = on_damage
        self._directory: Path | None = None
        self.step = 0
        """Optimizer steps that are done."""
        self._stack = ExitStack()
        self.is_universal = False

    def __enter__(self) -> Resumption:
        reported = ray.train.get_all_reported_checkpoints(CheckpointConsistencyMode.COMMITTED)
        for report in sorted(reported, key=lambda report: report.metrics["step"], reverse=True):
            with temporary_files_in(self._scratch):
                directory = Path(self._stack.enter_context(report.checkpoint.as_directory()))
            progress = _read_progress(directory)
            damaged = self._damaged_file(directory, progress["world_size"])
            if damaged is not None:
                self._on_damage(report.metrics["step"], damaged)
                continue
            self._directory, self.step = directory, progress["step"]
            self.is_universal = progress["world_size"] != self._world_size
            break
        return self

    def _damaged_file(self, directory: Path, written_by: int) -> str | None:
        """Find a damaged file, on every rank the same; each reads a share of the files."""
        damaged: list[str | None] = [None] * self._world_size
        parts = range(self._rank, written_by, self._world_size)
        own_share = (damaged_file_of(directory, part) for part in parts)
        torch.distributed.all_gather_object(damaged, next(filter(None, own_share), None))
        return next(filter(None, damaged), None)

    def load(self, engine: deepspeed.DeepSpeedEngine) -> int:
        """Restore weights, optimizer and schedule; returns the number of steps already done."""
        if self._directory is None:
            return 0
        source, tag = self._directory / "engine", "state"
        if self.is_universal:
            source, tag = self._converted(source / tag), "universal"
        engine.load_checkpoint(source, tag=tag)
        return self.step

    def _converted(self, shards: Path) -> Path:
        """Convert ``shards`` to the universal format, as the folder `universal` of a directory."""
        from deepspeed.checkpoint import ds_to_universal

        directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(dir=self._scratch)))
        with redirect_stdout(StringIO()):
            ds_to_universal.main(
                Namespace(
                    input_folder=str(shards),
                    output_folder=str(directory / "universal"),
                    num_extract_workers=1,
                    num_merge_workers=1,
                    keep_temp_folder=False,
                    strict=True,
                    inject_missing_state=True,
                )
            )
        return directory

    def __exit__(self, *error: object) -> None:
        self._stack.close()


def _read_progress(directory: Path) -> dict[str, int]:
    """Read `progress.json`; if that fails, the checksums of rank 0 will show the damage."""
    try:
        progress = json.loads((directory / "progress.json").read_text())
        return {key: progress[key] for key in ("step", "world_size")}
    except (OSError, ValueError, LookupError):
        return {"step": 0, "world_size": 1}
