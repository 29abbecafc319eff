"""What the house rests on: the standard library's `platform`, one-way imports, light specs."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("objectives", "workers", "evaluators", "platform", "sweeps")
"""Each room may import from those before it; `platform/cli.py` is the roof over all of them."""
HEAVY = ("torch", "ray", "vllm", "deepspeed", "transformers", "mlflow", "datasets")


def run_python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )
    return done.stdout.strip()


def test_standard_platform_is_importable_with_the_checkout_first_on_the_path() -> None:
    code = "import platform, deft.platform.spec; print(platform.machine(), platform.__file__)"
    machine, file = run_python(code, PYTHONPATH=str(ROOT)).split(" ", 1)
    assert machine == os.uname().machine
    assert not Path(file).is_relative_to(ROOT / "platform")


def test_platform_and_docker_are_no_regular_packages() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists()
    assert not (ROOT / "docker" / "__init__.py").exists()


def imported_rooms(file: Path) -> set[str]:
    tree = ast.parse(file.read_text())
    names = [
        name
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    ]
    return {name.split(".")[1] for name in names if name.startswith("deft.")}


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_one_way(room: str) -> None:
    allowed = set(ROOMS[: ROOMS.index(room) + 1])
    for file in sorted((ROOT / room).rglob("*.py")):
        if file == ROOT / "platform" / "cli.py":
            continue
        assert imported_rooms(file) <= allowed, f"{file.relative_to(ROOT)} imports upwards"


def test_every_package_is_listed_for_installation() -> None:
    import tomllib

    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {
        str(file.parent.relative_to(ROOT)) for room in ROOMS for file in (ROOT / room).rglob("*.py")
    }
    assert set(setuptools["package-dir"].values()) == folders
    assert set(setuptools["package-dir"]) == set(setuptools["packages"])


@pytest.mark.parametrize(
    "code",
    [
        "import deft.platform.spec",
        "import deft.platform.loading",
        "import deft.objectives",
        "import deft.objectives.catalog",
        "from deft.platform.cli import app; app(['--help'], standalone_mode=False)",
        "from deft.platform.cli import app; app(['list', 'objectives'], standalone_mode=False)",
    ],
)
def test_specs_and_help_load_nothing_heavy(code: str) -> None:
    report = f"import json, sys; print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    assert json.loads(run_python(f"{code}\n{report}").splitlines()[-1]) == []
