"""Processes of a Ray that a command starts for itself listen on the loopback interface alone."""

from __future__ import annotations

import importlib
import os
import socket
from typing import Any

ADDRESS = "127.0.0.1"
"""Address of a node that no other machine reaches."""


def keep_to_loopback() -> None:
    """Let what this process starts listen on the loopback interface; called before ray is imported.

    Processes that it starts inherit all of it.
    """
    os.environ.update(
        # Read when ray is imported: the address of a node is the loopback interface's, as it is on
        # other systems than Linux, and with it Ray's servers and its metrics.
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",
        GLOO_SOCKET_IFNAME="lo",
        NCCL_SOCKET_IFNAME="lo",
        VLLM_HOST_IP=ADDRESS,
    )


def bind_stores_to_loopback() -> None:
    """Let the stores by which torch's processes find each other listen on loopback only.

    Torch itself lets them listen on every interface, and whoever connects can read and write. This
    does nothing on a node that others reach.
    """
    import ray.util

    if ray.util.get_node_ip_address() != ADDRESS:
        return
    # The package has a function of the same name.
    rendezvous: Any = importlib.import_module("torch.distributed.rendezvous")
    if rendezvous.TCPStore is not _loopback_store:
        rendezvous.TCPStore = _loopback_store


def _loopback_store(**arguments: Any) -> Any:
    import torch.distributed

    store: Any = vars(torch.distributed)["TCPStore"]
    if arguments["is_master"]:
        listening = socket.create_server((ADDRESS, arguments["port"]))
        arguments["master_listen_fd"] = listening.detach()
    return store(**arguments)
