"""Check kernels, attention and training steps on one GPU; `check.sh` sets up and runs this file.

Steps are ordered by what they tell, each a process of its own, so that a crash or a hang costs that
step alone. A step prints rows `(what, figure, verdict)`; all rows are one table at the end, and
`$OUT/check.jsonl`. `--tiny` runs every step on a CPU at sizes at which the figures say nothing:
it is there so that this file keeps working between GPUs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

BUDGET = 540.0
"""Seconds for all steps together."""
SLOWNESS_OF_A_CPU = 6
"""Factor of all limits with `--tiny`: a CPU may be shared with other work."""
MARKER = "row: "
"""Begins the lines of a step's output that are rows."""


class Step(NamedTuple):
    """One step: the module and function that yield its rows, and its limit in seconds."""

    name: str
    seconds: float


STEPS = (
    Step("parity", 150),
    Step("head", 150),
    Step("training", 150),
    Step("attention", 60),
    Step("kernels", 60),
    Step("options", 120),
)


class Row(NamedTuple):
    """One line of the table."""

    what: str
    figure: str
    verdict: str
    """``ok``, ``FAIL`` or empty for a measurement without a bound."""


def verdict(holds: bool) -> str:
    """Return the word for a check that holds or fails."""
    return "ok" if holds else "FAIL"


def run_step(name: str, tiny: bool) -> None:
    """Run one step in this process and print its rows as they come."""
    import steps

    produce: Callable[[bool], Iterator[Row]] = getattr(steps, name)
    for row in produce(tiny):
        print(MARKER + json.dumps(row), flush=True)


def run_step_apart(step: Step, tiny: bool, seconds: float) -> list[Row]:
    """Run one step in a process of its own; a failure becomes a row."""
    command = [sys.executable, __file__, "--step", step.name, *(["--tiny"] if tiny else [])]
    environment = dict(os.environ)
    if tiny:
        # Triton decides at its import whether kernels are interpreted.
        environment |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "2"}
    began = time.monotonic()
    log = Path(os.environ["OUT"]) / f"{step.name}.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        )
        try:
            output, _ = process.communicate(timeout=seconds)
            problem = "" if process.returncode == 0 else f"ended with code {process.returncode}"
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
            problem = f"ran longer than {seconds:.0f} s"
    rows = [
        Row(*json.loads(line.removeprefix(MARKER)))
        for line in output.splitlines()
        if line.startswith(MARKER)
    ]
    if problem:
        tail = [line for line in log.read_text().splitlines() if line.strip()][-1:]
        rows.append(Row(f"{step.name}: {problem}", " ".join(tail)[:160], "FAIL"))
    rows.append(Row(f"{step.name}: all of it", f"{time.monotonic() - began:.0f} s", ""))
    return rows


def device_line() -> str:
    """Name the card and the versions that matter."""
    code = (
        "import torch, triton, transformers;"
        "card = torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU';"
        "print(card, '· torch', torch.__version__, '· triton', triton.__version__,"
        " '· transformers', transformers.__version__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


def main() -> int:
    """Run the steps and print one table; returns 1 if a check failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="small sizes, on a CPU")
    parser.add_argument("--only", action="append", choices=[step.name for step in STEPS])
    parser.add_argument("--step", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        run_step(options.step, options.tiny)
        return 0
    slowness = SLOWNESS_OF_A_CPU if options.tiny else 1
    deadline = time.monotonic() + BUDGET * slowness
    rows = [Row("device", device_line(), "")]
    for step in STEPS:
        if options.only and step.name not in options.only:
            continue
        seconds = min(step.seconds * slowness, deadline - time.monotonic())
        if seconds < 5:
            rows.append(Row(f"{step.name}: no time left", "", "FAIL"))
            continue
        rows += run_step_apart(step, options.tiny, seconds)
    with (Path(os.environ["OUT"]) / "check.jsonl").open("w") as file:
        file.writelines(json.dumps(row._asdict()) + "\n" for row in rows)
    width = max(len(row.what) for row in rows)
    for row in rows:
        print(f"{row.what:<{width}}  {row.figure}  {row.verdict}".rstrip())
    failed = sum(row.verdict == "FAIL" for row in rows)
    print(f"{sum(row.verdict == 'ok' for row in rows)} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
