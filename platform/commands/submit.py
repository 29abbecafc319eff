"""`deft submit`: run a spec as a job of a running Ray cluster.

The job runs on the cluster's own environment (Ray, torch, DeepSpeed, vLLM) and on the code that
submits it, whether that is a checkout or an installed package.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import ray
import requests
from packaging.version import Version
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from deft.platform.config.loading import place_of
from deft.platform.config.spec import ExperimentSpec
from deft.platform.config.yaml_file import read_yaml
from deft.platform.errors import StageError, UserError, describe_error
from deft.platform.tracking.provenance import SHIPPED_STATE, SOURCE, git_state
from deft.platform.tracking.uri import require_no_secret
from deft.workers.common.secrets import secret_setting

PACKAGES = ("objectives", "workers", "evaluators", "platform", "sweeps")
"""Folders of the checkout that make up the import package `deft`."""

ENVIRONMENT_FILE = "runtime_env.yaml"
"""Ray's runtime environment of the jobs of a working directory, if it has one."""

EXCLUDES = [".git/", ".venv/", ".cache/", "runs/", ".env"]
"""Paths that are not shipped if there is no such file, beside what .gitignore names."""

OLDEST_RAY = Version("2.60")
"""Oldest release of Ray whose job server is supported."""

COMMAND_NOT_FOUND = 127
"""Exit code of a shell that finds no such command."""

RETRY_INTERVAL = 2.0
"""Seconds before the log of a running job is asked for again, if the connection broke."""


def check_address(address: str) -> str:
    """Return ``address`` without a trailing slash.

    Raises:
        UserError: it is not the address of a dashboard.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(
            f"--address {address}: expected the address of the cluster's dashboard, "
            "as in http://127.0.0.1:8265"
        )
    return address.rstrip("/")


def absolute_root(root: Path, address: str) -> Path:
    """Return the run root's path on the cluster; a relative one belongs to this machine.

    Raises:
        UserError: ``root`` is relative and the cluster is elsewhere.
    """
    if root.is_absolute():
        return root
    if urlsplit(address).hostname not in ("127.0.0.1", "localhost", "::1"):
        raise UserError(
            f"--root {root}: a relative path means nothing on the cluster at {address}; give the "
            "absolute path of storage that all its nodes share"
        )
    return root.absolute()


def entrypoint(
    command: str,
    file: Path,
    *,
    working_dir: Path,
    root: Path,
    settings: Iterable[str] = (),
    tracking_uri: str | None = None,
) -> str:
    """Build the shell command of a job.

    Args:
        command: `run` or `sweep`.
        file: its run file or sweep file.
        working_dir: what is shipped to the cluster.
        root: run root, as the cluster finds it.
        settings: see `deft.platform.config.loading.load_spec`.
        tracking_uri: MLflow tracking URI, as the cluster finds it.

    Raises:
        UserError: ``file`` is not in ``working_dir``, or there is a password in ``tracking_uri``:
            everyone with access to the dashboard can read the command.
    """
    if tracking_uri:
        require_no_secret(tracking_uri)
    try:
        inside = file.resolve().relative_to(working_dir.resolve())
    except ValueError:
        raise UserError(
            f"{file}: not in the working directory {working_dir}, which is what the job gets to "
            "see; change to the folder that holds the file and everything it names"
        ) from None
    # Not `deft`: the cluster's environment may hold the dependencies alone.
    words = ["python", "-m", "deft.platform.cli", command, str(inside), "--root", str(root)]
    words += [word for setting in settings for word in ("--set", setting)]
    return shlex.join(words + (["--tracking-uri", tracking_uri] if tracking_uri else []))


def missing_paths(specs: Iterable[ExperimentSpec], working_dir: Path, root: Path) -> list[str]:
    """Describe the local files and directories that runs name but the job will not get.

    Args:
        specs: the runs.
        working_dir: what is shipped.
        root: the run root, which the cluster has.
    """
    problems: dict[str, None] = {}
    for key, path in itertools.chain.from_iterable(map(_local_paths, specs)):
        resolved = path.resolve()
        if resolved.is_relative_to(root):
            continue
        if path.is_absolute() or not resolved.is_relative_to(working_dir.resolve()):
            problem = "is not in the working directory"
        elif _is_left_out(path, working_dir):
            problem = "is left out of what is shipped"
        else:
            continue
        problems[f"{key}: {path} {problem}: the job fails unless the cluster has it there"] = None
    return list(problems)


def _local_paths(spec: ExperimentSpec) -> Iterator[tuple[str, Path]]:
    """Yield files and directories on this machine that a run names, with their keys."""
    evaluation = spec.evaluation
    paths = {
        **{f"dataset {s.title}": str(s.local_path or "") for s in spec.dataset.mixture},
        "dataset": str(spec.dataset.local_path or ""),
        "model": spec.model.name,
        "evaluation.data_dir": evaluation.data_dir,
        "evaluation.heldout.file": evaluation.heldout and evaluation.heldout.file,
        **{f"evaluation.benchmarks.{b.name}.file": b.file for b in evaluation.benchmarks},
    }
    yield from ((key, Path(path)) for key, path in paths.items() if path and Path(path).exists())


def _is_left_out(path: Path, working_dir: Path) -> bool:
    """Return whether .gitignore or `EXCLUDES` names ``path``, which is relative."""
    if f"{path.parts[0]}/" in EXCLUDES:
        return True
    command = ["git", "check-ignore", "--quiet", "--", str(path)]
    try:
        return subprocess.run(command, cwd=working_dir, capture_output=True).returncode == 0
    except FileNotFoundError:  # no git
        return False


@dataclass(frozen=True)
class SubmittedJob:
    """A job on the cluster."""

    id: str
    client: JobSubmissionClient
    address: str

    @property
    def to_follow(self) -> str:
        """The command that follows its log."""
        return f"ray job logs -f {self.id} --address {self.address}"

    @property
    def to_stop(self) -> str:
        """The command that ends it."""
        return f"ray job stop {self.id} --address {self.address}"


def connect(address: str) -> JobSubmissionClient:
    """Connect to the job server at ``address``.

    Raises:
        UserError: there is none, or it does not let this user in, or it is too old.
    """
    # Ray lets the environment override the argument, and RAY_ADDRESS need not be a dashboard.
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    for handler in logging.getLogger("ray").handlers:
        handler.setLevel(logging.WARNING)
    try:
        client = JobSubmissionClient(address)
    except ConnectionError:
        raise UserError(
            f"--address {address}: nothing answers there; `ray start --head` says where its "
            "dashboard is, and a port of a remote one can be forwarded by ssh -L"
        ) from None
    except AuthenticationError as error:
        answer = error.message.splitlines()[0]
        raise UserError(
            f"--address {address}: {answer}. Set RAY_AUTH_MODE=token, and put the cluster's token "
            "(`ray get-auth-token` on its head node) into RAY_AUTH_TOKEN, into a file that "
            "RAY_AUTH_TOKEN_PATH names, or into ~/.ray/auth_token"
        ) from None
    except (RuntimeError, ValueError, LookupError, requests.RequestException) as error:
        raise UserError(
            f"--address {address}: what answers there is not a job server of Ray "
            f"({describe_error(error)})"
        ) from None
    version = Version(str(client._server_ray_version))
    if version < OLDEST_RAY:
        raise UserError(
            f"--address {address}: the cluster runs Ray {version}, and {OLDEST_RAY} or newer is "
            f"needed (here is {ray.__version__})"
        )
    return client


def submit(client: JobSubmissionClient, command: str, working_dir: Path) -> SubmittedJob:
    """Ship ``working_dir`` and the code that runs here, and start ``command`` on the cluster.

    Raises:
        UserError: the working directory cannot be shipped, or the cluster does not take the job.
    """
    if working_dir in (Path.home(), Path(working_dir.anchor)):
        raise UserError(
            f"{working_dir}: the working directory is shipped to the cluster, and that is too much "
            "of it; change to the folder of the experiment"
        )
    with shipped_code() as package:
        environment = runtime_environment(working_dir, package)
        try:
            job = client.submit_job(entrypoint=command, runtime_env=environment)
        except (requests.RequestException, RuntimeError, ValueError, TypeError) as error:
            # The server answers with a traceback; its last line says what it is about.
            *_, cause = str(error).strip().splitlines()
            raise UserError(
                f"the cluster does not take the job: {cause} What is shipped is {working_dir}, "
                f"without what .gitignore, .rayignore and {ENVIRONMENT_FILE} leave out."
            ) from None
    return SubmittedJob(job, client, client.get_address())


def runtime_environment(working_dir: Path, package: Path) -> dict[str, Any]:
    """Build Ray's runtime environment of a job.

    Args:
        working_dir: what the job gets to see as its current directory; its `runtime_env.yaml`, if
            there is one, may add environment variables and name what is not shipped.
        package: the import package `deft`, as one folder.

    Raises:
        UserError: the file cannot be read, or gives a secret to the job.
    """
    file = working_dir / ENVIRONMENT_FILE
    environment: dict[str, Any] = {"excludes": EXCLUDES}
    if file.exists():
        settings, origins = read_yaml(file)
        if (keys := secret_setting(settings)) is not None:
            raise UserError(
                f"{place_of(keys, origins, str(file))}: {'.'.join(map(str, keys))}: Ray's "
                "dashboard shows the variables of a job to everyone with access. Set secrets in "
                "the environment of the cluster's nodes before `ray start`"
            )
        environment |= settings
    # The checkout's file names the checkout's `deft`, for `ray job submit`.
    modules = [m for m in environment.get("py_modules", []) if Path(m).name != package.name]
    modules = [m if "://" in m else str(working_dir / m) for m in modules]
    return {
        **environment,
        "working_dir": str(working_dir),
        "py_modules": [str(package), *modules],
    }


@contextmanager
def shipped_code() -> Iterator[Path]:
    """Yield the running import package `deft` as one folder, with the commit it is from.

    It shadows any `deft` in the cluster's environment. Ray caches it by content, so a job never
    runs on the code of an earlier one.
    """
    with tempfile.TemporaryDirectory(prefix="deft-") as folder:
        package = Path(folder) / "deft"
        for name in PACKAGES:
            shutil.copytree(
                SOURCE.parent / name, package / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        shutil.copy(SOURCE / "import_root" / "__init__.py", package)
        (package / "platform" / SHIPPED_STATE).write_text(json.dumps(git_state()))
        yield package


def follow(job: SubmittedJob) -> int:
    """Print the job's log as it grows, to the end; return the exit code of its driver.

    Raises:
        StageError: the job did not run to an exit code, or the connection was lost.
    """
    log = _Log(job)
    while True:
        with suppress(aiohttp.ClientError, OSError, RuntimeError):
            asyncio.run(log.print_until_closed())
        try:
            info = job.client.get_job_info(job.id)
        except (requests.RequestException, RuntimeError) as error:
            raise StageError(
                f"lost the connection to the cluster ({describe_error(error)}); if job {job.id} "
                f"is still running, follow it by: {job.to_follow}"
            ) from None
        if info.status.is_terminal():
            break
        time.sleep(RETRY_INTERVAL)
    if info.status == JobStatus.STOPPED:
        raise StageError(f"job {job.id} was stopped")
    code: int | None = info.driver_exit_code
    if code is None:
        raise StageError(f"job {job.id} could not start: {info.message}")
    if code == COMMAND_NOT_FOUND:
        raise StageError(
            f"job {job.id}: the cluster's head node has no `python` on its PATH; run `ray start` "
            "there in the activated environment"
        )
    # A negative code is the signal that ended the driver.
    return code if code >= 0 else 128 - code


class _Log:
    """A job's log; nothing is printed twice after a reconnection."""

    def __init__(self, job: SubmittedJob) -> None:
        self.job = job
        self.printed = 0  # characters

    async def print_until_closed(self) -> None:
        start = 0
        async for text in self.job.client.tail_job_logs(self.job.id):
            print(text[max(self.printed - start, 0) :], end="", flush=True)
            start += len(text)
            self.printed = max(self.printed, start)
