"""What to say when a training worker was killed because its node ran out of memory."""

from __future__ import annotations

import json
import re
from pathlib import Path

import psutil

from deft.objectives.spec import ObjectiveSpec
from deft.platform.commands.cost_model import GIB, worker_memory
from deft.platform.errors import describe_memory_use
from deft.workers.catalogs.models import read_dimensions
from deft.workers.spec import TrainingSpec
from deft.workers.training.job import TrainJob


def count_kernel_kills() -> int:
    """Return how many processes this machine's kernel has killed for memory since it started."""
    match = re.search(r"^oom_kill (\d+)$", Path("/proc/vmstat").read_text(), re.MULTILINE)
    return int(match[1]) if match else 0


def describe_shortage(cause: BaseException, job: TrainJob, kills_before: int) -> str | None:
    """Say what a worker needed and had, and what to lower; None if memory is not why it died.

    Args:
        cause: how Ray describes the worker's death.
        job: what the worker ran.
        kills_before: `count_kernel_kills` when training began.
    """
    if use := describe_memory_use(cause):
        had = use
    elif count_kernel_kills() > kills_before:
        had = (
            f"the kernel killed it; this machine has {psutil.virtual_memory().total / GIB:.1f} GiB"
        )
    else:
        return None
    needed = estimate_need(job)
    need = f"a worker needs about {needed / GIB:.1f} GiB and its libraries; " if needed else ""
    return f"out of memory: {had}; {need}{advise(job.training)}"


def estimate_need(job: TrainJob) -> int | None:
    """Return about how many bytes a worker needs; None if the model's sizes are unknown."""
    model = read_dimensions(json.loads(Path(job.model_dir, "config.json").read_text()))
    if model is None:
        return None
    objective = ObjectiveSpec.model_validate(job.objective).name
    return worker_memory(model, job.training, objective).total


def advise(training: TrainingSpec) -> str:
    """Name the settings that lower the memory a worker needs, by how little else they change."""
    lower = ["training.max_length"]
    if training.micro_batch_size > 1:
        lower.insert(0, "training.micro_batch_size")
    other = []
    if not training.gradient_checkpointing:
        other.append("set training.gradient_checkpointing")
    if training.num_workers > 1 and training.resolved_zero_stage < 3:
        other.append("raise training.zero_stage")
    return ", or ".join([f"lower {' or '.join(lower)}", *other])
