"""Time and peak memory of the objective head against its peers, forward and backward.

    python tests/bench/objectives.py                      # what fits the device
    python tests/bench/objectives.py --shape qwen2.5-1.5b --dtype bfloat16 --repeats 5

One table per shape and dtype. Times are medians of interleaved runs in one process, as ratios to
plain `F.linear` + cross-entropy in the same run; memory is the growth of the peak over the inputs,
each variant in a process of its own. Hidden states and weights are random: they say nothing about
kernels that skip what is close to zero.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
PLAIN = "plain NLL"
BOTH_BACKENDS = ("original", "p", "DEFT", "Cayley_Trans", "OnlyTopP-0.1", "EAFT")
TORCH_BACKEND = ("LabelSmoothing", "GEM", "ASFT", "SFT_KL")
"""Objectives with a second distribution, which the Triton kernels do not have."""


class Shape(NamedTuple):
    """Tokens N, width D and vocabulary V of a head."""

    tokens: int
    width: int
    vocabulary: int


SHAPES = {
    "smollm2-135m": Shape(2048, 576, 49_152),
    "qwen2.5-1.5b": Shape(2048, 1536, 151_936),
    "qwen2.5-7b": Shape(8192, 3584, 152_064),
    "llama-3.1-8b": Shape(8192, 4096, 128_256),
    "cut-cross-entropy": Shape(16_384, 2048, 248_320),
}


def plain(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Materialized logits and cross-entropy in the model's dtype."""
    return F.cross_entropy(F.linear(hidden, weight), labels)


def materialized(focus: Callable[[Tensor, Tensor], Tensor] | None, epsilon: float) -> Loss:
    """Build the published formulas on materialized log-probabilities; no focus is objective p."""

    def loss(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        log_probs = F.log_softmax(F.linear(hidden, weight), dim=-1)
        logp = log_probs.gather(1, labels[:, None]).squeeze(1)
        if focus is None:
            return (1 - logp.exp()).mean()
        with torch.no_grad():
            alpha = focus(log_probs, logp)
        return (-((alpha * logp).exp() - 1) / (alpha + epsilon)).mean()

    return loss


def concentration(log_probs: Tensor, logp: Tensor) -> Tensor:
    """DEFT's focus."""
    return log_probs.exp().square().sum(-1)


def transform(log_probs: Tensor, logp: Tensor) -> Tensor:
    """Cayley_Trans's focus."""
    p = logp.exp()
    floor = 0.5 * p.mean()
    return (floor + (1 - floor) * p / (2 - p)).clamp(0.001, 1)


def torch_linear_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """PyTorch's own chunked product and cross-entropy."""
    from torch.nn.modules.linear_cross_entropy_options import LinearCrossEntropyOptions

    options = LinearCrossEntropyOptions()
    return F.linear_cross_entropy(hidden, weight, labels, options=options)


def liger(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Liger's fused linear cross-entropy (Triton, so CUDA only)."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss: Tensor = LigerFusedLinearCrossEntropyLoss()(weight, hidden, labels)
    return loss


def cut_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Apple's kernels on CUDA, their `torch_compile` implementation elsewhere."""
    from cut_cross_entropy import linear_cross_entropy

    implementation = "cce" if hidden.is_cuda else "torch_compile"
    loss: Tensor = linear_cross_entropy(hidden, weight, labels, impl=implementation)
    return loss


def ours(objective: str, backend: str) -> Loss:
    """Build a loss from this platform's head; `gpu_blocks` is what `torch` runs on a GPU."""
    from deft.objectives import ReferenceHead, get_objective, linear_objective
    from deft.objectives.head import linear

    needs_reference = get_objective(objective).needs_reference

    def loss(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        # As under LoRA, where the frozen model shares the weight.
        reference = ReferenceHead(hidden.detach(), weight.detach()) if needs_reference else None
        chosen: Any = nullcontext()
        if backend == "gpu_blocks":
            chosen = patch.object(linear, "head_for", lambda *_: backend)
        with chosen:
            return linear_objective(
                hidden,
                weight,
                labels,
                objective,
                reference=reference,
                backend="triton" if backend == "triton" else "torch",
            ).loss

    return loss


def variants(device: str) -> dict[str, Loss]:
    """Name → loss, the plain one first."""
    named: dict[str, Loss] = {
        PLAIN: plain,
        "materialized p": materialized(None, 0.0),
        "materialized DEFT": materialized(concentration, 1e-6),
        "materialized Cayley_Trans": materialized(transform, 1e-8),
        "torch linear_cross_entropy NLL": torch_linear_cross_entropy,
        "cut-cross-entropy NLL": cut_cross_entropy,
    }
    if device == "cuda":
        named["Liger fused linear NLL"] = liger
    for backend in ("torch", "triton") if device == "cuda" else ("torch",):
        for objective in (*BOTH_BACKENDS, *TORCH_BACKEND):
            if backend == "torch" or objective in BOTH_BACKENDS:
                named[f"{backend}: {objective}"] = ours(objective, backend)
    if device == "cpu":
        # A GPU's blocks, for their memory: a CPU converts operands, which takes copies and time.
        named |= {f"gpu_blocks: {name}": ours(name, "gpu_blocks") for name in TORCH_BACKEND}
    return named


def inputs(shape: Shape, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Random leaves; half of the targets are a likely token."""
    torch.manual_seed(0)
    N, D, V = shape
    hidden = torch.randn(N, D, device=device)
    weight = torch.randn(V, D, device=device) * D**-0.5 * 2
    labels = torch.randint(0, V, (N,), device=device)
    hidden[::2] += 8 * F.normalize(weight[labels[::2]], dim=-1)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), labels


def run_once(loss: Loss, leaves: tuple[Tensor, Tensor, Tensor]) -> float:
    """Seconds of one forward and backward."""
    for leaf in leaves[:2]:
        leaf.grad = None
    synchronize(leaves[0])
    start = time.perf_counter()
    loss(*leaves).backward()
    synchronize(leaves[0])
    return time.perf_counter() - start


def synchronize(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize()


def times(
    shape: Shape, dtype: torch.dtype, device: str, repeats: int, chosen: Callable[[str], bool]
) -> dict[str, float | str]:
    """Measure the median seconds of the chosen variants, or say why one did not run."""
    leaves = inputs(shape, dtype, device)
    results: dict[str, list[float] | str] = {}
    named = {name: loss for name, loss in variants(device).items() if chosen(name)}
    for name, loss in named.items():
        try:
            run_once(loss, leaves)
            results[name] = []
        except (RuntimeError, ImportError, ValueError, TypeError) as error:
            results[name] = f"{type(error).__name__}: {error}".splitlines()[0][:60]
    for _ in range(repeats):
        for name, seconds in results.items():
            if isinstance(seconds, list):
                seconds.append(run_once(named[name], leaves))
    return {
        name: statistics.median(seconds) if isinstance(seconds, list) else seconds
        for name, seconds in results.items()
    }


def peak_memory(name: str, shape: Shape, dtype: torch.dtype, device: str) -> float:
    """MB by which one run of a variant raises the process's (or the GPU's) peak."""
    loss = variants(device)[name]
    # Compilers and libraries allocate on their first use: let them, on a small problem.
    warm_up = inputs(Shape(64, shape.width, 2048), dtype, device)
    run_once(loss, warm_up)
    leaves = inputs(shape, dtype, device)
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run_once(loss, leaves)
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    # Writing 5 sets the kernel's high-water mark back to what is resident now.
    Path("/proc/self/clear_refs").write_text("5")
    before_kib = status_kib("VmRSS")
    run_once(loss, leaves)
    return (status_kib("VmHWM") - before_kib) * 1024 / 1e6


def status_kib(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def peak_memory_in_a_process(name: str, shape_name: str, dtype: str, device: str) -> float | None:
    request = json.dumps([name, shape_name, dtype, device])
    command = [sys.executable, __file__, "--peak-memory", request]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    return float(child.stdout.split()[-1]) if child.returncode == 0 else None


def fits(shape: Shape, dtype: torch.dtype, device: str) -> bool:
    """Tell whether plain NLL's inputs, gradients and three copies of its logits fit."""
    N, D, V = shape
    needed = dtype.itemsize * (2 * D * (N + V) + 3 * N * V)
    if device == "cuda":
        return needed < torch.cuda.get_device_properties(0).total_memory * 0.9
    meminfo = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) for line in meminfo if line.startswith("MemAvailable"))
    # A CPU also has to finish within minutes.
    return needed < available * 1024 * 0.7 and N * D * V < 5e11


def device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(": ")[1] for line in lines if line.startswith("model name")), "CPU")
    return f"{model}, {torch.get_num_threads()} threads, {platform.machine()}"


def print_table(
    shape_name: str, dtype: str, device: str, repeats: int, chosen: Callable[[str], bool]
) -> None:
    shape = SHAPES[shape_name]
    print(f"\n### {shape_name}: N={shape.tokens} D={shape.width} V={shape.vocabulary}, {dtype}")
    print(f"{device_name(device)}; torch {torch.__version__}\n")
    print("| variant | ms | × time | extra peak MB | × memory |\n|---|---:|---:|---:|---:|")
    seconds = times(shape, getattr(torch, dtype), device, repeats, chosen)
    base_memory: float | None = None
    for name, median in seconds.items():
        if isinstance(median, str):
            print(f"| {name} | {median} | | | |")
            continue
        base = seconds[PLAIN]
        ratio = f"{median / base:.2f}" if isinstance(base, float) else ""
        memory = peak_memory_in_a_process(name, shape_name, dtype, device)
        base_memory = memory if name == PLAIN else base_memory
        shown = "" if memory is None else f"{memory:.0f}"
        share = f"{memory / base_memory:.2f}" if memory and base_memory else ""
        print(f"| {name} | {median * 1e3:.0f} | {ratio} | {shown} | {share} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, action="append")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], action="append")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", action="append", help="part of a variant's name", default=[])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--peak-memory", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak_memory:
        name, shape_name, dtype, device = json.loads(arguments.peak_memory)
        print(peak_memory(name, SHAPES[shape_name], getattr(torch, dtype), device))
        return

    def chosen(name: str) -> bool:
        only = arguments.only
        return name == PLAIN or not only or any(part in name for part in only)

    for shape_name in arguments.shape or SHAPES:
        for dtype in arguments.dtype or ["float32", "bfloat16"]:
            if arguments.shape or fits(SHAPES[shape_name], getattr(torch, dtype), arguments.device):
                print_table(shape_name, dtype, arguments.device, arguments.repeats, chosen)


if __name__ == "__main__":
    main()
