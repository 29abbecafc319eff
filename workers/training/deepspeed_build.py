"""DeepSpeed's C++ extension, which the first worker of a machine compiles."""

from __future__ import annotations

from pathlib import Path

import deepspeed
from deepspeed.comm.torch import build_shm_op
from torch.utils.cpp_extension import _get_build_directory

from deft.workers.common.files import exclusive

PATIENCE = 600.0
"""Seconds for another worker of this machine to compile; it takes about half a minute."""


def load_collectives() -> None:
    """Load DeepSpeed's collectives in shared memory, if it has them for this kind of device.

    DeepSpeed keeps what was loaded, and does not look for it again. PyTorch guards a build with a
    file that a killed process leaves there, and for which the next one waits for ever. Here workers
    take turns by a lock that ends with its process: who holds it may remove the file.

    Raises:
        TimeoutError: another process held the lock for `PATIENCE` seconds.
    """
    builder = deepspeed.get_accelerator().create_op_builder("ShareMemCommBuilder")
    if builder is None:
        return
    directory = Path(_get_build_directory(builder.name, verbose=False))
    turn = directory.with_suffix(".turn")
    try:
        with exclusive(turn, patience=PATIENCE):
            (directory / "lock").unlink(missing_ok=True)
            build_shm_op()
    except BlockingIOError:
        raise TimeoutError(
            f"{turn}: another process has been compiling DeepSpeed's extension for {PATIENCE:.0f} s"
        ) from None
