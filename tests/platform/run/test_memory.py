"""What is said of a worker that was killed for memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError

from deft.platform.errors import describe_error
from deft.platform.run import memory
from deft.platform.run.memory import describe_shortage
from deft.workers.spec import TrainingSpec
from deft.workers.training.job import TrainJob

# The beginning of what Ray 2.56 says; the rest is a page.
MONITOR = (
    "4 worker(s) were killed due to the node running low on memory. Memory on the node (IP: "
    "127.0.0.1, ID: 935357bdef2c07671f457a9d4b4ab9596364dd45363a42e6a4cbb41a) was 8.37GB used / "
    "23.54GB limit (0.355526) OOM kill reason: Memory usage 8926793728B exceeded threshold"
)


def test_a_worker_killed_for_memory_is_named_with_need_and_remedy(
    make_job: Callable[..., TrainJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(TrainingSpec(num_workers=2, batch_size=8), objective="DEFT", num_steps=1)
    monkeypatch.setattr(memory, "count_kernel_kills", lambda: 7)
    by_monitor = describe_shortage(OutOfMemoryError(MONITOR), job, 7)
    assert by_monitor == (
        "out of memory: the node's use was 8.37 GB of 23.54 GB; a worker needs about 0.1 GiB and "
        "its libraries; lower training.micro_batch_size or training.max_length, or set "
        "training.gradient_checkpointing, or raise training.zero_stage"
    )
    by_kernel = describe_shortage(ActorDiedError(), job, 6)
    assert by_kernel is not None
    assert by_kernel.startswith("out of memory: the kernel killed it; this machine has ")
    assert describe_shortage(ActorDiedError(), job, 7) is None
    assert describe_error(OutOfMemoryError(MONITOR)) == (
        "out of memory: Ray ended a process when the node's use was 8.37 GB of 23.54 GB; let less "
        "run on it at a time, or give it more memory"
    )
