"""Runs on several nodes, of which one is lost or taken away; checkpoints go to an S3 server.

Every node is a raylet of its own. Where the system allows it each is in a network namespace, with
an address of its own; elsewhere all have the loopback address.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from deft.platform.records.manifests import EvaluateManifest, PrepareManifest, require_manifest
from deft.workers.data.figfont import figfont_examples
from deft.workers.modeling.model_files import build_tiny

BIN = Path(sys.executable).parent
HEAD_PORT = 26379
STEPS = 300
LONG = 600
"""Steps of a run that is not over before the node that it was given notice of is lost."""
NOTICE = 20
"""Seconds between the notice and the loss; clouds give 30 to 120."""
ACCESS = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    # The bridge leads nowhere, and to find that out about Amazon takes seconds for each process.
    "AWS_EC2_METADATA_DISABLED": "true",
}

RUN_FILE = """
name: nodes
dataset: {{name: figfont, size: 400}}
model: tiny
objective: DEFT
training:
  num_workers: 2
  zero_stage: 2
  epochs: 20
  max_steps: {steps}
  batch_size: 8
  micro_batch_size: 2
  max_length: 256
  dtype: float32
  checkpoint_every: {checkpoint_every}
  checkpoint_storage: {storage}
evaluation: {{benchmarks: [], general: false}}
"""


class Machine:
    """Where the processes of one node run."""

    def __init__(self, address: str, prefix: tuple[str, ...], environment: dict[str, str]):
        self.address = address
        self.prefix = prefix
        self.environment = environment

    def with_home(self, home: Path, own: Path) -> Machine:
        """Return this machine with its folder ``own`` in place of ``home``, for nobody else."""
        # Every command in a network namespace has mounts of its own already.
        bind = ("sh", "-c", 'mount --bind "$0" "$1" && shift && exec "$@"', str(own), str(home))
        return Machine(self.address, (*self.prefix, *bind), self.environment)

    def popen(self, command: list[str | Path], **options: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self.prefix, *map(str, command)],
            env={
                **os.environ,
                **ACCESS,
                **self.environment,
                "PATH": f"{BIN}:{os.environ['PATH']}",
            },
            text=True,
            **options,  # type: ignore[call-overload]
        )


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@contextmanager
def machines(number: int, subnet: int) -> Iterator[tuple[str, list[Machine]]]:
    """Namespaces on a bridge that leads nowhere else, or the loopback address for all.

    Yields an address that all of them reach this process at, and the machines.
    """
    prefix, bridge = f"10.214.{subnet}", f"deft-nodes-{subnet}"
    with ExitStack() as stack:
        try:
            ip("link", "add", bridge, "type", "bridge")
            stack.callback(ip, "link", "del", bridge)
            ip("addr", "add", f"{prefix}.1/24", "dev", bridge)
            ip("link", "set", bridge, "up")
            outside, hosts = f"{prefix}.1", []
            for index in range(2, number + 2):
                name, address = f"deft-node-{subnet}-{index}", f"{prefix}.{index}"
                inside = ("ip", "netns", "exec", name)
                ip("netns", "add", name)
                stack.callback(ip, "netns", "del", name)
                link = f"veth{subnet}-{index}"
                ip("link", "add", link, "type", "veth", "peer", "eth0", "netns", name)
                ip("link", "set", link, "master", bridge, "up")
                ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
                ip("-n", name, "link", "set", "eth0", "up")
                ip("-n", name, "link", "set", "lo", "up")
                # By its way out a process knows its own address.
                ip("-n", name, "route", "add", "default", "via", outside)
                hosts.append(Machine(address, inside, {"GLOO_SOCKET_IFNAME": "eth0"}))
        except (OSError, subprocess.CalledProcessError):
            stack.close()
            outside = "127.0.0.1"
            hosts = [Machine(outside, (), {}) for _ in range(number)]
        yield outside, hosts


class Node:
    """A raylet, and on the first node the head's services."""

    def __init__(self, machine: Machine, head: Machine, cpus: int) -> None:
        self.machine = machine
        # Ray's sockets lie in it, and their paths may have 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="node-"))
        self.log = self.folder / "start.log"
        command: list[str | Path] = [BIN / "ray", "start", "--block", "--disable-usage-stats"]
        command += [f"--node-ip-address={machine.address}", f"--num-cpus={cpus}"]
        command += [f"--object-store-memory={128 * 1024**2}"]
        command += [f"--resources={json.dumps({self.folder.name: 1})}"]
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

    def processes(self) -> list[psutil.Process]:
        """All processes on the node, Ray's and those that it started."""
        if self.machine.prefix:
            listed = subprocess.run(
                ["ip", "netns", "pids", self.machine.prefix[3]], capture_output=True, check=True
            )
            pids = map(int, listed.stdout.split())
            return [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(self.process.pid)
            return [root, *root.children(recursive=True)]
        return []

    def kill(self) -> None:
        """SIGKILL to everything on the node, as if its power were cut."""
        family = self.processes()
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(family, timeout=20)
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


class Cluster:
    """A head without CPUs, and nodes of one CPU each."""

    def __init__(self, hosts: list[Machine], stack: ExitStack) -> None:
        self._free = list(hosts)
        self._stack = stack
        self.head = self._free.pop(0)
        self.start(self.head, cpus=0)

    def start(self, machine: Machine | None = None, *, cpus: int = 1) -> Node:
        """Start a node on ``machine``, or on one that was not used yet."""
        node = Node(machine or self._free.pop(0), self.head, cpus)
        self._stack.callback(node.kill)
        node.wait()
        return node

    def drain(self, node: Node, *, seconds: int) -> None:
        """Give notice that ``node`` will be taken away, as an autoscaler does."""
        find = f"""if True:
            import ray
            ray.init(log_to_driver=False)
            (node,) = [n for n in ray.nodes() if "{node.folder.name}" in n["Resources"]]
            print("id:" + node["NodeID"])
        """
        output, _ = self.popen(sys.executable, "-c", find, cwd=node.folder).communicate(timeout=60)
        command = [BIN / "ray", "drain-node", "--reason=DRAIN_NODE_REASON_PREEMPTION"]
        command += [f"--node-id={output.partition('id:')[2].strip()}", "--reason-message=spot"]
        command += [f"--deadline-remaining-seconds={seconds}"]
        drained = self.popen(*command, cwd=node.folder)
        output, _ = drained.communicate(timeout=60)
        assert drained.returncode == 0, output

    def popen(self, *command: str | Path, cwd: Path) -> subprocess.Popen[str]:
        """Start a process on the head that finds the cluster."""
        self.head.environment["RAY_ADDRESS"] = f"{self.head.address}:{HEAD_PORT}"
        process = self.head.popen(
            list(command), cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self._stack.callback(process.kill)
        return process


@pytest.fixture(scope="module")
def seven() -> Iterator[tuple[str, list[Machine]]]:
    """Machines for the tests that lose some of them."""
    with machines(7, subnet=7) as hosts:
        yield hosts


@pytest.fixture(scope="module")
def cluster(seven: tuple[str, list[Machine]]) -> Iterator[Cluster]:
    with ExitStack() as stack:
        yield Cluster(seven[1], stack)


@pytest.fixture
def storage(seven: tuple[str, list[Machine]], start_s3: Callable[[str], Any]) -> str:
    """URI of an empty bucket that all machines reach."""
    return str(start_s3(seven[0]).bucket())


@pytest.fixture
def steps(
    tmp_path: Path, read_curve: Callable[[Path], list[tuple[int, float]]]
) -> Callable[[], list[int]]:
    """Return the steps that the one run below `tmp_path` has on record now."""
    return lambda: [step for step, _ in read_curve(tmp_path / "runs")]


class Lines:
    """What a process prints, as it comes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.text = ""
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.text += line

    def wait_until(self, condition: Callable[[], bool], what: str, seconds: float = 300) -> float:
        """Seconds that it took."""
        started = time.monotonic()
        while not condition():
            assert self.process.poll() is None, self.text
            assert time.monotonic() < started + seconds, f"no {what}: {self.text}"
            time.sleep(0.1)
        return time.monotonic() - started


def workers_of(node: Node) -> list[psutil.Process]:
    """Training workers on ``node``."""
    processes = []
    for process in node.processes():
        with suppress(psutil.NoSuchProcess):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                processes.append(process)
    return processes


def start_run(
    cluster: Cluster, tmp_path: Path, storage: str, checkpoint_every: int, num_steps: int = STEPS
) -> Lines:
    (tmp_path / "run.yaml").write_text(
        RUN_FILE.format(steps=num_steps, checkpoint_every=checkpoint_every, storage=storage)
    )
    return Lines(cluster.popen(BIN / "deft", "run", "run.yaml", cwd=tmp_path))


def assert_ended_well(
    output: Lines, tmp_path: Path, steps: Callable[[], list[int]], num_steps: int = STEPS
) -> None:
    output.process.wait(timeout=600)
    assert output.process.returncode == 0, output.text
    assert "Traceback" not in output.text
    assert steps() == list(range(1, num_steps + 1))
    client = MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("deft")
    assert experiment is not None
    (recorded,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(recorded.info.run_id, "train/nll")
    assert [point.step for point in history] == list(range(1, num_steps + 1))


@pytest.mark.slow
def test_a_run_outlives_a_node(
    cluster: Cluster,
    storage: str,
    tmp_path: Path,
    steps: Callable[[], list[int]],
    fault: Callable[..., None],
) -> None:
    """Two workers on two nodes; one node's power is cut, and another node takes its place."""
    first, second = cluster.start(), cluster.start()
    output = start_run(cluster, tmp_path, storage, checkpoint_every=30)
    output.wait_until(lambda: len(steps()) > 70, "third checkpoint")
    assert len(workers_of(first)) == len(workers_of(second)) == 1
    second.kill()
    reached = len(steps())
    third = cluster.start()
    seconds = output.wait_until(lambda: len(steps()) > reached + 1, "further step")
    assert len(workers_of(third)) == 1
    assert_ended_well(output, tmp_path, steps)
    assert output.text.count("lost a training worker") == 1
    fault("a node's power is cut", "another node takes its place", seconds=seconds)
    first.kill()
    third.kill()


@pytest.mark.slow
def test_a_notice_of_preemption_is_answered_by_a_checkpoint(
    cluster: Cluster,
    storage: str,
    tmp_path: Path,
    steps: Callable[[], list[int]],
    fault: Callable[..., None],
) -> None:
    """Nothing is stored before the notice, which names a time; the node is gone at that time."""
    first, second = cluster.start(), cluster.start()
    output = start_run(cluster, tmp_path, storage, checkpoint_every=LONG, num_steps=LONG)
    output.wait_until(lambda: len(steps()) > 20, "step")
    third = cluster.start()
    cluster.drain(second, seconds=NOTICE)
    killer = threading.Timer(NOTICE, second.kill)
    killer.start()
    output.wait_until(lambda: "a node will be taken away" in output.text, "answer", NOTICE)
    killer.join()
    reached = len(steps())
    seconds = output.wait_until(lambda: len(steps()) > reached + 1, "further step")
    assert len(workers_of(third)) == 1
    assert_ended_well(output, tmp_path, steps, LONG)
    # The first step was taken once: training went on from what was stored upon the notice.
    assert output.text.count("held out, after 0 steps") == 1
    fault(
        "a notice that a node will be taken away, and then it is",
        "a checkpoint is stored at once, another node takes its place",
        seconds=seconds,
    )
    first.kill()
    third.kill()


HUB_RUN_FILE = """
name: hub
dataset: {name: figfont, size: 60}
model: org/small
objective: DEFT
training:
  {num_workers: 2, zero_stage: 2, max_steps: 4, batch_size: 8, max_length: 256, dtype: float32}
evaluation:
  general: false
  benchmarks: [{name: figfont, size: 4, max_tokens: 8}]
  engine: {type: transformers, cpus: 1}
"""


@pytest.mark.slow
def test_a_hub_model_that_one_machine_has_is_used_on_all(tmp_path: Path) -> None:
    """Three machines without a home in common; one of the two with a CPU has the model."""
    home, commit = tmp_path / "home", "0123456789abcdef" * 2 + "01234567"
    environment = {"HOME": str(home), "HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "1"}
    own = [tmp_path / f"home-{index}" for index in range(3)]
    for folder in (home, *own):
        folder.mkdir()
    repository = own[2] / "hf" / "hub" / "models--org--small"
    build_tiny(repository / "snapshots" / commit, figfont_examples(0, 40), seed=0)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    (tmp_path / "run.yaml").write_text(HUB_RUN_FILE)
    with ExitStack() as stack:
        _, hosts = stack.enter_context(machines(3, subnet=8))
        if not hosts[0].prefix:
            pytest.skip("needs network and mount namespaces: the right to make them")
        for host in hosts:
            host.environment |= environment
        separate = [host.with_home(home, folder) for host, folder in zip(hosts, own, strict=True)]
        cluster = Cluster(separate, stack)
        cluster.start()
        cluster.start()
        output = Lines(cluster.popen(BIN / "deft", "run", "run.yaml", cwd=tmp_path))
        try:
            output.process.wait(timeout=300)
        except subprocess.TimeoutExpired:
            pytest.fail(output.text)
        assert output.process.returncode == 0, output.text
    (run,) = (tmp_path / "runs").glob("hub-*")
    prepared = require_manifest(run, PrepareManifest).prepared
    assert Path(prepared.model_dir).parent == tmp_path / "runs" / "cache" / "models"
    results = require_manifest(run, EvaluateManifest).models
    assert {label: result.heldout["num_items"] > 0 for label, result in results.items()} == {
        "base": True,
        "eval": True,
    }
    assert not any(home.iterdir())
    assert not (own[0] / "hf" / "hub").exists()
