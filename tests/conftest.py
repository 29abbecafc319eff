"""What the whole suite shares: one local Ray cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from deft.workers.spec import TrainingSpec
    from deft.workers.training.job import TrainJob

# The same code must pass or fail the same way every time; CI is no place to search for examples.
# DEFT_FUZZ_EXAMPLES=10000 pytest -k hostile --hypothesis-show-statistics is the place, and says how
# many there were.
settings.register_profile("reproducible", derandomize=True, deadline=None)
settings.register_profile(
    "search",
    max_examples=int(os.environ.get("DEFT_FUZZ_EXAMPLES", "100")),
    deadline=None,
    print_blob=True,
)
settings.load_profile("search" if "DEFT_FUZZ_EXAMPLES" in os.environ else "reproducible")

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


@pytest.fixture
def fault(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Return a function that adds a row to the table of faults, which pytest prints at the end.

    Takes what happened, how the platform answered, the seconds until the work that was disturbed
    went on, and what was lost.
    """

    def record(what: str, answer: str, *, seconds: float | str, lost: str = "nothing") -> None:
        after = seconds if isinstance(seconds, str) else f"{seconds:.0f} s"
        record_property("fault", f"| {what} | {answer} | {after} | {lost} |")

    return record


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table of faults, if there were any."""
    passed = terminalreporter.stats.get("passed", [])
    rows = [row for test in passed for name, row in test.user_properties if name == "fault"]
    if rows:
        terminalreporter.section("faults")
        terminalreporter.write_line("| fault | what happens | goes on after | what is lost |")
        terminalreporter.write_line("|---|---|---|---|")
        for row in rows:
            terminalreporter.write_line(row)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Start a local Ray cluster with 4 logical CPUs, once because starting takes seconds."""
    import ray

    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=256 * 1024**2,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def make_job(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TrainJob]:
    """Training jobs of the tiny model on 57 figfont examples: (training, **fields) → job."""
    from deft.workers.data.prepare import prepare
    from deft.workers.dataset_spec import DatasetSpec
    from deft.workers.spec import ModelSpec
    from deft.workers.training.job import TrainJob

    prepared = prepare(
        DatasetSpec(name="figfont", size=60),
        ModelSpec(name="tiny"),
        max_length=256,
        seed=0,
        cache=tmp_path_factory.mktemp("cache"),
    )

    def make(training: TrainingSpec, *, objective: str, num_steps: int) -> TrainJob:
        return TrainJob(
            training=training,
            objective=objective,
            model_dir=prepared.model_dir,
            examples_dir=prepared.examples_dir,
            rows_dir=prepared.rows_dir,
            validation_dir=prepared.validation_dir,
            scratch_dir=str(tmp_path_factory.mktemp("scratch")),
            num_steps=num_steps,
            seed=0,
            events=None,
        )

    return make


@pytest.fixture
def ray_address(ray_cluster: None) -> str:
    """Where processes of their own find the shared cluster (as RAY_ADDRESS)."""
    import ray

    return str(ray.get_runtime_context().gcs_address)


@pytest.fixture
def ui() -> ModuleType:
    """Import the script that drives the browser; skip where there is no browser."""
    pytest.importorskip("playwright", reason="playwright is not installed")
    import ui_screenshot

    if ui_screenshot.find_browser() is None:
        pytest.skip("no Chromium on this machine")
    return ui_screenshot


@pytest.fixture
def deft(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the installed command in `tmp_path`; keyword arguments are environment variables."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [Path(sys.executable).with_name("deft"), *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, **environment},
            timeout=600,
            check=False,
        )

    return run
