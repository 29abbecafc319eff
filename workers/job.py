"""A training run as Ray ships it to its workers. Loads no torch, so that a driver can import it."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.util.queue import Queue

    from deft.workers.spec import TrainingSpec


@dataclass(frozen=True)
class TrainJob:
    """Everything one training run needs."""

    training: TrainingSpec
    objective: str
    """The objective's canonical name."""
    model_dir: str
    """Directory of the prepared model and tokenizer."""
    examples_dir: str
    """Directory of the examples before they were tokenised."""
    rows_dir: str
    """Directory of the prepared training examples."""
    validation_dir: str
    """Directory of the prepared held-out examples."""
    num_steps: int
    """Optimiser steps of the whole run."""
    seed: int
    events: Queue | None
    """Where rank 0 puts one dict a step; None for nowhere."""


def prepare_process() -> None:
    """Set what DeepSpeed reads from the environment when it is first imported."""
    import torch

    os.environ["DS_ACCELERATOR"] = "cuda" if torch.cuda.is_available() else "cpu"
    # It compiles an extension with the ninja that is installed beside this interpreter.
    os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])


def run_job(config: dict[str, Any]) -> None:
    """Ray Train's `train_loop_per_worker`.

    Args:
        config: ``job``, a `TrainJob`; ``run``, by which its placement group is found.
    """
    prepare_process()
    from deft.workers.placement import announce_placement_group
    from deft.workers.sft_loop import train

    announce_placement_group(config["run"])
    train(config["job"])
