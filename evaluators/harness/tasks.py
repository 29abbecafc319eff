"""What a name like ``lm_eval:arc_challenge`` stands for, without importing lm-evaluation-harness.

The library's own index parses 14,000 files, which takes ten seconds; to look for one line in each
takes half a second.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from deft.evaluators.benchmarks.base import Benchmark, HarnessTask, Sampling, read_generated
from deft.evaluators.scores.metrics import accuracy, score_means
from deft.workers.common.checksums import hash_files, hash_parts
from deft.workers.common.names import nearest_name

PREFIX = "lm_eval:"
INSTALL = "run bash requirements/install.sh, or pip install 'lm_eval[ifeval]==0.4.13'"
"""What to do where the library is missing."""

_NAME = re.compile(rb"^\"?(task|group)\"?:[ \t]*[\"']?([\w.+()-]+)[\"']?[ \t\r]*$", re.MULTILINE)


def harness_benchmark(name: str) -> Benchmark:
    """Return the task or group ``lm_eval:TASK``, or that of a file ``lm_eval:FILE.yaml``.

    Raises:
        ValueError: the library is missing, there is no such task, or it runs code of the model's.
    """
    installed = find_spec("lm_eval")
    if installed is None or installed.origin is None:
        raise ValueError(f"{name}: lm-evaluation-harness is not installed; {INSTALL}")
    task = name.removeprefix(PREFIX)
    if task.endswith(".yaml"):
        file = Path(task)
        if not file.is_file():
            raise ValueError(f"{name}: there is no file {file}")
    else:
        file = _find(task, Path(installed.origin).parent / "tasks")
    config = _read_config(file)
    kind = "group" if "group" in config else "task"
    if not isinstance(config.get(kind), str):
        raise ValueError(f"{name}: {file} names no task; add a line `task: NAME`")
    if config.get("unsafe_code"):
        raise ValueError(
            f"{name}: it runs code that the model writes, without a sandbox; leave it out, or run "
            "it by the library's own command in a container"
        )
    harness = HarnessTask(
        name=config[kind],
        file=str(file),
        is_group=kind == "group",
        release=version("lm_eval"),
        version=str((config.get("metadata") or {}).get("version", "none")),
        digest=_digest(file, config) if task.endswith(".yaml") else "",
    )
    return Benchmark(
        name=f"{PREFIX}{harness.name}",
        summary=f"{kind} {harness.name} of lm-evaluation-harness",
        source=f"lm-evaluation-harness {harness.release}",
        records=list,
        read=read_generated,
        grader="",
        sampling=Sampling(max_tokens=256),
        metrics=(accuracy, score_means),
        several_sources=harness.is_group,
        harness=harness,
    )


def absolute_name(name: str) -> str:
    """Return the name of a benchmark, the path of a task's file in it made absolute."""
    path = name.removeprefix(PREFIX)
    is_file = name.startswith(PREFIX) and path.endswith(".yaml")
    return f"{PREFIX}{Path(path).absolute()}" if is_file else name


def _find(task: str, folder: Path) -> Path:
    files = _task_files(folder)
    if task not in files:
        nearest = nearest_name(task, files)
        hint = f"did you mean {PREFIX}{nearest}?" if nearest else "`lm-eval ls tasks` lists them"
        raise ValueError(f"{PREFIX}{task}: lm-evaluation-harness has no such task; {hint}")
    return files[task]


@lru_cache
def _task_files(folder: Path) -> dict[str, Path]:
    """Return the file of each task and group below ``folder``."""
    files: dict[str, Path] = {}
    for file in sorted(folder.rglob("*.yaml")):
        for _, name in _NAME.findall(file.read_bytes()):
            files.setdefault(name.decode(), file)
    return files


class _Loader(yaml.SafeLoader):
    """Reads the name of a function where the library would import it."""


_Loader.add_constructor("!function", lambda loader, node: str(node.value))


def _read_config(file: Path) -> dict[str, Any]:
    """Read a task's settings, those of the files that it includes first."""
    try:
        config = yaml.load(file.read_bytes(), _Loader)
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{file}: {' '.join(str(error).split())}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{file}: expected the settings of a task")
    included = config.pop("include", [])
    merged: dict[str, Any] = {}
    for name in [included] if isinstance(included, str) else included:
        merged |= _read_config(file.parent / name)
    return merged | config


def _digest(file: Path, config: dict[str, Any]) -> str:
    """Hash a task of one's own: its settings, and the modules that its functions are in."""
    modules = sorted(file.parent.glob("*.py"))
    settings = json.dumps(config, sort_keys=True, default=str)
    return hash_parts(settings, hash_files((module.name, module) for module in modules))
