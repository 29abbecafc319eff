"""The commands that README and docs print are run as printed, at smaller sizes."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from helpers import DEFT, ROOT, commands_in, free_port

PAGES = ("README.md", *(f"docs/{name}.md" for name in ("quickstart", "mlflow", "extending")))
PAGES += tuple(
    f"docs/{name}.md" for name in ("sweeps", "evaluating", "run-files", "python", "paper")
)
"""In an order in which later pages find the runs of earlier ones that they name."""

TRAINING = (
    *("dataset.size=96", "dataset.validation=16", "training.max_steps=3"),
    *("training.batch_size=16", "training.micro_batch_size=8", "training.num_workers=1"),
    "evaluation.benchmarks=[{name: chain_sum, size: 8, max_tokens: 8}]",
)
SMALLER: dict[str, tuple[str, ...]] = {
    "run": TRAINING,
    "sweep": TRAINING,
    "evaluate": ("evaluation.engine.type=transformers",),
}
"""Settings that make a command's work small."""

STAND_INS = {
    "smollm2-135m": "tiny",
    "figfont-tiny-original": "chain_sum-tiny-original",
    "figfont-tiny-DEFT": "chain_sum-tiny-DEFT",
    "my_benchmarks:proofs": "my_benchmarks:sums",
    "48": "4",
}
"""What is run here for words of the pages that need a download, time, or a table of one's own."""

ELSEWHERE = (
    "submit",
    "push",
    "lm_eval:",
    "status --watch",
    "--model Qwen/",
    "--model runs/",
    "grade math responses.jsonl",
    "priors",
)
"""Words of commands that need a cluster's head, the hub, a terminal, files of the reader or an
hour."""

FILE = re.compile(r"^```(?:python|yaml)\n# (my_\w+\.\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
"""Files of the reader, which begin with their names."""

EXIT_CODES = {"deft run typo.yaml": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make a folder with the files that the pages speak of."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (tmp_path / "sweeps").mkdir()
    for sweep in (ROOT / "sweeps").glob("*.yaml"):
        shutil.copy(sweep, tmp_path / "sweeps")
    for page in PAGES:
        for name, code in FILE.findall((ROOT / page).read_text()):
            (tmp_path / name).write_text(code)
    (tmp_path / "typo.yaml").write_text(
        "dataset: figfont\nmodel: tiny\nobjective: DEFT\ntraining:\n  lerning_rate: 1.0e-4\n"
    )
    (tmp_path / "my_benchmarks.py").unlink()  # its table is on the hub
    made = [DEFT, "new", "benchmark", "my_benchmarks.py"]
    subprocess.run(made, cwd=tmp_path, check=True, capture_output=True)
    return tmp_path


@pytest.mark.slow
def test_printed_commands_run(folder: Path, ray_address: str) -> None:
    for page in PAGES:
        for line in commands_in(page):
            if not any(words in line for words in ELSEWHERE):
                _run(line, folder, ray_address)


def _run(line: str, folder: Path, ray_address: str) -> None:
    _, name, *words = shlex.split(line, comments=True)
    if name == "new" and (folder / words[1]).exists():
        (folder / words[1]).unlink()
    arguments = [name, *(STAND_INS.get(word, word) for word in words)]
    if name == "evaluate":  # `tiny` has no weights of its own
        trained = next(folder.glob("runs/chain_sum-tiny-original-*"))
        arguments = [str(trained) if word == "tiny" else word for word in arguments]
    for setting in SMALLER.get(name, ()):
        arguments += ["--set", setting]
    if name == "ui":
        arguments += ["--no-browser", "--port", str(free_port())]
    if name == "view":
        arguments += ["--no-browser"]
    process = subprocess.Popen(
        [DEFT, *arguments],
        cwd=folder,
        env={**os.environ, "RAY_ADDRESS": ray_address},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        if name == "ui":  # goes on until it is interrupted
            assert process.stdout is not None
            assert process.stdout.readline() != "", line
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate(timeout=60)
            assert process.returncode in (0, 130, -signal.SIGINT), f"{line}\n{output}"
        else:
            output, _ = process.communicate(timeout=900)
            assert process.returncode == EXIT_CODES.get(line, 0), f"{line}\n{output}"
    finally:
        process.kill()
        process.communicate()
    assert "Traceback" not in output, f"{line}\n{output}"
