"""A training run as Ray ships it to its workers. Loads no torch, so that a driver can import it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

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
    """Directory of the examples before they were tokenized."""
    rows_dir: str
    """Directory of the prepared training examples."""
    validation_dir: str
    """Directory of the prepared held-out examples."""
    scratch_dir: str
    """Directory for files on their way to storage: each node's own, or a shared one."""
    num_steps: int
    """Optimizer steps of the whole run."""
    seed: int
    events: Queue | None
    """Where rank 0 puts one dict a step; None for nowhere."""
    prompt_style: str = "chat"
    """Style that the rows were rendered in; the exported model ends its turns as they do."""
