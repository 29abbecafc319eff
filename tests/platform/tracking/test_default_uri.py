"""MLflow's default database: under the run root, or the root is refused; whole, or not there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deft.platform.cli import app
from deft.platform.errors import UserError
from deft.platform.tracking.mlflow_run import MlflowRun
from deft.platform.tracking.outbox import Outbox
from deft.platform.tracking.uri import default_tracking_uri

OPEN_AND_DIE = """
import os, pathlib, signal, sys
from alembic.ddl.impl import DefaultImpl
from deft.platform.tracking.mlflow_run import MlflowRun
from deft.platform.tracking.outbox import Outbox

create_table, tables = DefaultImpl.create_table, []

def create_and_die(self, table, **options):
    create_table(self, table, **options)
    tables.append(table)
    if len(tables) == 12:
        os.kill(os.getpid(), signal.SIGKILL)

DefaultImpl.create_table = create_and_die
MlflowRun(Outbox(pathlib.Path(sys.argv[1]), "run"), sys.argv[2])
"""


@pytest.mark.parametrize("name", ["r?1", "r#1", "r%3F1", "r?1/inner"])
def test_root_that_a_uri_cannot_name_is_refused(tmp_path: Path, name: str) -> None:
    """Two roots would share one database, which would lie beside them."""
    options = ["--dataset", "figfont", "--model", "tiny", "--objective", "p"]
    with pytest.raises(UserError, match="choose another directory or give --tracking-uri"):
        app(["run", *options, "--root", str(tmp_path / name)], standalone_mode=False)
    assert list(tmp_path.iterdir()) == []


def test_a_command_that_is_killed_while_it_makes_the_database_leaves_none(
    tmp_path: Path, fault: Callable[..., None]
) -> None:
    root = tmp_path / "läufe 1 %"
    (root / "run").mkdir(parents=True)
    uri = default_tracking_uri(root)
    arguments = [sys.executable, "-c", OPEN_AND_DIE, str(root / "run"), uri]
    killed = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert killed.returncode == -9, killed.stderr
    assert not (root / "mlflow.db").exists()
    run = MlflowRun(Outbox(root / "run", "run"), uri)
    assert run.client.get_run(run.run_id).info.run_name == "run"
    assert sorted(path.name for path in root.iterdir()) == [".mlflow.db.lock", "mlflow.db", "run"]
    fault(
        "kill -9 of a command while MLflow's tables are made in a new SQLite file",
        "they are made anew",
        seconds="it is started again",
    )
