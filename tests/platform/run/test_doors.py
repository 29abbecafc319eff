"""What listens while a command runs on a Ray of its own, and who may read what it leaves."""

from __future__ import annotations

import stat
import subprocess
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import psutil
import pytest
import yaml

from helpers import DEFT, ROOT, environment_without_cluster

RUN = {
    "dataset": {"name": "figfont", "size": 100},
    "model": "tiny",
    "objective": "DEFT",
    "training": {"num_workers": 2, "max_steps": 20, "batch_size": 8, "max_length": 256},
    "evaluation": {
        "general": False,
        "benchmarks": [{"name": "figfont", "size": 8, "max_tokens": 8}],
        "engine": {"kv_cache_gib": 0.25, "cpus": 1},
    },
}


def listening(family: list[psutil.Process]) -> set[tuple[str, str]]:
    """Return what listens: name of the process and address."""
    doors = set()
    for process in family:
        try:
            doors |= {
                (process.name(), connection.laddr.ip.removeprefix("::ffff:"))
                for connection in process.net_connections("inet")
                if connection.status == psutil.CONN_LISTEN
            }
        except psutil.Error:  # it has just ended
            continue
    return doors


def world_writable(directory: Path) -> list[Path]:
    return [
        path
        for path in directory.rglob("*")
        if not path.is_symlink() and path.exists() and path.stat().st_mode & stat.S_IWOTH
    ]


@pytest.mark.slow
def test_a_run_of_its_own_listens_on_loopback_alone(tmp_path: Path) -> None:
    """The table of doors in SECURITY.md says so."""
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(RUN))
    environment = environment_without_cluster()
    command = [DEFT, "run", "run.yaml"]
    doors: dict[str, set[str]] = defaultdict(set)
    sessions: set[Path] = set()
    with (tmp_path / "log").open("w") as log:
        run = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
        while run.poll() is None:
            family = [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]
            for name, address in listening(family):
                doors[address].add(name)
            sessions |= set(Path(tempfile.gettempdir()).glob("deft-ray-*"))
            time.sleep(0.3)
    said = (tmp_path / "log").read_text()
    assert run.returncode == 0, said
    for address, names in sorted(doors.items()):
        print(address, sorted(names))
    assert set(doors) == {"127.0.0.1"}, doors
    (row,) = (
        line
        for line in (ROOT / "SECURITY.md").read_text().splitlines()
        if line.startswith("| Ray of a run that starts its own |")
    )
    assert row.split("|")[2].strip().startswith("127.0.0.1")

    assert sessions
    assert (tmp_path / "runs").stat().st_mode & 0o777 == 0o700
    assert world_writable(tmp_path / "runs") == []
    token = Path.home() / ".ray" / "auth_token"
    assert token.stat().st_mode & 0o077 == 0
