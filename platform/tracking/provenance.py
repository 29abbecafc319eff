"""Provenance of results: the code and the packages that made them."""

from __future__ import annotations

import json
import platform as machine
import subprocess
from importlib.metadata import distributions
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1]
"""The folder `platform/` of the code that runs."""

SHIPPED_STATE = "shipped_state.json"
"""In `SOURCE` where `deft submit` has shipped it: what `git_state` said where it is from."""


def git_state() -> dict[str, str]:
    """Return commit and uncommitted diff of the running code; empty outside a git checkout."""
    shipped = SOURCE / SHIPPED_STATE
    if shipped.exists():
        return dict(json.loads(shipped.read_text(encoding="utf-8")))
    commit = _git("rev-parse", "HEAD")
    if not commit:
        return {}
    return {"commit": commit.strip(), "diff": _git("diff", "HEAD")}


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(SOURCE), *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=30,
            check=False,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def package_versions() -> str:
    """List interpreter, system and every installed distribution, one per line."""
    installed = {f"{dist.name}=={dist.version}" for dist in distributions()}
    system = f"# Python {machine.python_version()} on {machine.platform()}"
    return "\n".join([system, *sorted(installed, key=str.lower)]) + "\n"
