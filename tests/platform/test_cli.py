"""The command as a person runs it: exit codes, one message, nothing written on bad input."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deft.objectives.catalog import CATALOG
from deft.workers.models import MODELS


def deft(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).with_name("deft"), *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **environment},
        timeout=300,
        check=False,
    )


def refused(cwd: Path, *arguments: str, **environment: str) -> str:
    """Run a command that must end as bad input does, and return what it says."""
    before = sorted(cwd.rglob("*"))
    done = deft(*arguments, cwd=cwd, **environment)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(cwd.rglob("*")) == before
    return done.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run"], "give a run file"),
        (["run", "none.yaml"], "none.yaml: No such file"),
        (["run", "--dataset", "figfont", "--model", "tiny"], "objective: is missing"),
        (["run", "--dataset", "figfon", "--model", "tiny", "--objective", "p"], "figfont"),
        (["run", "--objektive", "p"], "No such option"),
        (["walk"], "No such command"),
        (["list", "objektives"], "objectives"),
        (["ui"], "no runs there yet"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(
    tmp_path: Path, arguments: list[str], expected: str
) -> None:
    assert expected in refused(tmp_path, *arguments)


def test_lists_name_everything_with_its_source(tmp_path: Path) -> None:
    listed = deft("list", "objectives", cwd=tmp_path, COLUMNS="200").stdout
    assert all(name in listed for name in CATALOG)
    assert "2602.11424" in listed
    listed = deft("list", "models", cwd=tmp_path, COLUMNS="200").stdout
    assert all(name in listed and info.source in listed for name, info in MODELS.items())
    assert "reasoning-gym" in deft("list", "datasets", cwd=tmp_path, COLUMNS="200").stdout
    assert "figfont" in deft("list", "benchmarks", cwd=tmp_path, COLUMNS="200").stdout


def test_dry_run_prints_a_spec_that_means_the_same_run(tmp_path: Path) -> None:
    names = ["--dataset", "figfont", "--model", "tiny", "--objective", "DEFT"]
    printed = deft("run", *names, "--dry-run", cwd=tmp_path).stdout
    (tmp_path / "again.yaml").write_text(printed)  # JSON is YAML
    assert deft("run", "again.yaml", "--dry-run", cwd=tmp_path).stdout == printed


@pytest.fixture
def address(ray_cluster: None) -> str:
    """The test cluster, for commands in processes of their own."""
    import ray

    return str(ray.get_runtime_context().gcs_address)


SMALL = """
model: tiny
objective: DEFT
training: {batch_size: 2, micro_batch_size: 1, num_workers: 1}
"""


def test_bad_line_in_a_data_file_is_named(tmp_path: Path, address: str) -> None:
    lines = ['{"prompt": "1 + 1", "response": "2"}'] * 6 + ['{"promt": "2 + 2", "response": "4"}']
    (tmp_path / "sums.jsonl").write_text("\n".join(lines))
    (tmp_path / "run.yaml").write_text("dataset: sums.jsonl" + SMALL)
    said = refused(tmp_path, "run", "run.yaml", RAY_ADDRESS=address)
    assert "sums.jsonl:7: key 'prompt' is missing; there are: promt, response" in said


def test_empty_dataset_is_refused(tmp_path: Path, address: str) -> None:
    (tmp_path / "none.jsonl").write_text("\n")
    (tmp_path / "run.yaml").write_text("dataset: none.jsonl" + SMALL)
    said = refused(tmp_path, "run", "run.yaml", RAY_ADDRESS=address)
    assert "there is no example in it" in said


def test_more_workers_than_the_cluster_has_are_refused(tmp_path: Path, address: str) -> None:
    names = ["--dataset", "figfont", "--model", "tiny", "--objective", "DEFT"]
    sizes = ["--set", "training.num_workers=64", "--set", "training.micro_batch_size=1"]
    said = refused(tmp_path, "run", *names, *sizes, RAY_ADDRESS=address)
    assert "64 workers need as many CPUs, the Ray cluster has 4" in said
