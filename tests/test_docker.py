"""What is in docker/: held to what its readers accept, and to the doors and rights it promises.

No container engine is needed: files are checked by a linter, by the schemas of their formats and by
what Ray, MLflow and this package themselves make of them.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import requests
import typer
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from helpers import ROOT

DOCKER = ROOT / "docker"
BIN = Path(sys.executable).parent
DOCKERFILES = sorted(DOCKER.glob("Dockerfile*"))
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
KUBERNETES = "1.34"
CLAIM, CLUSTER, *JOBS = yaml.safe_load_all((DOCKER / "kuberay.yaml").read_text())
PODS = {
    group.get("groupName", "head"): group["template"]["spec"]
    for group in (CLUSTER["spec"]["headGroupSpec"], *CLUSTER["spec"]["workerGroupSpecs"])
}
SECRET = re.compile(r"PASSWORD|SECRET|TOKEN")


def instructions(file: Path) -> Iterator[tuple[str, list[str]]]:
    """Every instruction of a Dockerfile with its words."""
    text = re.sub(r"^\s*#.*\n", "", file.read_text(), flags=re.MULTILINE)
    for line in re.sub(r"\\\n", " ", text).splitlines():
        if line.strip():
            name, _, rest = line.partition(" ")
            yield name, rest.split()


def require_pinned(image: str) -> None:
    """Require an image of the default registry or our own, with a version in its tag."""
    name, _, tag = image.partition(":")
    assert "." not in name.split("/")[0], f"{image}: another registry"
    assert re.search(r"\d", tag) or name == "deft", f"{image}: no version"


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
class TestDockerfiles:
    def test_hadolint_finds_nothing(self, file: Path) -> None:
        done = subprocess.run(
            [BIN / "hadolint", "--no-color", file], capture_output=True, text=True
        )
        assert (done.returncode, done.stdout) == (0, "")

    def test_bases_are_pinned_and_the_last_stage_is_not_a_builder(self, file: Path) -> None:
        stages = [words for name, words in instructions(file) if name == "FROM"]
        assert len(stages) > 1
        assert len(stages[-1]) == 1
        for words in stages:
            require_pinned(words[0])

    def test_runs_as_no_root(self, file: Path) -> None:
        last = max(i for i, (name, _) in enumerate(instructions(file)) if name == "FROM")
        users = [words for name, words in list(instructions(file))[last:] if name == "USER"]
        assert users == [["1000:1000"]]  # a number: Kubernetes cannot tell who a name is

    def test_files_that_it_copies_exist_and_reach_the_engine(self, file: Path) -> None:
        ignored = (ROOT / ".dockerignore").read_text().split()
        for name, words in instructions(file):
            if name != "COPY" or words[0].startswith("--from"):
                continue
            for source in [word for word in words[:-1] if not word.startswith("--")]:
                assert list(ROOT.glob(source)), source
                assert not any(f"{source}/".startswith(start) for start in ignored), source

    def test_has_no_secret(self, file: Path) -> None:
        settings = [
            w for name, words in instructions(file) if name in ("ARG", "ENV") for w in words
        ]
        assert not [setting for setting in settings if SECRET.search(setting)]


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_what_images_leave_out_is_needed_by_nothing_else(device: str) -> None:
    file = DOCKER / ("Dockerfile.cpu" if device == "cpu" else "Dockerfile")
    removed = re.search(r"pip uninstall --yes ((?:[a-z0-9-]+|\\\n|\s(?!\n))+)", file.read_text())
    assert removed
    names = set(removed[1].replace("\\\n", " ").split())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"], *extras[device]]
    assert not names & {canonicalize_name(Requirement(text).name) for text in needed}
    # The lock says of every package what it is there for.
    lock = (ROOT / "requirements" / f"{device}.lock").read_text()
    entry = r"^([a-z0-9-]+)==.*\n(?: {4}--hash.*\n)*((?: {4}#.*\n)+)"
    reasons_by_name = dict(re.findall(entry, lock, flags=re.MULTILINE))
    for name in names:
        reasons = set(
            re.findall(r"# +(?:via +)?([a-z0-9.-]+)$", reasons_by_name[name], flags=re.MULTILINE)
        )
        assert reasons - {"via", f"{device}.in"} <= names, name


def test_compose_file_follows_the_compose_specification() -> None:
    command = [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, DOCKER / "compose.yaml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", SERVICES)
class TestServices:
    def test_has_few_rights(self, name: str) -> None:
        service = SERVICES[name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        forbidden = {
            "privileged",
            "cap_add",
            "devices",
            "pid",
            "ipc",
            "network_mode",
            "userns_mode",
        }
        assert not forbidden & service.keys()
        assert "docker.sock" not in str(service)
        require_pinned(service["image"])
        if "build" in service:
            assert (DOCKER / service["build"]["context"]).resolve() == ROOT
            assert (ROOT / service["build"]["dockerfile"]).is_file()
        else:
            assert service["user"] not in ("root", "0")

    def test_is_open_to_this_machine_alone(self, name: str) -> None:
        for port in SERVICES[name].get("ports", []):
            assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)

    def test_has_no_password_of_its_own(self, name: str) -> None:
        service = SERVICES[name]
        given = {key: value for key, value in service["environment"].items() if SECRET.search(key)}
        for key, value in given.items():
            if value is not None:  # passed through where there is one
                assert re.fullmatch(r"\$\{[A-Z0-9_]+:\?[^}]+\}", value), key
        defaults = re.findall(r"\$\{([A-Z0-9_]+):?-", str(service))
        assert set(defaults) <= {"PIP_EXTRA_INDEX_URL", "COMMIT"}

    def test_waits_for_what_tells_that_it_is_ready(self, name: str) -> None:
        service = SERVICES[name]
        if service["restart"] == "unless-stopped":
            assert "healthcheck" in service
        for other, wait in service.get("depends_on", {}).items():
            lasts = SERVICES[other]["restart"] == "unless-stopped"
            wanted = "service_healthy" if lasts else "service_completed_successfully"
            assert wait["condition"] == wanted, other

    def test_its_files_and_volumes_are_there(self, name: str) -> None:
        for volume in SERVICES[name].get("volumes", []):
            if isinstance(volume, str) and volume.startswith("."):
                source, _, mode = volume.split(":")
                assert (DOCKER / source).is_file()
                assert mode == "ro"
            elif isinstance(volume, str):
                assert volume.split(":")[0] in COMPOSE["volumes"]


def test_compose_file_names_every_secret_that_it_needs() -> None:
    text = (DOCKER / "compose.yaml").read_text()
    header = text.partition("\nname:")[0]
    needed = set(re.findall(r"\$\{([A-Z0-9_]+):\?", text))
    assert needed == set(re.findall(r"^#   ([A-Z0-9_]+) ", header, flags=re.MULTILINE))


def test_ray_asks_for_its_token_everywhere() -> None:
    for name in ("head", "worker"):
        assert SERVICES[name]["environment"]["RAY_AUTH_MODE"] == "token"
    assert CLUSTER["spec"]["authOptions"] == {"mode": "token"}
    launcher = yaml.safe_load((DOCKER / "cluster.yaml").read_text())
    assert "--env RAY_AUTH_MODE=token" in launcher["docker"]["run_options"]
    assert any(path.endswith("/.ray/auth_token") for path in launcher["file_mounts"])


def test_commands_in_containers_exist_with_their_options() -> None:
    from mlflow.cli import cli as mlflow
    from ray.scripts.scripts import cli as ray

    programs: dict[str, Any] = {"ray": ray, "mlflow": mlflow}
    seen = []
    for service in SERVICES.values():
        words = [*service.get("entrypoint", []), *service.get("command", [])]
        if words and words[0] in programs:
            command = programs[words[0]].commands[words[1]]
            command.make_context(words[1], words[2:], resilient_parsing=False)
            seen.append(words[:2])
    launcher = yaml.safe_load((DOCKER / "cluster.yaml").read_text())
    for kind in ("head", "worker"):
        for line in launcher[f"{kind}_start_ray_commands"]:
            _, name, *arguments = shlex.split(line)
            ray.commands[name].make_context(name, arguments)
            seen.append(["ray", name])
    assert seen.count(["ray", "start"]) == 4
    assert ["mlflow", "server"] in seen


def fields(**properties: Any) -> dict[str, Any]:
    """Return the schema of an object that has these fields and no others."""
    required = list(properties)
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


TEXT, NUMBER, OBJECT = {"type": "string"}, {"type": "integer"}, {"type": "object"}
TEXTS = {"type": "object", "additionalProperties": TEXT}
GROUP = {"rayStartParams": TEXTS, "template": OBJECT}  # pods are checked by Kubernetes' own schema
COUNTS = {"replicas": NUMBER, "minReplicas": NUMBER, "maxReplicas": NUMBER}
KUBERAY = {
    "RayCluster": fields(
        rayVersion=TEXT,
        authOptions=fields(mode={"enum": ["disabled", "token"]}),
        enableInTreeAutoscaling={"type": "boolean"},
        autoscalerOptions=fields(
            version={"enum": ["v1", "v2"]}, idleTimeoutSeconds=NUMBER, securityContext=OBJECT
        ),
        headGroupSpec=fields(**GROUP),
        workerGroupSpecs={"type": "array", "items": fields(groupName=TEXT, **COUNTS, **GROUP)},
    ),
    "RayJob": fields(clusterSelector=TEXTS, entrypoint=TEXT),
}
"""The part of KubeRay's custom resources that is used here, by kind."""


class TestKubeRay:
    def test_kinds_and_fields_are_those_of_kuberay(self) -> None:
        assert [manifest["kind"] for manifest in (CLUSTER, *JOBS)] == [
            "RayCluster",
            "RayJob",
            "RayJob",
        ]
        for manifest in (CLUSTER, *JOBS):
            assert manifest["apiVersion"] == "ray.io/v1"
            jsonschema.validate(manifest["spec"], KUBERAY[manifest["kind"]])
        assert CLUSTER["spec"]["enableInTreeAutoscaling"] is True
        for group in CLUSTER["spec"]["workerGroupSpecs"]:
            # A run asks what devices there are before it starts.
            assert 1 <= group["minReplicas"] <= group["replicas"] < group["maxReplicas"]
        for job in JOBS:
            selector = {"ray.io/cluster": CLUSTER["metadata"]["name"]}
            assert job["spec"]["clusterSelector"] == selector

    def test_pods_and_the_volume_are_what_kubernetes_takes(self) -> None:
        kubernetes_validate.validate(CLAIM, KUBERNETES, strict=True)
        for name, spec in PODS.items():
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
            kubernetes_validate.validate(pod, KUBERNETES, strict=True)

    def test_pods_have_few_rights(self) -> None:
        for name, spec in PODS.items():
            assert spec["securityContext"]["runAsNonRoot"] is True
            assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            # The autoscaler in the head's pod asks Kubernetes for workers.
            assert name == "head" or spec["automountServiceAccountToken"] is False
            confined = [container["securityContext"] for container in spec["containers"]]
            for context in [*confined, CLUSTER["spec"]["autoscalerOptions"]["securityContext"]]:
                assert context["allowPrivilegeEscalation"] is False
                assert context["readOnlyRootFilesystem"] is True
                assert context["capabilities"] == {"drop": ["ALL"]}
            for container in spec["containers"]:
                assert not [v for v in container["env"] if SECRET.search(v["name"])]
                mounts = {mount["name"] for mount in container["volumeMounts"]}
                assert mounts == {volume["name"] for volume in spec["volumes"]}

    def test_ray_is_the_locks(self) -> None:
        lock = (ROOT / "requirements" / "gpu.lock").read_text()
        assert f"\nray=={CLUSTER['spec']['rayVersion']} \\\n" in lock

    @pytest.mark.parametrize("job", JOBS, ids=lambda job: job["metadata"]["name"])
    def test_jobs_are_commands_of_deft_on_files_of_the_image(self, job: Any) -> None:
        from deft.platform.cli import app

        _, name, *arguments = shlex.split(job["spec"]["entrypoint"])
        command: Any = typer.main.get_command(app)
        given = command.commands[name].make_context(name, arguments).params
        assert given["root"] == Path("/runs")
        assert {"name": "runs", "mountPath": "/runs"} in PODS["head"]["containers"][0][
            "volumeMounts"
        ]
        assert (ROOT / given["file"].relative_to("/app")).is_file()


def test_ray_accepts_the_launcher_file() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load((DOCKER / "cluster.yaml").read_text()))
    validate_config(config)
    assert config["max_workers"] == len(config["provider"]["worker_ips"])
    with pytest.raises(Exception, match="worker_sips"):  # so it does look
        validate_config({**config, "worker_sips": []})


class Mlflow:
    """MLflow started by the words and the environment of compose.yaml.

    Only where it listens and what it keeps things in are this machine's.
    """

    def __init__(self, directory: Path) -> None:
        service = SERVICES["mlflow"]
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = str(probe.getsockname()[1])
        self.uri = f"http://127.0.0.1:{port}"
        self.log = directory / "server.log"
        given = dict(service["environment"])
        store = f"sqlite:///{directory / 'mlflow.db'}"
        settings = (DOCKER / "mlflow_auth.ini").read_text()
        assert given["MLFLOW_BACKEND_STORE_URI"] in settings
        (directory / "auth.ini").write_text(
            settings.replace(given["MLFLOW_BACKEND_STORE_URI"], store)
        )
        given |= {key: f"a-password-of-{key}" for key, value in given.items() if "${" in value}
        given["MLFLOW_BACKEND_STORE_URI"] = store
        given["MLFLOW_AUTH_CONFIG_PATH"] = str(directory / "auth.ini")
        given["MLFLOW_ARTIFACTS_DESTINATION"] = str(directory / "artifacts")
        given["MLFLOW_SERVER_ALLOWED_HOSTS"] = given["MLFLOW_SERVER_ALLOWED_HOSTS"].replace(
            "5000", port
        )
        self.admin_password = given["MLFLOW_AUTH_ADMIN_PASSWORD"]
        words = [
            word.replace("0.0.0.0", "127.0.0.1").replace("5000", port)
            for word in service["entrypoint"]
        ]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [BIN / words[0], *words[1:]],
                env={**os.environ, **given},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Until it answers, as its health check asks."""
        path = SERVICES["mlflow"]["healthcheck"]["test"][-1].removeprefix("http://127.0.0.1:5000")
        deadline = time.monotonic() + 120
        while True:
            with suppress(requests.ConnectionError):
                if requests.get(self.uri + path, timeout=5).ok:
                    return
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.2)

    def make_user(self, password: str) -> None:
        """As the service `mlflow-user` does."""
        given = {
            **SERVICES["mlflow-user"]["environment"],
            "MLFLOW_TRACKING_URI": self.uri,
            "MLFLOW_TRACKING_PASSWORD": self.admin_password,
            "DEFT_MLFLOW_PASSWORD": password,
        }
        script = DOCKER / "mlflow_user.py"
        subprocess.run([sys.executable, script], env={**os.environ, **given}, check=True)

    def asked(self, name: str, password: str, host: str | None = None) -> int:
        """Return the server's answer to a user who asks for experiments."""
        answer = requests.post(
            f"{self.uri}/api/2.0/mlflow/experiments/search",
            json={"max_results": 1},
            auth=(name, password) if name else None,
            headers={"Host": host} if host else None,
            timeout=30,
        )
        return answer.status_code

    def end(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def test_mlflow_lets_in_whom_compose_names_and_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    server = Mlflow(tmp_path)
    try:
        server.wait()
        server.make_user("first password 1")
        assert server.asked("", "") == 401
        assert server.asked("admin", "password1234") == 401
        assert server.asked("deft", "first password 1") == 200
        server.make_user("second password 2")  # compose is started again with another one
        assert server.asked("deft", "first password 1") == 401
        assert server.asked("deft", "second password 2") == 200
        assert server.asked("deft", "second password 2", host="elsewhere.example.org") == 403
        # What one user has begun the next one may go on with: all share one experiment.
        for name, password in (("admin", server.admin_password), ("deft", "second password 2")):
            monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
            monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
            client = MlflowClient(server.uri)
            existing = client.get_experiment_by_name("deft")
            experiment = existing.experiment_id if existing else client.create_experiment("deft")
            client.log_param(client.create_run(experiment).info.run_id, "a", 1)
    finally:
        server.end()
