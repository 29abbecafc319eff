"""A run on several nodes, one of which is lost: every node a raylet of its own.

Where the system lets us make network namespaces, every node is in one, with an address of its own;
elsewhere all have the loopback address.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

BIN = Path(sys.executable).parent
PREFIX, BRIDGE = "10.214.7", "deft-nodes"
HEAD_PORT = 26379

RUN_FILE = """
name: nodes
dataset: {name: figfont, size: 400}
model: tiny
objective: DEFT
training:
  num_workers: 2
  zero_stage: 2
  max_steps: 60
  batch_size: 8
  micro_batch_size: 2
  max_length: 256
  dtype: float32
  checkpoint_every: 5
evaluation: {benchmarks: [], general: false, heldout: null}
"""


class Machine:
    """Where the processes of one node run."""

    def __init__(self, address: str, prefix: tuple[str, ...], environment: Mapping[str, str]):
        self.address = address
        self.prefix = prefix
        self.environment = environment

    def popen(self, command: list[str | Path], **options: object) -> subprocess.Popen[str]:
        environment = {name: x for name, x in os.environ.items() if name != "RAY_ADDRESS"}
        return subprocess.Popen(
            [*self.prefix, *map(str, command)],
            env={**environment, **self.environment, "PATH": f"{BIN}:{os.environ['PATH']}"},
            text=True,
            **options,  # type: ignore[call-overload]
        )


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@contextmanager
def machines(number: int) -> Iterator[list[Machine]]:
    """Network namespaces on a bridge that leads nowhere else, or the loopback address for all."""
    with ExitStack() as stack:
        try:
            ip("link", "add", BRIDGE, "type", "bridge")
            stack.callback(ip, "link", "del", BRIDGE)
            ip("addr", "add", f"{PREFIX}.1/24", "dev", BRIDGE)
            ip("link", "set", BRIDGE, "up")
            found = []
            for index in range(2, number + 2):
                name, address = f"deft-node-{index}", f"{PREFIX}.{index}"
                inside = ("ip", "netns", "exec", name)
                ip("netns", "add", name)
                stack.callback(ip, "netns", "del", name)
                ip("link", "add", f"veth{index}", "type", "veth", "peer", "eth0", "netns", name)
                ip("link", "set", f"veth{index}", "master", BRIDGE, "up")
                ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
                ip("-n", name, "link", "set", "eth0", "up")
                ip("-n", name, "link", "set", "lo", "up")
                # By its way out a process knows its own address.
                ip("-n", name, "route", "add", "default", "via", f"{PREFIX}.1")
                found.append(Machine(address, inside, {"GLOO_SOCKET_IFNAME": "eth0"}))
        except (OSError, subprocess.CalledProcessError):
            stack.close()
            found = [Machine("127.0.0.1", (), {}) for _ in range(number)]
        yield found


class Node:
    """A raylet, and on the first node the head's services."""

    def __init__(self, machine: Machine, head: Machine, cpus: int) -> None:
        # Ray's sockets lie in it, and their paths may have 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="node-"))
        self.log = self.folder / "start.log"
        command: list[str | Path] = [BIN / "ray", "start", "--block", "--disable-usage-stats"]
        command += [f"--node-ip-address={machine.address}", f"--num-cpus={cpus}"]
        command += [f"--object-store-memory={128 * 1024**2}"]
        if machine is head:
            command += ["--head", f"--port={HEAD_PORT}", "--include-dashboard=false"]
            command += [f"--temp-dir={self.folder}"]
        else:
            command += [f"--address={head.address}:{HEAD_PORT}"]
        with self.log.open("wb") as log:
            self.process = machine.popen(command, stdout=log, stderr=log, start_new_session=True)

    def wait(self) -> None:
        deadline = time.monotonic() + 120
        while "Ray runtime started" not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.2)

    def kill(self) -> None:
        """SIGKILL to everything on the node, as if its power were cut."""
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(self.process.pid)
            family = [root, *root.children(recursive=True)]
            for member in family:
                with suppress(psutil.NoSuchProcess):
                    member.kill()
            psutil.wait_procs(family, timeout=20)
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.mark.slow
def test_a_run_outlives_a_node(tmp_path: Path) -> None:
    """Two workers on two nodes; one node's power is cut, and another node takes its place."""
    (tmp_path / "run.yaml").write_text(RUN_FILE)
    with machines(4) as (head, first, second, spare), ExitStack() as stack:

        def start(machine: Machine, cpus: int) -> Node:
            node = Node(machine, head, cpus)
            stack.callback(node.kill)
            node.wait()
            return node

        start(head, 0)
        start(first, 1)
        lost = start(second, 1)
        driver = head.popen(
            [BIN / "deft", "run", "run.yaml"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        stack.callback(driver.kill)
        snapshot = "*/checkpoints/*/checkpoint_manager_snapshot.json"
        deadline = time.monotonic() + 240
        while not list((tmp_path / "runs").glob(snapshot)):
            assert driver.poll() is None, driver.communicate()[0]
            assert time.monotonic() < deadline, "no checkpoint"
            time.sleep(0.1)
        lost.kill()
        killed = time.monotonic()
        start(spare, 1)
        said, _ = driver.communicate(timeout=400)
        print(f"the run ended {time.monotonic() - killed:.0f} s after the loss")
        assert driver.returncode == 0, said
        assert said.count("warning: a worker is gone") == 1
        assert "Traceback" not in said
    (run,) = (tmp_path / "runs").glob("nodes-*")
    manifest = json.loads((run / "stages" / "train.json").read_text())
    assert manifest["metrics"]["step"] == 60
    client = MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("deft")
    assert experiment is not None
    (recorded,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(recorded.info.run_id, "train/nll")
    assert [point.step for point in history] == list(range(1, 61))
