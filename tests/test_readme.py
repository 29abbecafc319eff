"""The documents say what the code does."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

from deft.platform.cli import app
from helpers import ROOT, commands_in

README = (ROOT / "README.md").read_text()
PAGES = sorted(
    str(path.relative_to(ROOT)) for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))
)
MAX_LINES = 200
"""Lines of the README: what is longer is a document."""


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_ci_runs_the_readmes_test_command() -> None:
    commands = re.findall(r"^bash requirements/install\.sh && .*$", README, flags=re.MULTILINE)
    assert len(commands) == 2
    assert commands[1] == (ROOT / ".ci" / "run").read_text().strip().splitlines()[-1]


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= MAX_LINES


def test_generated_parts_are_those_of_the_code(generate: ModuleType) -> None:
    """`make docs` writes them anew."""
    for page in generate.GENERATED:
        assert (ROOT / "docs" / page).read_text() == generate.generated_page(page), page


@pytest.mark.parametrize("page", PAGES)
def test_every_file_it_names_exists(page: str) -> None:
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / page).read_text()):
        assert ((ROOT / page).parent / link).exists(), link


@pytest.mark.parametrize("page", [page for page in PAGES if commands_in(page)])
def test_every_command_it_prints_is_understood(page: str) -> None:
    command: Any = typer.main.get_command(app)
    for line in commands_in(page):
        _, name, *arguments = shlex.split(line, comments=True)
        known = command.get_command(None, name)
        assert known is not None, line
        with known.make_context(name, arguments):
            """Nothing is run: that its words are understood is all."""


def test_site_builds_without_a_broken_link(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    assert (tmp_path / "index.html").is_file()
