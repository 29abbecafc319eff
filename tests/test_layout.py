"""Layout of the repository: the standard library's `platform`, one-way imports, light specs."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TypeGuard

import pytest

from helpers import ROOT

FOLDERS = ("objectives", "workers", "evaluators", "platform", "sweeps")
LAYERS = ("workers.common", *FOLDERS)
"""A file imports from its own layer and from those before it."""
INTERFACES = ("platform.cli", "platform.api", "platform.import_root")
"""They may import from every layer, and do so inside their commands and functions."""
HEAVY = ("torch", "ray", "vllm", "deepspeed", "transformers", "mlflow", "datasets")
MAX_LINES = 600
MAX_MODULES = 14
"""Python modules that one folder shows."""


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
    code = "import platform, deft.platform.config.spec;print(platform.machine(), platform.__file__)"
    machine, file = run_python(code, PYTHONPATH=str(ROOT)).split(" ", 1)
    assert machine == os.uname().machine
    assert not Path(file).is_relative_to(ROOT / "platform")


def test_platform_and_docker_are_no_regular_packages() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists()
    assert not (ROOT / "docker" / "__init__.py").exists()


@cache
def modules() -> dict[str, Path]:
    """Every module outside tests by its dotted path below `deft`."""
    files = [file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))]
    dotted = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    return {name.removesuffix(".__init__"): file for name, file in zip(dotted, files, strict=True)}


def imported_modules(file: Path) -> set[str]:
    """Modules below `deft` that ``file`` imports anywhere, also inside functions."""
    imported = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # `from deft.a import b` imports the module `deft.a.b` if there is one, else `deft.a`.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            inner = name.removeprefix("deft.")
            if inner == name:
                continue
            imported.add(inner if inner in modules() else inner.rpartition(".")[0])
    return imported


@cache
def import_graph() -> dict[str, set[str]]:
    graph = {name: imported_modules(file) - {name} for name, file in modules().items()}
    unknown = {target for targets in graph.values() for target in targets} - set(graph)
    assert unknown <= {""}, unknown
    return graph


def layer(module: str) -> int:
    """Return the layer that ``module`` belongs to: the one with the longest matching name."""
    matching = [name for name in LAYERS if f"{module}.".startswith(f"{name}.")]
    return LAYERS.index(max(matching, key=len))


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_point_one_way(folder: str) -> None:
    for module, targets in import_graph().items():
        if module.split(".")[0] != folder or module.startswith(INTERFACES):
            continue
        above = {target for target in targets if layer(target) > layer(module)}
        assert not above, f"{module} imports from a layer above it: {above}"


def test_no_two_modules_import_each_other() -> None:
    try:
        tuple(TopologicalSorter(import_graph()).static_order())
    except CycleError as error:
        pytest.fail(f"modules import each other: {error.args[1]}")


def test_modules_and_folders_stay_small() -> None:
    long = {
        name: lines
        for name, file in modules().items()
        if (lines := len(file.read_text().splitlines())) > MAX_LINES
    }
    assert not long
    folders = {file.parent for file in modules().values()}
    full = {
        str(folder.relative_to(ROOT)): number
        for folder in folders
        if (number := len([*folder.glob("[a-z]*.py")])) > MAX_MODULES
    }
    assert not full


OWN_PRIVATE = {"_exit", "_make", "_replace", "_asdict", "_fields"}
"""Names with an underscore that are documented: those of `os` and of named tuples."""


def private_library_names(tree: ast.Module) -> Iterator[str]:
    """Yield names of other libraries that begin with an underscore, imported or read."""
    defined = {node.attr for node in ast.walk(tree) if is_own_attribute(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("deft"):
            for alias in node.names:
                parts = f"{node.module}.{alias.name}".split(".")
                yield from (p for p in parts if p.startswith("_") and not p.startswith("__"))
        elif isinstance(node, ast.Attribute) and not is_own_attribute(node):
            is_private = node.attr.startswith("_") and not node.attr.startswith("__")
            yield from {node.attr} - OWN_PRIVATE - defined if is_private else ()


def is_own_attribute(node: ast.AST) -> TypeGuard[ast.Attribute]:
    """Tell whether ``node`` is an attribute of `self` or `cls`."""
    if not isinstance(node, ast.Attribute):
        return False
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def test_private_names_of_libraries_are_listed() -> None:
    table = (ROOT / "CONTRIBUTING.md").read_text()
    unlisted = {
        f"{module}: {name}"
        for module, file in modules().items()
        for name in private_library_names(ast.parse(file.read_text()))
        if name not in table
    }
    # A class of this project may read what another object of it keeps to itself.
    assert unlisted <= {"sweeps.trial: _send"}


def test_every_package_is_listed_for_installation() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = {f"deft.{'.'.join(f.parent.relative_to(ROOT).parts)}" for f in modules().values()}
    assert set(setuptools["packages"]) == {"deft", *packages}
    folders = {f"deft.{folder}": folder for folder in FOLDERS}
    assert setuptools["package-dir"] == {"deft": "platform/import_root", **folders}


@pytest.mark.parametrize(
    "code",
    [
        "import deft; from deft import *",
        "import deft.platform.config.spec",
        "import deft.platform.config.loading",
        "import deft.objectives",
        "import deft.objectives.catalog",
        "from deft.platform.cli import app; app(['--help'], standalone_mode=False)",
        "from deft.platform.cli import app; app(['list', 'objectives'], standalone_mode=False)",
    ],
)
def test_specs_and_help_load_nothing_heavy(code: str) -> None:
    report = f"import json, sys; print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    assert json.loads(run_python(f"{code}\n{report}").splitlines()[-1]) == []
