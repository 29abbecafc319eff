"""The command as a person runs it: exit codes, one message, nothing written on bad input."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import typer

from deft.objectives.catalog import CATALOG
from deft.platform.cli import app
from deft.platform.config.loading import load_spec
from deft.platform.records.run_directory import RunDirectory
from deft.workers.catalogs.models import MODELS
from helpers import ROOT, free_port

Deft = Callable[..., CompletedProcess[str]]


@pytest.fixture
def refused(deft: Deft, tmp_path: Path) -> Callable[..., str]:
    """Run a command that must end as bad input does, and return what it says."""

    def run(*arguments: str, **environment: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        done = deft(*arguments, **environment)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        assert sorted(tmp_path.rglob("*")) == before
        return done.stderr

    return run


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run"], "give a run file"),
        (["run", "none.yaml"], "none.yaml: no such file"),
        (["run", "--dataset", "figfont", "--model", "tiny"], "objective: is missing"),
        (["run", "--dataset", "figfon", "--model", "tiny", "--objective", "p"], "figfont"),
        (["run", "--objektive", "p"], "No such option"),
        (["walk"], "No such command"),
        (["list", "objektives"], "objectives"),
        (["ui"], "no runs there yet"),
        (["ui", "--tracking-uri", "sqlite:///a.db", "--port", "99999"], "give another port"),
        (
            [
                *("run", "--dataset", "figfont", "--model", "tiny", "--objective", "p"),
                *("--tracking-uri", "htp://localhost:5000"),
            ],
            "Did you mean http?",
        ),
        (["evaluate"], "Missing option '--model'"),
        (["evaluate", "--model", "smollm2-135m"], "give --benchmarks or --heldout"),
        (["evaluate", "--model", "smollm2", "--benchmarks", "gsm8k"], "Did you mean smollm2-135m?"),
        (["evaluate", "--model", "smollm2-135m", "--benchmarks", "gsm8"], "Did you mean gsm8k?"),
        (
            ["evaluate", "--model", "smollm2-135m", "--benchmarks", "gsm8k", "--data-dir", "no"],
            "data_dir: there is no folder no",
        ),
        (
            [
                "evaluate",
                "--model",
                "smollm2-135m",
                "--benchmarks",
                "gsm8k",
                "--set",
                "evaluation.engine.cpu=2",
            ],
            "--set evaluation.engine.cpu=2: evaluation.engine.cpu: unknown key; did you mean cpus?",
        ),
        (["compare", "nowhere"], "nowhere: no such run in "),
        (["list", "foo"], "for 'kind': 'foo' is not one of"),
        (
            ["run", str(ROOT / "sweeps" / "quickstart.yaml")],
            f"quickstart.yaml:13: grid makes this a sweep file; run it by `deft sweep {ROOT}",
        ),
        (
            ["sweep", str(ROOT / "examples" / "quickstart.yaml")],
            "quickstart.yaml: a run file, not a sweep; run it by `deft run ",
        ),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(
    refused: Callable[..., str], arguments: list[str], expected: str
) -> None:
    assert expected in refused(*arguments)


def test_secrets_and_escape_sequences_in_bad_input_are_not_shown(
    refused: Callable[..., str], fault: Callable[..., None]
) -> None:
    names = ["run", "--dataset", "figfont", "--model", "tiny", "--objective", "p"]
    message = refused(*names, "--set", "training.checkpoint_storage=s3://key:hunter2@bucket")
    assert "AWS_SECRET_ACCESS_KEY" in message
    message += refused(*names, "--tracking-uri", "postgresql://user:hunter2@host/db")
    message += refused(*names, MLFLOW_TRACKING_URI="https://user:hunter2@host")
    assert "hunter2" not in message
    message = refused(*names, "--set", "dataset.\x1b]0;owned\x07=\x1b[2J")
    assert "\x1b" not in message
    assert "\\x1b]0;owned\\x07" in message
    fault(
        "a password in a setting, a URI or an environment variable that would be written down",
        "it is refused in one message that does not show it",
        seconds="it is in the environment",
    )


def test_lists_name_everything_with_its_source(deft: Deft) -> None:
    listed = deft("list", "objectives", COLUMNS="200").stdout
    assert all(name in listed for name in CATALOG)
    assert "2602.11424" in listed
    listed = deft("list", "models", COLUMNS="200").stdout
    assert all(name in listed and info.source in listed for name, info in MODELS.items())
    assert "reasoning-gym" in deft("list", "datasets", COLUMNS="200").stdout
    listed = deft("list", "benchmarks", COLUMNS="200").stdout
    assert "figfont" in listed
    assert "also: MODULE:BENCHMARK, one of your own; lm_eval:TASK" in listed


def test_dry_run_prints_a_spec_that_means_the_same_run(deft: Deft, tmp_path: Path) -> None:
    names = ["--dataset", "figfont", "--model", "tiny", "--objective", "DEFT"]
    printed = deft("run", *names, "--dry-run").stdout
    (tmp_path / "again.yaml").write_text(printed)  # JSON is YAML
    assert deft("run", "again.yaml", "--dry-run").stdout == printed


SMALL = """
model: tiny
objective: DEFT
training: {batch_size: 2, micro_batch_size: 1, num_workers: 1}
"""


def test_a_cluster_that_is_not_there_is_named(refused: Callable[..., str]) -> None:
    names = ("--dataset", "figfont", "--model", "tiny", "--objective", "DEFT")
    message = refused("run", *names, RAY_ADDRESS="127.0.0.1:9")
    assert "RAY_ADDRESS=127.0.0.1:9: no Ray cluster there (ConnectionRefusedError" in message


def test_bad_line_in_a_data_file_is_named(
    refused: Callable[..., str], tmp_path: Path, ray_address: str
) -> None:
    lines = ['{"prompt": "1 + 1", "response": "2"}'] * 6 + ['{"promt": "2 + 2", "response": "4"}']
    (tmp_path / "sums.jsonl").write_text("\n".join(lines))
    (tmp_path / "run.yaml").write_text("dataset: sums.jsonl" + SMALL)
    message = refused("run", "run.yaml", RAY_ADDRESS=ray_address)
    assert "sums.jsonl: 1 bad record (1 missing field)" in message
    assert "sums.jsonl:7: key 'prompt' is missing; did you mean promt? There are:" in message
    assert "dataset.bad_records=drop" in message


def test_dataset_that_the_hub_does_not_give_is_said_with_a_way_out(
    refused: Callable[..., str], ray_address: str
) -> None:
    # There is none of this name, and without a network there is none at all.
    names = ["--dataset", "nobody/nothing", "--model", "tiny", "--objective", "DEFT"]
    message = refused("run", *names, RAY_ADDRESS=ray_address)
    assert "dataset 'nobody/nothing' (split train) could not be had from the Hugging" in message
    assert "give their directory" in message


def test_empty_dataset_is_refused(
    refused: Callable[..., str], tmp_path: Path, ray_address: str
) -> None:
    (tmp_path / "none.jsonl").write_text("\n")
    (tmp_path / "run.yaml").write_text("dataset: none.jsonl" + SMALL)
    message = refused("run", "run.yaml", RAY_ADDRESS=ray_address)
    assert "no example in it" in message


def test_more_workers_than_the_cluster_has_are_refused(
    refused: Callable[..., str], tmp_path: Path, ray_address: str
) -> None:
    names = ["--dataset", "figfont", "--model", "tiny", "--objective", "DEFT"]
    workers = ["training.num_workers=64", "training.batch_size=64", "training.micro_batch_size=1"]
    settings = [part for setting in workers for part in ("--set", setting)]
    message = refused("run", *names, *settings, RAY_ADDRESS=ray_address)
    assert "64 workers need as many CPUs, the Ray cluster has 4" in message


def test_dropped_records_are_said_and_listed(
    deft: Deft, tmp_path: Path, ray_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [f'{{"prompt": "{n} + 1", "response": "{n + 1}"}}' for n in range(40)]
    lines[6] = '{"promt": "2 + 2", "response": "4"}'
    lines[7] = '{"prompt": "7 + 1", "response": "8", "source": "school"}'
    (tmp_path / "sums.jsonl").write_text("\n".join(lines))
    (tmp_path / "run.yaml").write_text("dataset: {name: sums.jsonl, bad_records: drop}" + SMALL)
    monkeypatch.chdir(tmp_path)
    # It stops after the data: somebody else is at work on the run.
    with RunDirectory(tmp_path / "runs", load_spec(Path("run.yaml"))).locked():
        done = deft("run", "run.yaml", RAY_ADDRESS=ray_address)
    assert done.returncode == 2
    assert "another process is already running this run" in done.stderr
    assert "38 examples, 1 held out, 1 bad" in done.stdout
    message = " ".join(done.stdout.split())
    assert "warning: left out 1 missing field; listed in" in message
    assert (
        "warning: sums.jsonl: fields that nothing reads, with their number: source (1)" in message
    )
    (listed,) = tmp_path.glob("runs/cache/rows/*/bad_records.jsonl")
    assert json.loads(listed.read_text())["where"] == "sums.jsonl:7"


def test_ui_says_that_its_port_is_taken_and_that_a_server_is_not_there(deft: Deft) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = deft("ui", "--tracking-uri", "sqlite:///a.db", "--port", port)
    assert done.returncode == 2
    assert f"--port {port}" in done.stderr
    assert "in use" in done.stderr
    nobody = f"http://127.0.0.1:{free_port()}"
    done = deft("ui", "--tracking-uri", nobody)
    assert done.returncode == 2
    assert f"tracking URI {nobody}: no answer (ConnectionError); start the server" in done.stderr


def test_options_of_the_original_are_answered_by_what_to_use_here(deft: Deft) -> None:
    from deft.platform.commands.original_options import ANSWERS, PAGE

    page = (ROOT / PAGE).read_text()
    assert all(option in page for option in ANSWERS if option != "--use_vllm")
    done = deft("run", "--dataset", "math", "--model_save_name", "qwen-2.5-math-1.5b")
    assert done.returncode == 2
    assert "No such option: --model_save_name; here, give --model" in done.stderr
    done = deft("run", "trainer.objective_trans=DEFT")
    assert done.returncode == 2
    assert PAGE in done.stderr


def test_every_command_has_a_panel_and_an_example_that_names_it() -> None:
    def commands(group: typer.Typer, prefix: str) -> Iterator[tuple[str, Any]]:
        for info in group.registered_commands:
            assert info.callback is not None
            yield f"{prefix}{info.name or info.callback.__name__}", info
        for nested in group.registered_groups:
            assert nested.typer_instance is not None
            name = nested.name if isinstance(nested.name, str) else ""
            yield from commands(nested.typer_instance, f"{prefix}{name} " if name else prefix)

    all_commands = dict(commands(app, ""))
    assert len(all_commands) > 15
    for name, info in all_commands.items():
        assert info.epilog.startswith(f"Example: deft {name} "), name
        assert " " in name or isinstance(info.rich_help_panel, str), name


def test_version_and_short_help(capsys: pytest.CaptureFixture[str]) -> None:
    app(["--version"], standalone_mode=False)
    assert capsys.readouterr().out == f"deft {version('deft-platform')}\n"
    app(["run", "-h"], standalone_mode=False)
    assert "Example: deft run examples/quickstart.yaml" in capsys.readouterr().out


def test_shells_complete_commands_names_and_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def completed(words: str) -> list[str]:
        monkeypatch.setenv("_DEFT_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", f"deft {words}")
        monkeypatch.setenv("COMP_CWORD", str(len(words.split(" "))))
        with suppress(SystemExit):
            app(prog_name="deft", standalone_mode=False)
        return capsys.readouterr().out.split()

    (tmp_path / "mine-0123456789").mkdir()
    (tmp_path / "mine-0123456789" / "spec.json").touch()
    monkeypatch.setenv("DEFT_ROOT", str(tmp_path))
    assert completed("eval") == ["evaluate"]
    assert completed("run --objective DEFT") == ["DEFT", "DEFT_exact"]
    assert completed("compare m") == ["mine-0123456789"]


def test_runs_of_opposite_parameters_have_names_apart() -> None:
    names = [
        load_spec(None, {"dataset": "figfont", "model": "tiny", "objective": objective}).name
        for objective in ("GeneralFamily--1", "GeneralFamily-1", "m:f(beta=-0.5)")
    ]
    assert names == [
        "figfont-tiny-GeneralFamily--1",
        "figfont-tiny-GeneralFamily-1",
        "figfont-tiny-f-beta--0.5",
    ]
