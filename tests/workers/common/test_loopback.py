"""Stores of torch's process groups listen where they shall."""

from __future__ import annotations

import subprocess
import sys

from helpers import environment_without_cluster, free_port

GROUP = """
import os, sys
from deft.workers.common.loopback import bind_stores_to_loopback, keep_to_loopback
keep_to_loopback()
import psutil, ray.util, torch
bind_stores_to_loopback()
bind_stores_to_loopback()
url = "tcp://127.0.0.1:" + sys.argv[1]
torch.distributed.init_process_group("gloo", init_method=url, rank=0, world_size=1)
torch.distributed.barrier()
connections = psutil.Process().net_connections("tcp")
print(ray.util.get_node_ip_address())
print(sorted({c.laddr.ip for c in connections if c.status == "LISTEN"}))
"""


def test_a_process_group_of_one_machine_listens_on_loopback_alone() -> None:
    environment = environment_without_cluster()
    done = subprocess.run(
        [sys.executable, "-c", GROUP, str(free_port())],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.stdout == "127.0.0.1\n['127.0.0.1']\n", done.stderr
