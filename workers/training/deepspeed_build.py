"""DeepSpeed's C++ extension, which the first worker of a machine compiles."""

from __future__ import annotations

import deepspeed

from deft.workers.common.compat import build_shared_memory_collectives, extension_build_directory
from deft.workers.common.files import exclusive

PATIENCE = 600.0
"""Seconds to wait for another worker of this machine to compile; it takes about half a minute."""


def load_collectives() -> None:
    """Load DeepSpeed's collectives in shared memory, if it has them for this kind of device.

    DeepSpeed keeps what was loaded, and does not look for it again. PyTorch guards a build with a
    file that a killed process leaves behind, and for which the next one waits without end. Here
    workers take turns by a lock that ends with its process: its holder may remove the file.

    Raises:
        TimeoutError: another process held the lock for `PATIENCE` seconds.
    """
    builder = deepspeed.get_accelerator().create_op_builder("ShareMemCommBuilder")
    if builder is None:
        return
    directory = extension_build_directory(builder.name)
    turn = directory.with_suffix(".turn")
    try:
        with exclusive(turn, patience=PATIENCE):
            (directory / "lock").unlink(missing_ok=True)
            build_shared_memory_collectives()
    except BlockingIOError:
        raise TimeoutError(
            f"{turn}: another process has been compiling DeepSpeed's extension for {PATIENCE:.0f} s"
        ) from None
