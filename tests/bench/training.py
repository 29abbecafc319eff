"""Loss-bearing tokens per second of SFT: this trainer, TRL's SFTTrainer, and the original's way.

    python tests/bench/training.py                              # SmolLM2-135M on figfont
    python tests/bench/training.py --data word-problems
    python tests/bench/training.py --data my.jsonl --model tiny --steps 4

Every variant trains the same model on the same examples with the same number of optimizer steps,
in a process of its own with all cores; the first steps are not counted. One table gives tokens that
carry loss per second, as ratios to this trainer, and peak memory; a second says where this
trainer's time goes.

TRL is measured at several settings, of which the fastest counts. The original pads every row to
`--padded-length` (800 in arXiv 2602.11424 for figfont, 3072 for math) and materializes all logits.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

OURS, EAGER = "this trainer, DEFT, compiled", "this trainer, DEFT"
ORIGINAL = "the original's way, DEFT"
TRL = {
    "TRL, padded, grouped by length": {"train_sampling_strategy": "group_by_length"},
    "TRL, packed": {"packing": True},
    "TRL, padding-free": {"padding_free": True},
    "TRL, padded, compiled": {"torch_compile": True},
}
LEARNING_RATE = 1e-4
WARM_UP = 2
"""Steps that are not counted, in which memory is first touched and layers are compiled."""


def word_problems(size: int) -> Iterator[dict[str, str]]:
    """School sums in words with worked answers of two to nine sentences, like GSM8K in length."""
    chance = random.Random(0)
    names, things = ("Mia", "Tom", "Ada", "Ravi", "Lena"), ("apples", "coins", "cards", "books")
    for _ in range(size):
        name, thing = chance.choice(names), chance.choice(things)
        total = chance.randint(5, 40)
        asked, worked = [f"{name} has {total} {thing}."], [f"{name} starts with {total} {thing}."]
        for _ in range(chance.randint(1, 8)):
            more, other = chance.randint(2, 9), chance.choice(names)
            if chance.random() < 0.5:
                asked.append(f"Then {other} brings {more} bags with {more + 1} {thing} in each.")
                worked.append(
                    f"{more} bags with {more + 1} {thing} each are {more} * {more + 1} = "
                    f"{more * (more + 1)}, and {total} + {more * (more + 1)} = "
                    f"{total + more * (more + 1)} {thing}."
                )
                total += more * (more + 1)
            else:
                asked.append(f"After that {min(more, total)} of them go to {other}.")
                worked.append(
                    f"{other} gets {min(more, total)}, so {total} - {min(more, total)} = "
                    f"{total - min(more, total)} {thing} are left."
                )
                total -= min(more, total)
        question = " ".join([*asked, f"How many {thing} does {name} have in the end?"])
        yield {"prompt": question, "response": " ".join([*worked, f"#### {total}"])}


def prepare_rows(options: argparse.Namespace, directory: Path) -> Any:
    """Model and exactly as many rows as the steps take."""
    from deft.workers.data.prepare import prepare
    from deft.workers.dataset_spec import DatasetSpec
    from deft.workers.spec import ModelSpec

    size = options.steps * options.batch_size
    name = options.data
    if name == "word-problems":
        file = directory / "word-problems.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in word_problems(size)))
        name = str(file)
    for num_records in range(size, 2 * size):  # some are too long
        prepared = prepare(
            DatasetSpec(name=name, size=num_records, validation=0),
            ModelSpec(name=options.model),
            max_length=options.max_length,
            seed=0,
            cache=Path(options.cache),
        )
        if prepared.num_examples == size:
            return prepared
    raise SystemExit(f"{options.data}: no {size} examples of at most {options.max_length} tokens")


def peak_memory() -> float:
    """Peak of this process's memory so far in MiB: of the GPU if there is one, else resident."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def matrix_product_flops(options: argparse.Namespace) -> float:
    """Operations per second of plain matrix products: what this machine can do at the very most."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = 8192 if device == "cuda" else 2048
    left = torch.randn(size, size, device=device, dtype=dtype_of(options))
    best = float("inf")
    for _ in range(10):
        began = time.perf_counter()
        value = (left @ left)[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - began)
        assert value == value
    return 2 * size**3 / best


class Stopwatch:
    """Where the time of a training process goes: exclusive seconds by name, nested calls apart."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._stack: list[float] = []

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **keywords: Any) -> Any:
            self._stack.append(0.0)
            started = time.perf_counter()
            try:
                return function(*arguments, **keywords)
            finally:
                spent, inner = time.perf_counter() - started, self._stack.pop()
                self.seconds[name] += spent - inner
                if self._stack:
                    self._stack[-1] += spent

        return timed


def run_ours(prepared: Any, options: argparse.Namespace) -> dict[str, Any]:
    """`deft.workers.training.sft_loop.train` on one Ray Train worker."""
    import ray.train
    from ray.train.torch import TorchTrainer

    from deft.workers.spec import TrainingSpec
    from deft.workers.training.job import TrainJob

    job = TrainJob(
        training=TrainingSpec(
            num_workers=1,
            batch_size=options.batch_size,
            micro_batch_size=options.packed_rows,
            max_length=options.max_length,
            learning_rate=LEARNING_RATE,
            dtype=options.dtype,
            compile=options.variant == OURS,
        ),
        objective="DEFT",
        model_dir=prepared.model_dir,
        examples_dir=prepared.examples_dir,
        rows_dir=prepared.rows_dir,
        validation_dir=prepared.validation_dir,
        scratch_dir=str(Path(prepared.rows_dir).parent / "scratch"),
        num_steps=options.steps,
        seed=0,
        events=None,
    )

    def loop(config: dict[str, Any]) -> None:
        from dataclasses import replace

        import torch

        from deft.workers.training.ray_entry import prepare_process

        prepare_process()
        torch.set_num_threads(config["threads"])
        from deft.workers.modeling import objective_model as head
        from deft.workers.training import sft_loop

        watch = Stopwatch()
        for module, attribute, name in (
            (sft_loop, "collate", "data"),
            (head.ObjectiveHead, "forward", "head, forward and its backward"),
            (head.ObjectiveModel, "forward", "forward below the head"),
            (sft_loop, "take_step", "optimizer"),
            (sft_loop, "gather_targets", "metrics"),
            (sft_loop, "step_metrics", "metrics"),
            (torch.distributed, "all_reduce", "communication"),
            (torch.distributed, "all_gather", "communication"),
        ):
            setattr(module, attribute, watch.wrap(name, getattr(module, attribute)))
        real_build = sft_loop.build_engine

        def build_engine(*arguments: Any, **keywords: Any) -> Any:
            engine = real_build(*arguments, **keywords)
            engine.backward = watch.wrap("backward below the head", engine.backward)
            return engine

        class Events:
            def __init__(self) -> None:
                self.steps: list[dict[str, float]] = []

            def put(self, event: dict[str, Any]) -> None:
                if len(self.steps) < WARM_UP:
                    watch.seconds.clear()
                self.steps.append(event["metrics"] | {"time": time.perf_counter()})

        events = Events()
        sft_loop.build_engine = build_engine
        sft_loop.save_checkpoint = lambda *_: None
        sft_loop.train(replace(config["job"], events=events))
        first, *others = events.steps[WARM_UP - 1 :]
        seconds = others[-1]["time"] - first["time"]
        result = {
            "tokens_per_second": sum(step["target_tokens"] for step in others) / seconds,
            "memory": peak_memory(),
            "breakdown": dict(watch.seconds) | {"all": seconds},
            "all_tokens_per_second": len(others) * config["tokens_per_step"] / seconds,
            "product_flops": matrix_product_flops(options),
        }
        Path(config["out"]).write_text(json.dumps(result))

    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "result.json"
        ray.init("local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        TorchTrainer(
            loop,
            train_loop_config={
                "job": job,
                "out": str(out),
                "threads": options.threads,
                "tokens_per_step": prepared.num_tokens / options.steps,
            },
            scaling_config=ray.train.ScalingConfig(num_workers=1),
            run_config=ray.train.RunConfig(storage_path=directory),
        ).fit()
        result: dict[str, Any] = json.loads(out.read_text())
    return result


def run_trl(prepared: Any, options: argparse.Namespace) -> dict[str, Any]:
    """TRL's SFTTrainer with one of the settings in `TRL`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from deft.workers.data.example_store import open_rows

    torch.set_num_threads(options.threads)
    settings = TRL[options.variant]
    rows = open_rows(prepared.rows_dir)
    num_tokens = sum(len(ids) for ids in rows["input_ids"])
    rows = rows.select_columns(["input_ids", "labels"])
    batch, accumulation = options.micro_batch_size, options.batch_size // options.micro_batch_size
    if settings.get("packing"):
        # As many packed rows in a step as hold the examples of a step.
        batch = options.packed_rows
        accumulation = max(1, round(num_tokens / options.max_length / batch / options.steps))
    marks: list[tuple[float, int]] = []
    seen = 0

    class Timed(SFTTrainer):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **keywords: Any) -> Any:
            nonlocal seen
            seen += int((inputs["labels"][:, 1:] != -100).sum())
            return super().compute_loss(model, inputs, *arguments, **keywords)

        def training_step(self, *arguments: Any, **keywords: Any) -> Any:
            marks.append((time.perf_counter(), seen))
            return super().training_step(*arguments, **keywords)

    with tempfile.TemporaryDirectory() as directory:
        trainer = Timed(
            model=AutoModelForCausalLM.from_pretrained(prepared.model_dir, dtype=dtype_of(options)),
            processing_class=AutoTokenizer.from_pretrained(prepared.model_dir),
            train_dataset=rows,
            args=SFTConfig(
                output_dir=directory,
                per_device_train_batch_size=batch,
                gradient_accumulation_steps=accumulation,
                max_length=None if settings.get("padding_free") else options.max_length,
                num_train_epochs=1,
                learning_rate=LEARNING_RATE,
                gradient_checkpointing=False,
                bf16=False,
                use_cpu=not torch.cuda.is_available(),
                report_to=[],
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                **settings,
            ),
        )
        trainer.train()
    ended = time.perf_counter()
    started, before = marks[WARM_UP * accumulation]
    return {"tokens_per_second": (seen - before) / (ended - started), "memory": peak_memory()}


def run_original(prepared: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Plain PyTorch on rows padded to full length, DEFT's formula on materialized logits."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from deft.workers.data.example_store import open_rows

    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = open_rows(prepared.rows_dir)
    model = AutoModelForCausalLM.from_pretrained(prepared.model_dir, dtype=dtype_of(options))
    model = model.to(device).train()
    pad = AutoTokenizer.from_pretrained(prepared.model_dir).pad_token_id or 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    width, size = options.padded_length, options.micro_batch_size

    def padded(values: list[int], fill: int) -> list[int]:
        return values + [fill] * (width - len(values))

    def micro_step(chosen: list[dict[str, list[int]]]) -> int:
        ids = torch.tensor([padded(row["input_ids"], pad) for row in chosen], device=device)
        mask = torch.tensor([padded([1] * len(row["labels"]), 0) for row in chosen], device=device)
        labels = torch.tensor([padded(row["labels"], -100) for row in chosen], device=device)[:, 1:]
        log_probs = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float().log_softmax(-1)
        logp = log_probs.gather(2, labels.clamp(min=0)[..., None]).squeeze(-1)
        focus = log_probs.exp().square().sum(-1).detach()
        value = -((focus * logp).exp() - 1) / (focus + 1e-6)
        target = labels != -100
        loss = (value * target).sum() / (target.sum() + 1e-8)
        loss.backward()
        return int(target.sum())

    tokens, started = 0, 0.0
    for step in range(min(options.steps, options.original_steps)):
        for start in range(0, options.batch_size, size):
            first = step * options.batch_size + start
            counted = micro_step([rows[i] for i in range(first, first + size)])
            tokens += counted if step else 0
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step == 0:
            started = time.perf_counter()
    seconds = time.perf_counter() - started
    return {"tokens_per_second": tokens / seconds, "memory": peak_memory()}


def dtype_of(options: argparse.Namespace) -> Any:
    """Return the parameters' dtype, which every variant shares."""
    from deft.workers.training.engine import resolve_dtype

    return resolve_dtype(options.dtype)


def measure(variant: str, options: argparse.Namespace, prepared: Any) -> dict[str, Any]:
    """Run one variant in a process of its own."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "out.json"
        command = [sys.executable, __file__, *sys.argv[1:], "--cache", options.cache]
        command += ["--variant", variant, "--out", str(out)]
        command += ["--prepared", json.dumps(vars(prepared))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not out.exists():
            raise SystemExit(f"{variant}: {done.stderr[-2000:]}")
        result: dict[str, Any] = json.loads(out.read_text())
    return result


def run_variant(options: argparse.Namespace) -> None:
    """Measure one variant in a process of its own."""
    from deft.workers.data.prepare import Prepared

    prepared = Prepared(**json.loads(options.prepared))
    run = {OURS: run_ours, EAGER: run_ours, ORIGINAL: run_original}.get(options.variant, run_trl)
    Path(options.out).write_text(json.dumps(run(prepared, options)))


def report(results: dict[str, dict[str, Any]]) -> None:
    """Print how this trainer compares, and where its time goes."""
    ours = results.get(OURS) or results[EAGER]
    fastest = max(results[name]["tokens_per_second"] for name in TRL if name in results)
    print(f"\nThis trainer is {ours['tokens_per_second'] / fastest:.2f}x TRL at its best", end="")
    if ORIGINAL in results:
        rate = results[ORIGINAL]["tokens_per_second"]
        print(f" and {ours['tokens_per_second'] / rate:.2f}x the original's way", end="")
    print(".\n\n| where this trainer's time goes | share |\n|---|---|")
    breakdown = dict(ours["breakdown"])
    total = breakdown.pop("all")
    breakdown["everything else"] = total - sum(breakdown.values())
    for name, seconds in sorted(breakdown.items(), key=lambda item: -item[1]):
        print(f"| {name} | {seconds / total:.1%} |")


def report_flops(ours: dict[str, Any], options: argparse.Namespace) -> None:
    """Print the model's own operations per second and their share of the possible (MFU)."""
    from deft.platform.commands.cost_model import training_flops
    from deft.platform.commands.dry_run import dimensions_of
    from deft.workers.spec import TrainingSpec

    architecture = dimensions_of(options.model)
    if architecture is None:
        return
    head = 6.0 * architecture.vocab_size * architecture.hidden_size  # for targets alone
    below = training_flops(architecture, TrainingSpec(), 1) - head
    flops = below * ours["all_tokens_per_second"] + head * ours["tokens_per_second"]
    print(
        f"\n{flops / 1e9:,.0f} GFLOP/s of the model's own operations (6 for each parameter and "
        f"token), {flops / ours['product_flops']:.0%} of plain {options.dtype} matrix products "
        "in the same process"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m", help="see `deft list models`")
    parser.add_argument("--data", default="figfont", help="figfont, word-problems or a file")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--original-steps", type=int, default=2, help="the original's way is slow")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--micro-batch-size", type=int, default=4, help="where not packed")
    parser.add_argument(
        "--packed-rows", type=int, default=1, help="of --max-length tokens, where rows are packed"
    )
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--padded-length", type=int, default=800)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--variants", help="some of them, separated by semicolons")
    parser.add_argument("--cache", default=str(Path("runs") / "cache"))
    for hidden in ("--variant", "--out", "--prepared"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        run_variant(options)
        return
    options.cache = str(Path(options.cache).resolve())
    variants = [OURS, EAGER, *TRL, ORIGINAL]
    if options.variants:
        variants = [name for name in variants if name in options.variants.split(";")]
    with tempfile.TemporaryDirectory() as directory:
        prepared = prepare_rows(options, Path(directory))
        tokens = prepared.num_tokens / prepared.num_examples
        print(
            f"{options.model} on {options.data}, {options.dtype}, {options.threads} threads: "
            f"{options.steps} steps of {options.batch_size} examples, {tokens:.0f} tokens each on "
            f"average, {prepared.num_target_tokens / prepared.num_tokens:.1%} of them with loss\n",
            flush=True,
        )
        results = {}
        print("| variant | tokens with loss per second | × | peak memory, MiB | × |")
        print("|---|---|---|---|---|", flush=True)
        for variant in variants:
            results[variant] = measure(variant, options, prepared)
            rate, memory = (results[variant][key] for key in ("tokens_per_second", "memory"))
            first = results[variants[0]]
            print(
                f"| {variant} | {rate:.1f} | {rate / first['tokens_per_second']:.2f} "
                f"| {memory:,.0f} | {memory / first['memory']:.2f} |",
                flush=True,
            )
    report(results)
    report_flops(results.get(OURS) or results[EAGER], options)


if __name__ == "__main__":
    main()
