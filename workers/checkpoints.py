"""Checkpoints: every rank writes its shard, Ray Train stores them; and the way back.

A checkpoint holds `engine/`, DeepSpeed's shards; `progress.json`, which says after how many steps
and on how many workers they were written; and, where it is exported, `model/`.
"""

from __future__ import annotations

import json
import tempfile
from argparse import Namespace
from contextlib import ExitStack, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import ray.train
import torch
from ray.train import CheckpointUploadMode
from transformers import PreTrainedTokenizerBase

from deft.workers.engine import export_model

if TYPE_CHECKING:
    import deepspeed


def save_checkpoint(
    engine: deepspeed.DeepSpeedEngine,
    tokenizer: PreTrainedTokenizerBase | None,
    step: int,
    metrics: dict[str, float],
) -> None:
    """Hand this rank's part to Ray Train, which merges and stores the parts in the background.

    Args:
        engine: what to save.
        tokenizer: exported with the model; None exports neither.
        step: optimiser steps done.
        metrics: of this step.
    """
    directory = Path(tempfile.mkdtemp(prefix="checkpoint-"))
    engine.save_checkpoint(directory / "engine", tag="state")
    if tokenizer is not None:
        export_model(engine, tokenizer, directory / "model")
    if torch.distributed.get_rank() == 0:
        progress = {"step": step, "world_size": torch.distributed.get_world_size()}
        (directory / "progress.json").write_text(json.dumps(progress))
    ray.train.report(
        {"step": step, **metrics},
        checkpoint=ray.train.Checkpoint.from_directory(directory),
        checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
        delete_local_checkpoint_after_upload=True,
    )


class Resumption:
    """Ray Train's latest checkpoint, if there is one, as local files for as long as a block lasts.

    If it was written by another number of workers, it is converted to DeepSpeed's universal format,
    which any number can load.
    """

    def __init__(self, world_size: int) -> None:
        self._world_size = world_size
        self._directory: Path | None = None
        self._step = 0
        self._stack = ExitStack()
        self.is_universal = False

    def __enter__(self) -> Resumption:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return self
        self._directory = Path(self._stack.enter_context(checkpoint.as_directory()))
        progress = json.loads((self._directory / "progress.json").read_text())
        self._step = progress["step"]
        self.is_universal = progress["world_size"] != self._world_size
        return self

    def load(self, engine: deepspeed.DeepSpeedEngine) -> int:
        """Restore weights, optimiser and schedule; returns the number of steps already done."""
        if self._directory is None:
            return 0
        source, tag = self._directory / "engine", "state"
        if self.is_universal:
            source, tag = self._converted(source / tag), "universal"
        engine.load_checkpoint(source, tag=tag)
        return self._step

    def _converted(self, shards: Path) -> Path:
        """A directory with ``shards`` in the universal format, as the folder `universal`."""
        from deepspeed.checkpoint import ds_to_universal

        directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
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
