"""Time and memory from a file of records to rows of token ids: this platform, and TRL.

    python tests/bench/preparation.py                       # 100,000 and 1,000,000 short records
    python tests/bench/preparation.py --sizes 20000

Both read the same questions and answers as JSON Lines, apply the same chat template, and mask the
prompts, with a process for each core, each in a fresh process that has imported its libraries when
the clock starts. TRL is what SFTTrainer does to a conversational prompt-completion dataset. Memory
is the largest sum of the proportional set sizes of the process and its children, sampled; what is
mapped from files and can be dropped at any time counts as well. A second row is another seed on
what the first has left: it tokenizes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

OURS, ANOTHER_SEED, TRL = "this platform", "this platform, another seed", "TRL"
MAX_LENGTH = 256
INTERVAL = 0.25
"""Seconds between looks at memory."""
TOKENIZER_RECORDS = 2000
"""Records that the tiny model's tokenizer is trained on."""


def sums(size: int) -> Iterator[tuple[str, str]]:
    """Yield short questions and answers."""
    chance = random.Random(0)
    for _ in range(size):
        a, b = chance.randint(0, 99_999), chance.randint(0, 99_999)
        yield (
            f"What is {a} plus {b}? Answer with the number alone.",
            f"The sum of {a} and {b} is {a + b}.",
        )


def write_records(size: int, directory: Path) -> None:
    """Write the same records in the format of each side."""
    with (
        (directory / "ours.jsonl").open("w") as ours,
        (directory / "trl.jsonl").open("w") as trl,
    ):
        for question, answer in sums(size):
            ours.write(json.dumps({"prompt": question, "response": answer}) + "\n")
            turns = {
                "prompt": [{"role": "user", "content": question}],
                "completion": [{"role": "assistant", "content": answer}],
            }
            trl.write(json.dumps(turns) + "\n")


def build_model(directory: Path) -> str:
    """Build the tiny model, whose tokenizer both sides use; return its directory."""
    from deft.workers.data.prepare import prepare
    from deft.workers.dataset_spec import DatasetSpec
    from deft.workers.spec import ModelSpec

    write_records(TOKENIZER_RECORDS, directory)
    dataset = DatasetSpec(name=str(directory / "ours.jsonl"))
    prepared = prepare(
        dataset, ModelSpec(name="tiny"), max_length=MAX_LENGTH, seed=0, cache=directory / "model"
    )
    return prepared.model_dir


def start_clock(*_: Any) -> float:
    """Tell the parent process that everything is imported; return the CPU time until then."""
    print("ready", flush=True)
    return cpu_seconds()


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def prepare_ours(directory: Path, model: str, seed: int) -> dict[str, float]:
    """Prepare as `deft run` does; return CPU seconds and the number of tokens to train on."""
    import transformers

    from deft.workers.data import splits, tokenization
    from deft.workers.data.prepare import prepare
    from deft.workers.dataset_spec import DatasetSpec
    from deft.workers.spec import ModelSpec

    started = start_clock(splits, tokenization, transformers.Trainer)
    dataset = DatasetSpec(name=str(directory / "ours.jsonl"), validation=0)
    prepared = prepare(
        dataset,
        ModelSpec(name=model),
        max_length=MAX_LENGTH,
        seed=seed,
        cache=directory / "cache",
    )
    return {"cpu": cpu_seconds() - started, "tokens": prepared.num_tokens}


def prepare_trl(directory: Path, model: str) -> dict[str, float]:
    """Prepare as SFTTrainer does when it is made; return the same."""
    import pyarrow.compute as pc
    from datasets import load_dataset
    from trl import SFTConfig, SFTTrainer

    started = start_clock()
    settings = SFTConfig(
        output_dir=str(directory / "trl"),
        max_length=MAX_LENGTH,
        dataset_num_proc=len(os.sched_getaffinity(0)),
        report_to="none",
        use_cpu=True,
        bf16=False,
    )
    records = load_dataset("json", data_files=str(directory / "trl.jsonl"), split="train")
    trainer = SFTTrainer(model=model, args=settings, train_dataset=records)
    cpu = cpu_seconds() - started
    rows: Any = trainer.train_dataset
    batches = rows.select_columns("input_ids").with_format("arrow").iter(batch_size=1000)
    lengths = (pc.list_value_length(batch.column("input_ids")) for batch in batches)
    return {"cpu": cpu, "tokens": sum(pc.sum(length).as_py() for length in lengths)}


def measure(side: str, directory: Path, model: str) -> dict[str, float]:
    """Run one side in a process of its own."""
    environment = {
        **os.environ,
        "HF_DATASETS_CACHE": str(directory / "trl-cache"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }
    command = [sys.executable, __file__, "--side", side, str(directory), model]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True
    ) as process:
        assert process.stdout is not None
        if not process.stdout.readline().startswith("ready"):
            raise RuntimeError(f"{side} failed: run {' '.join(command)}")
        started, peak = time.monotonic(), 0
        while process.poll() is None:
            peak = max(peak, tree_memory(process.pid))
            time.sleep(INTERVAL)
        seconds = time.monotonic() - started
        last = process.stdout.read().splitlines()[-1:]
    if process.returncode or not last:
        raise RuntimeError(f"{side} failed: run {' '.join(command)}")
    return {"seconds": seconds, "peak": peak / 2**20, **json.loads(last[0])}


def tree_memory(pid: int) -> int:
    """Sum the proportional set sizes of a process and all below it, in bytes."""
    total = 0
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                total += process.memory_full_info().pss
    return total


def run_side(side: str, directory: Path, model: str) -> None:
    """Prepare, and print CPU seconds and tokens as a line of JSON."""
    if side == TRL:
        result = prepare_trl(directory, model)
    else:
        result = prepare_ours(directory, model, seed=int(side == ANOTHER_SEED))
    print(json.dumps(result), flush=True)


def main() -> None:
    """Measure every size and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        side, directory, model = options.side
        run_side(side, Path(directory), model)
        return
    print(f"{len(os.sched_getaffinity(0))} cores")
    widths = {"time": 9, "of TRL": 8, "CPU": 9, "of TRL ": 8, "peak memory": 14, "tokens": 13}
    print(
        f"{'records':>10}  {'':30}" + "".join(f"{name:>{width}}" for name, width in widths.items())
    )
    with tempfile.TemporaryDirectory() as scratch:
        model = build_model(Path(scratch))
        for size in options.sizes:
            with tempfile.TemporaryDirectory(dir=scratch) as directory:
                write_records(size, Path(directory))
                measured = {
                    side: measure(side, Path(directory), model)
                    for side in (OURS, ANOTHER_SEED, TRL)
                }
            for side, numbers in measured.items():
                of_trl = {key: numbers[key] / measured[TRL][key] for key in ("seconds", "cpu")}
                print(
                    f"{size:10,}  {side:30}"
                    f"{numbers['seconds']:7.1f} s{of_trl['seconds']:8.2f}"
                    f"{numbers['cpu']:7.1f} s{of_trl['cpu']:8.2f}"
                    f"{numbers['peak']:10,.0f} MiB{numbers['tokens']:13,}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
