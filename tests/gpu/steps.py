"""The steps of `check.py`: each yields rows `(what, figure, verdict)`.

Shapes: N tokens, D width, V vocabulary of a head; T positions of a packed row.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from check import Row, verdict
from torch import Tensor

BENCH = Path(__file__).resolve().parents[1] / "bench"
"""Folder of the benchmark scripts, whose variants of the head are measured here as well."""


class HeadShape(NamedTuple):
    """Width and vocabulary of a model's head."""

    width: int
    vocabulary: int


HEADS = {
    "qwen2.5-1.5b": HeadShape(1536, 151_936),
    "qwen2.5-7b": HeadShape(3584, 152_064),
    "llama-3.1-8b": HeadShape(4096, 128_256),
}
PARITY_OBJECTIVES = ("original", "DEFT", "EAFT", "Cayley_Trans", "GeneralFamily--1", "OnlyTopP-0.2")
"""What the kernels compute, those whose parts differ first."""
SECOND_DISTRIBUTIONS = ("ASFT", "SFT_KL_reverse", "GEM", "LabelSmoothing")
"""What blocks of the vocabulary compute on a GPU."""
CCE, LIGER = "cut-cross-entropy NLL", "Liger fused linear NLL"
"""Peers of the head, as `tests/bench/objectives.py` names them."""
MAX_TIME_OF_CCE = MAX_MEMORY_OF_CCE = 1.1
"""Goals for DEFT at the 7B head, as ratios to cut-cross-entropy's plain NLL."""
MIN_SPEED_OF_LIGER = 2.5
MIN_MFU = 0.45
"""Goal for the 1.5B model's training, as a share of what a large product reaches on the card."""


def device() -> str:
    """Return where this step computes."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return ‖actual − expected‖ / ‖expected‖ in float64; inf where `actual` is not finite."""
    error = (actual.double() - expected).norm() / expected.norm().clamp(min=1e-30)
    return float(error) if bool(error.isfinite()) else float("inf")


def seconds_of(run: Callable[[], Any], repeats: int) -> float:
    """Return the median seconds of ``run``, after one warm-up."""
    times = []
    for _ in range(repeats + 1):
        synchronize()
        began = time.perf_counter()
        run()
        synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def synchronize() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_bytes(run: Callable[[], Any]) -> int:
    """Return the growth of the device's memory while ``run`` runs; 0 on a CPU."""
    if not torch.cuda.is_available():
        run()
        return 0
    torch.cuda.empty_cache()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def poison(num_bytes: int) -> None:
    """Leave NaN in the memory that the next allocations get, so that unwritten output shows."""
    torch.full((num_bytes // 4,), float("nan"), device=device())


# ------------------------------------------------------------------------------------ parity


def parity(tiny: bool) -> Iterator[Row]:
    """Compare every objective of the Triton head with the reference in float64, and the blocks."""
    # (N, D, V): odd sizes, a row, narrow and wide; the interpreter takes milliseconds a tile.
    sizes = [(37, 24, 301)] if tiny else [(1000, 576, 20_011), (129, 50, 257), (1, 1536, 151_936)]
    # The interpreter multiplies bfloat16 wrongly; float16 stands in for it.
    dtypes = (torch.float32, torch.float16) if tiny else (torch.bfloat16, torch.float32)
    for objective in PARITY_OBJECTIVES[: 3 if tiny else None]:
        for dtype in dtypes:
            worst, equal = 0.0, True
            for size in sizes:
                error, same = head_error(objective, dtype, size)
                worst, equal = max(worst, error), equal and same
            bound = 1e-5 if dtype is torch.float32 else 1e-2
            what = f"parity {objective} {str(dtype).removeprefix('torch.')}"
            yield Row(what, f"{worst:.1e} (≤ {bound:.0e})", verdict(worst <= bound))
            yield Row(f"{what}, twice bit-equal", "", verdict(equal))
    with on_gpu_blocks():
        for objective in SECOND_DISTRIBUTIONS:
            for dtype in dtypes:
                results = [head_error(objective, dtype, size, backend="auto") for size in sizes]
                error, equal = max(error for error, _ in results), all(same for _, same in results)
                bound = 1e-5 if dtype is torch.float32 else 1e-2
                what = f"parity {objective} in blocks, {str(dtype).removeprefix('torch.')}"
                yield Row(what, f"{error:.1e} (≤ {bound:.0e})", verdict(error <= bound and equal))
    if not tiny:
        # V · D beyond 2^31 elements: 32-bit offsets would overflow.
        error, same = head_error("DEFT", torch.bfloat16, (64, 8192, 270_000), against=torch.float32)
        yield Row("parity DEFT, V·D > 2^31", f"{error:.1e}", verdict(error <= 1e-2 and same))


def on_gpu_blocks() -> Any:
    """Let `linear_objective` choose as on a GPU where there is none."""
    from deft.objectives.head import linear

    if torch.cuda.is_available():
        return nullcontext()
    choose = linear.head_for
    return patch.object(linear, "head_for", lambda *request: choose(*request[:3], "cuda"))


def head_error(
    objective: str,
    dtype: torch.dtype,
    size: tuple[int, int, int],
    *,
    against: torch.dtype = torch.float64,
    backend: str = "triton",
) -> tuple[float, bool]:
    """Return the worst relative error of values and gradients, and whether two runs are equal."""
    N, D, V = size
    torch.manual_seed(N + D)
    hidden = torch.randn(N, D, device=device()).to(dtype)
    weight = (torch.randn(V, D, device=device()) * 3 / D**0.5).to(dtype)
    labels = torch.randint(V, (N,), device=device())
    labels[::2] = (hidden[::2].float() @ weight.float().T).argmax(-1)
    expected = head_outputs(objective, hidden.to(against), weight.to(against), labels, "reference")
    poison(max(4 * N * V, 2**24))
    actual = head_outputs(objective, hidden, weight, labels, backend)
    again = head_outputs(objective, hidden, weight, labels, backend)
    errors = [relative_error(ours, exact) for ours, exact in zip(actual, expected, strict=True)]
    equal = all(torch.equal(one, other) for one, other in zip(actual, again, strict=True))
    return max(errors), equal


def head_outputs(
    objective: str, hidden: Tensor, weight: Tensor, labels: Tensor, backend: str
) -> list[Tensor]:
    """Return log p, gate and both gradients; a reference model sees the other hidden states."""
    from deft.objectives import ReferenceHead, get_objective, linear_objective

    reference: ReferenceHead | None = None
    if get_objective(objective).needs_reference:
        reference = ReferenceHead(hidden.flip(1).contiguous(), weight)
    hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    output = linear_objective(
        hidden,
        weight,
        labels,
        objective,
        backend=backend,  # type: ignore[arg-type]
        reference=reference,
        normalizer=1.0,
    )
    output.loss.backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    return [output.stats.logp, output.gate, hidden.grad, weight.grad]


# -------------------------------------------------------------------------------------- head


def head(tiny: bool) -> Iterator[Row]:
    """Measure time and memory of the head against its peers, forward and backward, in bfloat16."""
    sys.path.append(str(BENCH))
    for name, shape in ({"tiny": HeadShape(64, 1031)} if tiny else HEADS).items():
        for num_tokens in (64,) if tiny else (2048, 8192, 16_384):
            yield from compare_heads(tiny, name, shape, num_tokens)


def head_variants(tiny: bool, with_second_distribution: bool) -> dict[str, Any]:
    """Return the losses to compare, by name; peers first."""
    from objectives import ours, variants

    everything = variants(device())
    named = {name: everything[name] for name in ("plain NLL", CCE, LIGER) if name in everything}
    if not tiny:
        named["compiled NLL"] = torch.compile(named["plain NLL"])
        named |= {f"triton: {name}": ours(name, "triton") for name in ("original", "DEFT", "EAFT")}
    blocks = "torch" if torch.cuda.is_available() else "gpu_blocks"
    named["blocks: DEFT"] = ours("DEFT", blocks)
    if with_second_distribution:
        named |= {f"blocks: {name}": ours(name, blocks) for name in SECOND_DISTRIBUTIONS}
    return named


def compare_heads(tiny: bool, name: str, shape: HeadShape, num_tokens: int) -> Iterator[Row]:
    """Measure every variant of one head on the same inputs."""
    from objectives import Shape, inputs

    leaves = inputs(Shape(num_tokens, *shape), torch.bfloat16, device())
    times: dict[str, float] = {}
    memory: dict[str, int] = {}
    for variant, loss in head_variants(tiny, tiny or num_tokens == 8192).items():
        run = partial(forward_backward, loss, leaves)
        try:
            times[variant] = seconds_of(run, repeats=1 if tiny else 3)
            memory[variant] = peak_bytes(run)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            yield Row(f"head {name} N={num_tokens} {variant}", reason[:90], "")
    for variant, seconds in times.items():
        figure = f"{seconds * 1e3:.1f} ms, {memory[variant] / 2**20:.0f} MiB"
        meets_goals = True
        if CCE in times and not tiny:
            time_ratio = seconds / times[CCE]
            memory_ratio = memory[variant] / memory[CCE]
            figure += f" · {time_ratio:.2f}× / {memory_ratio:.2f}× cut-cross-entropy"
            meets_goals = time_ratio <= MAX_TIME_OF_CCE and memory_ratio <= MAX_MEMORY_OF_CCE
        if LIGER in times and not tiny:
            speedup = times[LIGER] / seconds
            figure += f" · {speedup:.1f}× as fast as Liger"
            meets_goals = meets_goals and speedup >= MIN_SPEED_OF_LIGER
        has_goal = variant == "triton: DEFT" and name == "qwen2.5-7b"
        yield Row(
            f"head {name} N={num_tokens} {variant}",
            figure,
            verdict(meets_goals) if has_goal else "",
        )


def forward_backward(loss: Any, leaves: tuple[Tensor, Tensor, Tensor]) -> None:
    """Take the gradients of ``loss`` in hidden states and weight."""
    for leaf in leaves[:2]:
        leaf.grad = None
    loss(*leaves).backward()


# ---------------------------------------------------------------------------------- training


def training(tiny: bool) -> Iterator[Row]:
    """Train a random model through the real engine at ZeRO 0, 2 and 3."""
    for stage in (0, 2, 3):
        yield from train_and_measure(tiny, f"train ZeRO-{stage}", {"zero_stage": stage})
    yield from accumulation(tiny)
    yield from plain_loop(tiny)


def options(tiny: bool) -> Iterator[Row]:
    """Train with each option of the engine that needs a GPU to mean something."""
    named: dict[str, dict[str, Any]] = {
        "train gradient checkpointing": {"gradient_checkpointing": True},
        "train padded": {"packing": False},
    }
    if not tiny:
        named |= {
            "train compiled": {"compile": True},
            "train float16": {"dtype": "float16"},
            "train offload": {"zero_stage": 2, "offload_optimizer": True},
        }
    for what, settings in named.items():
        try:
            yield from train_and_measure(tiny, what, settings)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            yield Row(what, reason[:120], "FAIL")


def model_config(tiny: bool) -> Any:
    """Return the configuration of a random model: 1.5B parameters, or next to nothing."""
    from transformers import Qwen2Config

    if tiny:
        return Qwen2Config(
            vocab_size=512,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=True,
        )
    return Qwen2Config(
        vocab_size=151_936,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )


def random_rows(tiny: bool, vocabulary: int) -> list[dict[str, list[int]]]:
    """Return examples of several lengths, half of each prompt."""
    torch.manual_seed(1)
    lengths = [20, 33, 12, 27] if tiny else [700, 1300, 2048, 900, 1500, 1744]
    rows = []
    for length in lengths:
        ids = torch.randint(vocabulary, (length,)).tolist()
        rows.append({"input_ids": ids, "labels": [-100] * (length // 2) + ids[length // 2 :]})
    return rows


def save_random_model(tiny: bool, directory: str) -> Any:
    """Save a random model as transformers does, and return its configuration."""
    from transformers import AutoModelForCausalLM

    config = model_config(tiny)
    torch.manual_seed(0)
    with torch.device(device()):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(directory)
    return config


def join_process_group() -> None:
    """Make this process a training of one rank."""
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29517")
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    if not torch.distributed.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        torch.distributed.init_process_group(backend, rank=0, world_size=1)


def train_and_measure(tiny: bool, what: str, settings: dict[str, Any]) -> Iterator[Row]:
    """Take a few steps of DEFT and report speed, peak memory and the loss at both ends."""
    from deft.workers.training.ray_entry import prepare_process

    prepare_process()
    from deft.objectives import get_objective
    from deft.workers.modeling.objective_model import ObjectiveModel
    from deft.workers.spec import TrainingSpec
    from deft.workers.training.batches import collate
    from deft.workers.training.engine import build_engine, load_model, resolve_dtype
    from deft.workers.training.step import train_step

    join_process_group()
    steps = 3 if tiny else 8
    spec = TrainingSpec(
        **{
            "num_workers": 1,
            "batch_size": 8,
            "micro_batch_size": 4,
            "max_length": 2048,
            "learning_rate": 1e-3,
            "warmup_ratio": 0.0,
            "dtype": "float32" if tiny else "bfloat16",
            **settings,
        }
    )
    with tempfile.TemporaryDirectory() as directory:
        config = save_random_model(tiny, directory)
        model = load_model(directory, spec, resolve_dtype(spec.dtype))
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    engine = build_engine(ObjectiveModel(model, get_objective("DEFT"), None), spec, steps)
    rows = random_rows(tiny, config.vocab_size)
    where = torch.device(device())
    batches = [collate(rows, 0, where, packing=spec.packing)] * 2
    tokens = 2 * sum(len(row["input_ids"]) for row in rows)
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    losses, seconds, norms = [], [], []
    for _ in range(steps):
        synchronize()
        began = time.perf_counter()
        columns, grad_norm = train_step(engine, batches, spec, 1)
        synchronize()
        seconds.append(time.perf_counter() - began)
        losses.append(float(torch.cat([c["value"][c["kept"].bool()] for c in columns]).mean()))
        norms.append(grad_norm)
    speed = tokens / statistics.median(seconds[1:])
    figure = f"{speed:.0f} tokens/s"
    if where.type == "cuda":
        mfu = 6 * num_parameters * speed / peak_flops()
        figure += f", MFU {mfu:.2f}, peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
    figure += f", objective {losses[0]:.3f} → {losses[-1]:.3f}"
    improves = losses[-1] < losses[0] and all(norm == norm for norm in norms)
    yield Row(what, figure, verdict(improves))
    if where.type == "cuda" and what == "train ZeRO-0":
        yield Row(f"{what}, MFU of at least {MIN_MFU}", f"{mfu:.2f}", verdict(mfu >= MIN_MFU))
        yield Row(
            f"{what}, host synchronizations a step",
            str(synchronizations(engine, batches, spec)),
            "",
        )


def accumulation(tiny: bool) -> Iterator[Row]:
    """Compare the gradient of a step of many bfloat16 micro-batches with their sum in float64."""
    from deft.workers.training.ray_entry import prepare_process

    prepare_process()
    from deepspeed.utils import safe_get_full_grad
    from transformers import AutoModelForCausalLM

    from deft.objectives import get_objective
    from deft.workers.modeling.objective_model import ObjectiveModel
    from deft.workers.spec import TrainingSpec
    from deft.workers.training.batches import collate
    from deft.workers.training.engine import build_engine

    join_process_group()
    config, number = model_config(True), 8 if tiny else 256
    where = torch.device(device())
    for stage in (1, 2, 3):
        spec = TrainingSpec(num_workers=1, batch_size=8, zero_stage=stage, dtype="bfloat16")  # type: ignore[arg-type]
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        engine = build_engine(ObjectiveModel(model, get_objective("DEFT")), spec, 4)
        parameters = list(engine.module.parameters())
        sums = [
            torch.zeros(getattr(p, "ds_shape", p.shape), dtype=torch.float64, device=where)
            for p in parameters
        ]
        for parameter, total in zip(parameters, sums, strict=True):
            parameter.register_hook(partial(add_to, total))
        for index in range(number):
            ids = torch.randint(config.vocab_size, (64,)).tolist()
            batch = collate([{"input_ids": ids, "labels": ids}], 0, where, packing=False)
            engine.set_gradient_accumulation_boundary(index == number - 1)
            engine.backward(engine(**batch)[0], scale_wrt_gas=False)
        actual = torch.cat([safe_get_full_grad(p).flatten() for p in parameters])
        error = relative_error(actual, torch.cat([total.flatten() for total in sums]))
        what = f"gradient of {number} bfloat16 micro-batches, ZeRO-{stage}"
        yield Row(what, f"{error:.1e} (≤ 1e-04)", verdict(error <= 1e-4))


def add_to(total: Tensor, gradient: Tensor) -> None:
    """Add a micro-batch's gradient; as a hook, leave it as it is."""
    total += gradient


def synchronizations(engine: Any, batches: Sequence[dict[str, Tensor]], spec: Any) -> int:
    """Count the places at which a step waits for the device, by PyTorch's own warnings."""
    import warnings

    from deft.workers.training.step import train_step

    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train_step(engine, batches, spec, 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def peak_flops() -> float:
    """Return what a large bfloat16 product reaches on this card, in operations per second."""
    left = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    return 2 * 8192**3 / seconds_of(lambda: left @ left, repeats=5)


def plain_loop(tiny: bool) -> Iterator[Row]:
    """Take the same steps by transformers' own loss and PyTorch's AdamW, padded: the peer."""
    from transformers import AutoModelForCausalLM

    from deft.workers.training.batches import collate

    config = model_config(tiny)
    with torch.device(device()):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    rows = random_rows(tiny, config.vocab_size)
    batch = collate(rows, 0, torch.device(device()), packing=False)

    def step() -> None:
        for row in range(len(rows)):
            inputs = {key: tensor[row : row + 1] for key, tensor in batch.items()}
            (model(**inputs).loss / len(rows)).backward()
        optimizer.step()
        optimizer.zero_grad()

    tokens = sum(len(row["input_ids"]) for row in rows)
    yield Row("plain loop, NLL", f"{tokens / seconds_of(step, 2):.0f} tokens/s", "")


# --------------------------------------------------------------------------------- attention


def attention(tiny: bool) -> Iterator[Row]:
    """Compare a model's packed logits with those of each example on its own, and time them."""
    from transformers import AutoModelForCausalLM

    from deft.workers.modeling.attention import choose_attention, packed_keywords
    from deft.workers.training.batches import collate

    config = model_config(True)
    dtype = torch.float32 if tiny else torch.bfloat16
    torch.manual_seed(0)
    chosen = choose_attention(config, packing=True, dtype=dtype)
    with torch.device(device()):
        packed = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=chosen)
        alone = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager")
    alone.load_state_dict(packed.state_dict())
    rows = random_rows(True, config.vocab_size)
    batch = collate(rows, 0, torch.device(device()), packing=True)

    @torch.no_grad()
    def packed_logits() -> Tensor:
        keywords = packed_keywords(batch["cu_seq_lens"], batch["position_ids"])
        logits: Tensor = packed(batch["input_ids"], use_cache=False, **keywords).logits[0]
        return logits

    with torch.no_grad():
        expected = torch.cat(
            [alone(torch.tensor([row["input_ids"]], device=device())).logits[0] for row in rows]
        )
    error = relative_error(packed_logits(), expected.double())
    bound = 1e-5 if dtype is torch.float32 else 2e-2
    yield Row(f"attention {chosen}, packed = alone", f"{error:.1e}", verdict(error <= bound))
    yield Row(f"attention {chosen}", f"{seconds_of(packed_logits, 3) * 1e3:.1f} ms", "")
    yield Row("flash-attn installed", str(find_spec("flash_attn") is not None), "")
    yield from attention_functions(tiny)


def attention_functions(tiny: bool) -> Iterator[Row]:
    """Compare packed attention and its gradients with float64, and time them.

    On a GPU this is PyTorch's variable-length kernel and what replaces it; on a CPU the latter.
    """
    from deft.workers.modeling.attention import flash_problem, packed_flash, packed_sdpa

    heads, shared, width = (4, 2, 16) if tiny else (12, 2, 128)
    dtype = torch.float32 if tiny else torch.bfloat16
    ends = torch.tensor([0, 20, 21, 54] if tiny else [0, 700, 2000, 2001, 4049, 8192]).int()
    torch.manual_seed(0)
    tensors = [
        torch.randn(1, int(ends[-1]), count, width, device=device(), dtype=dtype).transpose(1, 2)
        for count in (heads, shared, shared)
    ]
    capability = torch.cuda.get_device_capability() if device() == "cuda" else None
    for window in (None, 7 if tiny else 1024):
        longest = int(ends.diff().max())
        functions = {"example by example": partial(packed_sdpa, cu_seq_lens=ends, dropout=0.0)}
        if flash_problem(dtype, width, capability) is None:
            functions["PyTorch varlen"] = partial(
                packed_flash, cu_seq_lens=ends.to(device()), longest=longest
            )
        exact = attention_results(
            functions["example by example"], [t.double() for t in tensors], window
        )
        for name, function in functions.items():
            actual = attention_results(function, tensors, window)
            error = max(relative_error(a, e) for a, e in zip(actual, exact, strict=True))
            bound = 1e-5 if dtype is torch.float32 else 2e-2
            what = f"attention {name}, window {window}"
            yield Row(
                f"{what}, with gradients", f"{error:.1e} (≤ {bound:.0e})", verdict(error <= bound)
            )
            run = partial(attention_results, function, tensors, window)
            yield Row(
                what, f"{seconds_of(run, 3) * 1e3:.2f} ms, {peak_bytes(run) / 2**20:.0f} MiB", ""
            )


def attention_results(
    function: Callable[..., Tensor], tensors: Sequence[Tensor], window: int | None
) -> list[Tensor]:
    """Return the output of an attention function and its gradients in query, key and value."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    output = function(*leaves, scaling=None, sliding_window=window)
    (
        output * torch.linspace(-1, 1, output.shape[-1], device=output.device).to(output)
    ).sum().backward()
    return [output.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


# ----------------------------------------------------------------------------------- kernels


def kernels(tiny: bool) -> Iterator[Row]:
    """Give each kernel's share of the time of the head, and its rate against a library product."""
    if tiny or not torch.cuda.is_available():
        yield Row("kernels", "measured on a GPU only", "")
        return
    from torch.profiler import ProfilerActivity, profile

    for name, (D, V) in HEADS.items():
        N = 8192
        hidden = torch.randn(N, D, device="cuda", dtype=torch.bfloat16)
        weight = (torch.randn(V, D, device="cuda") * 3 / D**0.5).bfloat16()
        labels = torch.randint(V, (N,), device="cuda")
        head_outputs("DEFT", hidden, weight, labels, "triton")
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            head_outputs("DEFT", hidden, weight, labels, "triton")
            torch.cuda.synchronize()
        product = 2 * N * D * V
        library = seconds_of(lambda: hidden @ weight[:32_768].T, 5) * V / 32_768  # noqa: B023
        yield Row(
            f"kernels {name} one library product", f"{product / library / 1e12:.0f} TFLOP/s", ""
        )
        for event in profiler.key_averages():
            if "kernel" in event.key and event.device_time_total > 100:
                spent = event.device_time_total / 1e6
                rate = product / spent / 1e12
                yield Row(
                    f"kernels {name} {event.key[:40]}",
                    f"{spent * 1e3:.1f} ms, {rate:.0f} TFLOP/s if dense, "
                    f"{spent / library:.2f}× a library product",
                    "",
                )
