"""What the README says is what the code does."""

from __future__ import annotations

import re

import pytest

from deft.platform.commands.show_results import objectives_markdown
from helpers import ROOT

README = (ROOT / "README.md").read_text()


def test_ci_runs_the_readmes_test_command() -> None:
    commands = re.findall(r"^bash requirements/install\.sh && .*$", README, flags=re.MULTILINE)
    assert len(commands) == 2
    assert commands[1] == (ROOT / ".ci" / "run").read_text().strip().splitlines()[-1]


def test_table_of_objectives_is_the_catalog() -> None:
    """`make readme` writes it anew."""
    _, table, _ = re.split(r"<!-- /?objectives -->\n", README)
    assert table.strip() == objectives_markdown()


@pytest.mark.parametrize("page", ["README.md", "SECURITY.md"])
def test_every_file_it_names_exists(page: str) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text())
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
