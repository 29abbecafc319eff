"""Entry point of a Ray Train worker."""

from __future__ import annotations

import os
import sys
from typing import Any


def prepare_process() -> None:
    """Set what DeepSpeed reads from the environment when it is first imported."""
    import torch

    os.environ["DS_ACCELERATOR"] = "cuda" if torch.cuda.is_available() else "cpu"
    # It compiles an extension with the ninja that is installed beside this interpreter.
    os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])


def run_job(config: dict[str, Any]) -> None:
    """Run a job as Ray Train's `train_loop_per_worker`.

    Args:
        config: ``job``, a `TrainJob`; ``run``, which announces its placement group.
    """
    prepare_process()
    from deft.workers.common.ray_placement import announce_placement_group
    from deft.workers.training.sft_loop import train

    announce_placement_group(config["run"])
    train(config["job"])
