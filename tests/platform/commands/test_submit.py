"""Jobs on a real head node of its own, with token authentication, that this file starts and stops.

The cluster that the rest of the suite shares is not touched, nor is any other on the machine.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from subprocess import CompletedProcess

import psutil
import pytest
import requests
import yaml
from mlflow import MlflowClient

from deft.platform.commands.submit import (
    absolute_root,
    entrypoint,
    missing_paths,
    runtime_environment,
)
from deft.platform.config.loading import load_spec
from deft.platform.errors import UserError
from helpers import ROOT, environment_without_cluster, free_ports

BIN = Path(sys.executable).parent
TOKEN = "0123456789abcdef" * 4

RUN_FILE = """
name: submitted
dataset: {name: figfont, size: 40, validation: 0}
model: tiny
objective: own_objective:nll
training:
  num_workers: 1
  max_steps: 2
  batch_size: 4
  micro_batch_size: 4
  max_length: 256
evaluation: {benchmarks: [], general: false, heldout: null}
"""

OWN_OBJECTIVE = """
import deft.objectives
from deft.objectives import ObjectiveOutput, objective

print("deft is", list(deft.objectives.__path__)[0], flush=True)

@objective()
def nll(stats):
    return ObjectiveOutput(value=-stats.logp, gate=stats.logp.new_ones(stats.logp.shape))
"""

Submit = Callable[..., CompletedProcess[str]]


def end(process: subprocess.Popen[bytes]) -> None:
    """End a head node and whatever it has started, and nothing else: `ray stop` would end all."""
    head = psutil.Process(process.pid)
    family = [head, *head.children(recursive=True)]
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(family, timeout=20)
    process.wait()


@contextmanager
def head_node(token_file: Path) -> Iterator[str]:
    """Start a head node and return the address of its dashboard."""
    dashboard, agent, client = free_ports(3)
    address = f"http://127.0.0.1:{dashboard}"
    # Ray's sockets lie in it, and their paths may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="head-"))
    environment = environment_without_cluster()
    environment |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }
    command = [BIN / "ray", "start", "--head", "--block", "--port=0", f"--temp-dir={folder}"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
    command += [f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}"]
    command += ["--num-cpus=2", f"--object-store-memory={128 * 1024**2}", "--disable-usage-stats"]
    with (folder / "start.log").open("wb") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_for_jobs(address, process, folder / "start.log")
        yield address
    finally:
        end(process)
        shutil.rmtree(folder, ignore_errors=True)


def wait_for_jobs(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until jobs can be submitted at ``address``."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            headers = {"Authorization": f"Bearer {TOKEN}"}
            if requests.get(f"{address}/api/jobs/", headers=headers, timeout=5).ok:
                return
        except requests.RequestException:
            pass
        time.sleep(0.5)
    pytest.fail(f"the head node did not come up:\n{log.read_text()}")


@pytest.fixture(scope="module")
def token_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("token") / "token"
    file.write_text(TOKEN)
    return file


@pytest.fixture(scope="module")
def head(token_file: Path) -> Iterator[str]:
    with head_node(token_file) as address:
        yield address


@pytest.fixture
def submit(deft: Callable[..., CompletedProcess[str]], head: str, token_file: Path) -> Submit:
    """`deft submit` to the head node, with its token."""

    def run(*arguments: str, **environment: str) -> CompletedProcess[str]:
        access = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file)}
        return deft("submit", *arguments, "--address", head, **{**access, **environment})

    return run


def test_job_trains_on_the_cluster_with_this_code_and_its_log_is_followed(
    submit: Submit, tmp_path: Path
) -> None:
    (tmp_path / "run.yaml").write_text(RUN_FILE)
    (tmp_path / "own_objective.py").write_text(OWN_OBJECTIVE)
    root = tmp_path / "storage"
    # RAY_ADDRESS is where `deft run` would go; the address that is given wins.
    done = submit("run.yaml", "--root", str(root), "--set", "seed=7", RAY_ADDRESS="127.0.0.1:9")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert re.match(r"submit +job raysubmit_\w+ at http://127.0.0.1:\d+, results in ", lines[0])
    assert len([line for line in lines if re.search(r" train 2/2 steps  objective ", line)]) == 1
    # Not the environment's deft, and not the checkout in place: what was shipped.
    (shipped,) = {line for line in lines if line.startswith("deft is ")}
    assert "/py_modules_files/" in shipped
    (run,) = root.glob("submitted-*")
    assert json.loads((run / "spec.json").read_text())["seed"] == 7
    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    (recorded,) = client.search_runs([client.get_experiment_by_name("deft").experiment_id])
    assert recorded.info.status == "FINISHED"
    if (ROOT / ".git").exists():
        head_commit = subprocess.run(
            ["git", "-C", str(ROOT), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
        )
        commit = recorded.data.tags["mlflow.source.git.commit"]
        assert commit == head_commit.stdout.strip()


def test_sweep_is_told_from_a_run_and_its_exit_code_returned(
    submit: Submit, tmp_path: Path
) -> None:
    (tmp_path / "run.yaml").write_text(RUN_FILE)
    (tmp_path / "sweep.yaml").write_text("base: run.yaml\ngrid: {seed: [0, 1]}\n")
    root = str(tmp_path / "storage")
    refused = submit("sweep.yaml", "--root", root, "--set", "training.lr=1")
    assert refused.returncode == 2
    assert "training.lr: unknown key" in refused.stderr
    assert "job" not in refused.stdout
    # What only the job can find out: there is no own_objective.py.
    done = submit("sweep.yaml", "--root", root)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "deft.platform.cli sweep sweep.yaml --root" in done.stdout
    assert "error: objective: objective 'own_objective:nll' cannot be imported" in done.stdout
    assert re.fullmatch(r"error: job raysubmit_\w+ ended with exit code 2\n", done.stderr)


def test_working_directory_that_is_too_large_is_said(submit: Submit, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(RUN_FILE)
    with (tmp_path / "weights.bin").open("wb") as file:
        file.truncate(101 * 1024**2)
    done = submit("run.yaml")
    assert done.returncode == 2
    assert "the cluster does not take the job: " in done.stderr
    assert f"shipped is {tmp_path}, without what .gitignore" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("environment", "answer"),
    [
        ({"RAY_AUTH_MODE": "disabled"}, "Missing authentication token"),
        ({"RAY_AUTH_TOKEN": "wrong" * 8}, "Invalid authentication token"),
    ],
    ids=["none", "wrong"],
)
def test_token_that_is_missing_or_wrong_is_said(
    submit: Submit, tmp_path: Path, environment: dict[str, str], answer: str
) -> None:
    (tmp_path / "run.yaml").write_text(RUN_FILE)
    done = submit("run.yaml", **environment)
    assert done.returncode == 2
    assert answer in done.stderr
    assert "RAY_AUTH_MODE=token" in done.stderr
    assert "~/.ray/auth_token" in done.stderr
    assert "Traceback" not in done.stderr


def test_interrupt_leaves_the_job_running(head: str, token_file: Path, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(RUN_FILE)
    # It waits for ever, in the place of a long training.
    (tmp_path / "own_objective.py").write_text(
        "import time; print('it waits', flush=True); time.sleep(600)"
    )
    access = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file)}
    with subprocess.Popen(
        [BIN / "deft", "submit", "run.yaml", "--address", head, "--root", str(tmp_path / "runs")],
        cwd=tmp_path,
        env={**os.environ, **access},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Tests that a shell runs in the background inherit that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as following:
        assert following.stdout is not None
        job = re.search(r"raysubmit_\w+", following.stdout.readline())
        assert job is not None
        for line in following.stdout:
            if "it waits" in line:
                break
        following.send_signal(signal.SIGINT)
        try:
            _, output = following.communicate(timeout=60)
        finally:
            following.kill()
    assert following.returncode == 130
    assert f"ray job logs -f {job[0]} --address {head}" in output
    assert f"ray job stop {job[0]} --address {head}" in output
    address = f"{head}/api/jobs/{job[0]}"
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert requests.get(address, headers=headers, timeout=30).json()["status"] == "RUNNING"
    stopped = subprocess.run(
        [BIN / "ray", "job", "stop", job[0], "--address", head],
        env={**os.environ, **access},
        capture_output=True,
        text=True,
        check=False,
    )
    assert stopped.returncode == 0, stopped.stdout
    assert requests.get(address, headers=headers, timeout=30).json()["status"] == "STOPPED"


def test_ray_job_submit_ships_the_checkout(head: str, token_file: Path) -> None:
    code = "import deft.platform.cli as c, platform; from deft import run; "
    code += "print('from', c.__file__, platform.machine())"
    command = [BIN / "ray", "job", "submit", "--address", head, "--working-dir", "."]
    command += ["--runtime-env", "runtime_env.yaml", "--", "python", "-c", code]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (output,) = re.findall(r"^from (\S+) (\S+)$", done.stdout, flags=re.MULTILINE)
    assert "/py_modules_files/" in output[0]
    assert output[1] == os.uname().machine


def test_no_server_at_the_address(
    deft: Callable[..., CompletedProcess[str]], tmp_path: Path
) -> None:
    (tmp_path / "run.yaml").write_text(RUN_FILE)
    done = deft("submit", "run.yaml", "--address", "http://127.0.0.1:9")
    assert done.returncode == 2
    assert "http://127.0.0.1:9: nothing answers there" in done.stderr
    done = deft("submit", "run.yaml", "--address", "127.0.0.1:8265")
    assert done.returncode == 2
    assert "expected the address of the cluster's dashboard" in done.stderr


def test_cluster_that_is_too_old_or_no_cluster_is_said(
    deft: Callable[..., CompletedProcess[str]], tmp_path: Path
) -> None:
    """A stand-in answers, for an older Ray cannot be installed beside this one."""
    answers = {"old": {"version": "4", "ray_version": "2.9.3"}, "other": {"name": "a shop"}}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(answers[self.path.split("/")[1]]).encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    (tmp_path / "run.yaml").write_text(RUN_FILE)
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        output = {
            name: deft("submit", "run.yaml", "--address", f"{address}/{name}").stderr
            for name in answers
        }
        server.shutdown()
    assert "the cluster runs Ray 2.9.3, and 2.60 or newer is needed" in output["old"]
    assert "what answers there is not a job server of Ray" in output["other"]


def test_command_of_a_job_means_the_same_on_the_cluster(tmp_path: Path) -> None:
    (tmp_path / "my runs").mkdir()
    command = entrypoint(
        "sweep",
        tmp_path / "my runs" / "sweep.yaml",
        working_dir=tmp_path,
        root=Path("/shared/runs"),
        settings=["training.max_steps=3", "dataset={name: a, size: 3}"],
        tracking_uri="https://mlflow.example.org",
    )
    assert command == (
        "python -m deft.platform.cli sweep 'my runs/sweep.yaml' --root /shared/runs "
        "--set training.max_steps=3 --set 'dataset={name: a, size: 3}' "
        "--tracking-uri https://mlflow.example.org"
    )
    with pytest.raises(UserError, match="a password in it would reach logs"):
        entrypoint(
            "run",
            tmp_path / "run.yaml",
            working_dir=tmp_path,
            root=tmp_path,
            tracking_uri="https://user:hunter2@mlflow.example.org",
        )
    with pytest.raises(UserError, match=r"run\.yaml: not in the working directory"):
        entrypoint("run", tmp_path / "run.yaml", working_dir=tmp_path / "my runs", root=tmp_path)


def test_relative_root_is_for_a_cluster_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_root(Path("runs"), "http://127.0.0.1:8265") == tmp_path / "runs"
    assert absolute_root(Path("/shared"), "https://ray.example.org") == Path("/shared")
    with pytest.raises(UserError, match="storage that all its nodes share"):
        absolute_root(Path("runs"), "https://ray.example.org")


def test_data_that_is_not_shipped_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, root = tmp_path / "work", tmp_path / "storage"
    for folder in (work / "ignored", tmp_path / "elsewhere", root):
        folder.mkdir(parents=True)
        (folder / "sums.jsonl").write_text('{"prompt": "1 + 1", "response": "2"}\n')
    shutil.copy(root / "sums.jsonl", work)
    subprocess.run(["git", "init", "--quiet"], cwd=work, check=True)
    (work / ".gitignore").write_text("ignored/\n")
    monkeypatch.chdir(work)

    def warnings(name: str | Path) -> list[str]:
        names = {"dataset": str(name), "model": "tiny", "objective": "p"}
        return missing_paths([load_spec(None, names)] * 2, work, root)

    assert warnings("figfont") == []
    assert warnings("sums.jsonl") == []
    assert warnings(root / "sums.jsonl") == []
    (output,) = warnings(tmp_path / "elsewhere" / "sums.jsonl")
    assert "elsewhere/sums.jsonl is not in the working directory" in output
    (output,) = warnings("../elsewhere/sums.jsonl")
    assert "is not in the working directory" in output
    (output,) = warnings("ignored/sums.jsonl")
    assert "ignored/sums.jsonl is left out of what is shipped" in output


def test_working_directory_may_add_to_the_jobs_environment(tmp_path: Path) -> None:
    package = tmp_path / "shipped" / "deft"
    plain = runtime_environment(tmp_path, package)
    assert plain["py_modules"] == [str(package)]
    assert {"runs/", ".env"} <= set(plain["excludes"])
    for_rays_own_command = yaml.safe_load((ROOT / "runtime_env.yaml").read_text())
    assert for_rays_own_command["excludes"] == plain["excludes"]
    (tmp_path / "runtime_env.yaml").write_text(
        "py_modules: [.cache/typing/deft, helpers]\n"
        "excludes: [data/]\n"
        "env_vars: {HF_HUB_OFFLINE: '1'}\n"
    )
    assert runtime_environment(tmp_path, package) == {
        "working_dir": str(tmp_path),
        "py_modules": [str(package), str(tmp_path / "helpers")],
        "excludes": ["data/"],
        "env_vars": {"HF_HUB_OFFLINE": "1"},
    }


def test_secrets_that_the_dashboard_would_show_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "runtime_env.yaml"
    file.write_text("excludes: []\nenv_vars:\n  HF_HUB_OFFLINE: '1'\n  HF_TOKEN: hf_hunter2\n")
    with pytest.raises(UserError) as refusal:
        runtime_environment(tmp_path, tmp_path / "deft")
    assert str(refusal.value).startswith(f"{file}:4: env_vars.HF_TOKEN: Ray's dashboard shows")
    assert "hunter2" not in str(refusal.value)
