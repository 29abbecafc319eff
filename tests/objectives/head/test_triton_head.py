"""The kernels of the `triton` backend: interpreted on a CPU, compiled for Hopper, run on a GPU.

Triton decides at import whether its functions are interpreted, so all interpreted cases are
computed by one other process: this file, run as a script. The interpreter multiplies bfloat16
wrongly; float32 and float16 stand in for it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from deft.objectives import Objective, get_objective
from deft.objectives.head.interface import HeadInputs, HeadResult, Wanted
from deft.objectives.head.reference import reference_head


class Case(NamedTuple):
    objective: str
    dtype: torch.dtype = torch.float32
    M: int = 150
    D: int = 72
    V: int = 613
    scale: float = 3.0
    """Standard deviation of the logits."""
    softcap: float | None = None
    bias: bool = False
    wanted: str = "hidden weight bias concentration entropy"
    spoiled: tuple[int, ...] = ()
    """Rows whose logits are made infinite or NaN."""
    common: float = 0.0
    """What every entry of the weight has in common; it does not change the prediction."""
    skipping: float = 1.0
    """Factor of the thresholds."""
    stored: torch.dtype = torch.float32
    """Dtype of the weight's gradient."""
    weighted: bool = False
    """Whether the rows have weights."""


CASES = {
    "original": Case("original"),
    "p": Case("p"),
    "deft": Case("DEFT", softcap=8.0, bias=True),
    "cayley": Case("Cayley_Trans", bias=True),
    "negative-alpha": Case("GeneralFamily--1", softcap=5.0),
    "confident": Case("OnlyTopP-0.2"),
    "few-rows-few-columns": Case("DEFT", M=3, D=5, V=7),
    "one-row": Case("original", M=1, D=16, V=130),
    "no-row": Case("DEFT", M=0, bias=True),
    "none-kept": Case("OnlyTopP-0.999999", scale=0.1, bias=True),
    "rounded-gradient": Case("DEFT", stored=torch.bfloat16),
    "hidden-only": Case("p", wanted="hidden"),
    "negative-gates": Case("IDFT", wanted="weight"),
    "no-gradient": Case("DEFT", wanted="concentration top_logp"),
    "huge-logits": Case("DEFT", scale=2000.0),
    "not-finite": Case("original", M=70, wanted="", bias=True, spoiled=(0, 13, 64)),
    "not-finite-entropy": Case("original", M=70, wanted="entropy", spoiled=(0, 13, 64)),
    "weighted": Case("DEFT", weighted=True),
    "top-entropy": Case("EAFT", bias=True),
    "top-entropy-capped": Case("EAFT_axolotl(a=0.5,k=33)", softcap=5.0),
    "half-original": Case("original", torch.float16, bias=True),
    "half-deft": Case("DEFT", torch.float16, softcap=20.0),
    "half-peaked": Case("original", torch.float16, M=250, V=2000, scale=40.0),
    "bounded": Case("p", V=1000, wanted="hidden weight", skipping=2.0**17),
    "flat": Case("original", scale=1.0, common=1.0, wanted="hidden", skipping=2.0**24),
}

NOT_FINITE = ("not-finite", "not-finite-entropy")


def problem(case: Case, device: str = "cpu") -> tuple[HeadInputs, Objective, Wanted]:
    """Random hidden states and weights; half of the labels are the likeliest token."""
    draw = torch.Generator().manual_seed(len(case.objective) + case.M)
    hidden = torch.randn(case.M, case.D, generator=draw)
    weight = torch.randn(case.V, case.D, generator=draw) * case.scale / case.D**0.5
    weight += case.common
    bias = torch.randn(case.V, generator=draw) if case.bias else None
    labels = torch.randint(case.V, (case.M,), generator=draw)
    labels[::2] = (hidden @ weight.T).argmax(-1)[::2]
    for row, value in zip(case.spoiled, (torch.inf, -torch.inf, torch.nan), strict=False):
        # Every logit of the row becomes this value, or NaN where the weight is negative.
        hidden[row, 0] = value
    weight[:, 0] = weight[:, 0].abs() if case.spoiled else weight[:, 0]
    inputs = HeadInputs(
        hidden=hidden.to(device, case.dtype),
        weight=weight.to(device, case.dtype),
        bias=None if bias is None else bias.to(device, case.dtype),
        labels=labels.to(device),
        softcap=case.softcap,
        reference=None,
        step_mean_p=None,
        context={"weight": 4 * torch.rand(case.M, generator=draw).to(device)}
        if case.weighted
        else {},
        top_k=get_objective(case.objective).top_k,
    )
    objective, asked = get_objective(case.objective), set(case.wanted.split())
    wanted = Wanted(
        statistics=objective.needs | (asked & {"concentration", "entropy", "top_logp"}),
        hidden="hidden" in asked,
        weight="weight" in asked,
        bias="bias" in asked and case.bias,
    )
    return inputs, objective, wanted


def exact(case: Case, device: str = "cpu") -> HeadResult:
    """Compute the same problem by the `reference` backend in float64."""
    inputs, objective, wanted = problem(case, device)
    return reference_head(
        inputs._replace(
            hidden=inputs.hidden.double(),
            weight=inputs.weight.double(),
            bias=None if inputs.bias is None else inputs.bias.double(),
        ),
        objective,
        wanted,
    )


def parts(result: HeadResult) -> dict[str, Tensor]:
    """Everything that a backend returns and that is there."""
    stats, output = result.stats, result.output
    named = {
        "logp": stats.logp,
        "concentration": stats.concentration,
        "entropy": stats.entropy,
        "entropy_top": stats.entropy_top,
        "top_logp": stats.top_logp,
        "value": output.value,
        "gate": output.gate,
        "grad_hidden": result.grad_hidden,
        "grad_weight": result.grad_weight,
        "grad_bias": result.grad_bias,
    }
    return {name: tensor for name, tensor in named.items() if tensor is not None}


def relative_error(actual: Tensor, expected: Tensor) -> float:
    scale = expected.norm().clamp(min=torch.finfo(torch.float32).tiny)
    return float((actual.double() - expected).norm() / scale)


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    """Results of all cases, by name and part."""
    path = tmp_path_factory.mktemp("interpreted") / "results.pt"
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, __file__, str(path)], env=environment, check=True, timeout=300)
    results: dict[str, dict[str, Tensor]] = torch.load(path)
    return results


@pytest.mark.parametrize("name", sorted(CASES.keys() - {*NOT_FINITE, "bounded", "flat"}))
def test_interpreted_kernels_match_the_float64_reference(
    name: str, interpreted: dict[str, dict[str, Tensor]]
) -> None:
    case = CASES[name]
    expected, actual = parts(exact(case)), interpreted[name]
    assert actual.keys() - {"live_share"} == expected.keys()
    for part, tensor in expected.items():
        dtype = case.stored if part == "grad_weight" else torch.float32
        assert actual[part].dtype == dtype
        assert actual[part].shape == tensor.shape
        is_rounded = case.dtype == torch.float16 and part.startswith("grad_")
        # A logit is off by a few units in its last place, depending on the order in which this
        # machine's float32 product is summed; so is, relatively, what is computed from it.
        last_place = torch.finfo(torch.float32).eps * case.scale
        tolerance = 1e-3 if is_rounded else max(1e-5, 2 * last_place, torch.finfo(dtype).eps / 2)
        assert relative_error(actual[part], tensor) <= tolerance, part


@pytest.mark.parametrize("name", NOT_FINITE)
def test_rows_with_a_logit_that_is_not_finite_have_no_log_probability(
    name: str, interpreted: dict[str, dict[str, Tensor]]
) -> None:
    logp = interpreted[name]["logp"]
    assert logp.isnan().nonzero().squeeze(-1).tolist() == list(CASES[name].spoiled)


def test_products_skip_what_the_gate_leaves_below_the_resolution(
    interpreted: dict[str, dict[str, Tensor]],
) -> None:
    assert interpreted["half-peaked"]["live_share"] < 0.4
    assert interpreted["half-original"]["live_share"] > 0.5


def test_what_is_skipped_is_off_by_no_more_than_its_threshold(
    interpreted: dict[str, dict[str, Tensor]],
) -> None:
    case, skipped = CASES["bounded"], interpreted["bounded"]
    expected = exact(case)
    inputs, _, _ = problem(case)
    gate = expected.output.gate
    error = (inputs.hidden.double() @ inputs.weight.double().T).softmax(-1)
    error[torch.arange(case.M), inputs.labels] -= 1
    error = (gate[:, None] * error).abs()
    resolution = torch.finfo(case.dtype).eps * case.skipping * gate.mean()
    for part, share, axis, factor in (
        # A column's skipped errors are below the threshold, each times its hidden state.
        ("grad_weight", 1 / 32, 0, inputs.hidden.norm(dim=1).max()),
        # A row's are replaced by as much of the mean weight, which is no longer than the longest.
        ("grad_hidden", 1 / 128, 1, 2 * inputs.weight.norm(dim=1).max()),
    ):
        is_small = error < share * resolution
        assert 0.8 < is_small.double().mean() < 0.95
        bound = factor * torch.where(is_small, error, 0).sum(axis) + 1e-5
        exact_part = parts(expected)[part]
        off = (skipped[part].double() - exact_part).norm(dim=1)
        assert (off <= bound).all(), part
        # One more column or row left out would be off by more than this.
        assert bound.norm() < 0.05 * exact_part.norm()
    assert skipped["live_share"] < 0.6


def test_skipped_errors_still_pull_towards_the_mean_weight(
    interpreted: dict[str, dict[str, Tensor]],
) -> None:
    skipped, expected = interpreted["flat"], parts(exact(CASES["flat"]))["grad_hidden"]
    assert skipped["live_share"] < 0.2
    # Left out, they would make it six times as large as it is.
    assert relative_error(skipped["grad_hidden"], expected) < 0.2


def test_what_the_kernels_cannot_do_is_refused_with_a_reason() -> None:
    from deft.objectives.head.triton_head import triton_head, unsupported

    inputs, objective, wanted = problem(Case("original"))
    for reason, given in (
        ("second distribution", (inputs, get_objective("LabelSmoothing"))),
        ("float64", (inputs._replace(hidden=inputs.hidden.double()), objective)),
        ("NVIDIA GPU", (inputs, objective)),
    ):
        assert reason in (unsupported(*given) or "")
        with pytest.raises(ValueError, match=reason):
            triton_head(*given, wanted)


class Variant(NamedTuple):
    """A kernel as some call compiles it."""

    kernel: str
    dtype: torch.dtype
    absent: tuple[str, ...] = ()
    flags: tuple[tuple[str, int], ...] = ()


def _variants() -> list[Variant]:
    options: list[tuple[str, ...]] = [
        (),
        ("bias_ptr",),
        ("softcap",),
        ("bias_ptr", "softcap"),
    ]
    variants = []
    for dtype in (torch.bfloat16, torch.float32):
        for absent in options:
            variants.append(Variant("error_kernel", dtype, absent))
            for concentration, entropy in ((0, 0), (1, 0), (0, 1), (1, 1)):
                flags = (("CONCENTRATION", concentration), ("ENTROPY", entropy))
                if dtype == torch.bfloat16 or concentration == entropy == 1:
                    variants.append(Variant("statistics_kernel", dtype, absent, flags))
        variants.append(Variant("hidden_gradient_kernel", dtype))
        variants.append(Variant("weight_gradient_kernel", dtype))
    return variants


_POINTERS = {
    "labels_ptr": "i64",
    "destination_ptr": "i64",
    "live_ptr": "i8",
    "columns_ptr": "i32",
    "row_tiles_ptr": "i32",
    "counts_ptr": "i32",
    "order_ptr": "i32",
}
_OPERANDS = {"hidden_ptr", "weight_ptr", "bias_ptr", "error_ptr"}
_ROUNDED = ("weight_gradient_kernel", "gradient_ptr")
_MULTIPLES_OF_16 = {"width", "error_stride", "block_columns"}


def compile_for_hopper(variant: Variant) -> Any:
    """Compile the kernel with the argument types and alignments of a real call."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from deft.objectives.head import triton_kernels

    kernel = getattr(triton_kernels, variant.kernel)
    has_softcap = "softcap" in kernel.arg_names and "softcap" not in variant.absent
    tiles = triton_kernels.tiles_for(variant.dtype, 30.0 if has_softcap else None)
    launch = tiles.gradient() if "gradient" in variant.kernel else tiles.logits()
    options = {name: launch.pop(name) for name in ("num_warps", "num_stages")}
    constants: dict[str, Any] = launch | dict(variant.flags)
    if variant.kernel == "statistics_kernel":
        constants["TILES_PER_SPLIT"] = 8
    constants |= {name: None for name in variant.absent if name in kernel.arg_names}

    operand = {torch.bfloat16: "bf16", torch.float32: "fp32"}[variant.dtype]
    signature, alignments = {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            is_operand = name in _OPERANDS or (variant.kernel, name) == _ROUNDED
            signature[name] = "*" + (operand if is_operand else _POINTERS.get(name, "fp32"))
        else:
            signature[name] = "fp32" if name == "softcap" else "i32"
        if name not in constants and (name.endswith("_ptr") or name in _MULTIPLES_OF_16):
            alignments[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, alignments)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


def resources(cubin: bytes, folder: Path) -> dict[str, int]:
    """Return the kernel's resources, such as REG (registers a thread) and STACK (bytes)."""
    import triton

    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    listing = subprocess.run(
        [tool, "-res-usage", path], check=True, capture_output=True, text=True
    ).stdout
    return {name: int(size) for name, size in re.findall(r"(REG|STACK|LOCAL):(\d+)", listing)}


@pytest.mark.parametrize("variant", _variants(), ids=lambda variant: "-".join(map(str, variant)))
def test_compiled_for_hopper_nothing_spills_and_loads_are_ahead(
    variant: Variant, tmp_path: Path
) -> None:
    compiled = compile_for_hopper(variant)
    usage = resources(compiled.asm["cubin"], tmp_path)
    assert usage["STACK"] == usage["LOCAL"] == 0
    assert usage["REG"] <= 255
    assert compiled.metadata.shared <= 227 * 1024
    ptx = compiled.asm["ptx"]
    assert ("wgmma.mma_async" in ptx) == (variant.dtype == torch.bfloat16)
    # Some copies to shared memory are still under way when a product starts.
    assert re.search(r"cp\.async\.wait_group\s+[1-9]", ptx)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(
    "objective", ["original", "p", "DEFT", "Cayley_Trans", "OnlyTopP-0.2", "EAFT"]
)
def test_kernels_on_a_gpu_match_the_float64_reference(objective: str, dtype: torch.dtype) -> None:
    from deft.objectives.head.triton_head import triton_head

    for case in (
        Case(objective, dtype, M=1000, D=576, V=20_011),
        Case(objective, dtype, M=700, D=1000, V=9001, softcap=30.0, bias=True),
        Case(objective, dtype, M=129, D=50, V=257),
    ):
        expected = parts(exact(case, "cuda"))
        actual = parts(triton_head(*problem(case, "cuda")))
        assert actual.keys() == expected.keys()
        for part, tensor in expected.items():
            is_rounded = dtype != torch.float32 and part.startswith("grad_")
            assert relative_error(actual[part], tensor) <= (1e-2 if is_rounded else 1e-5), part


def _interpret_all(path: str) -> None:
    from deft.objectives.head import gpu_blocks, triton_head

    # Several blocks even for a small vocabulary.
    triton_head._BLOCK_BYTES, triton_head._MIN_BLOCK_COLUMNS = 0, 256
    gpu_blocks.BLOCK_BYTES, gpu_blocks.LEAST_COLUMNS = 0, 256
    thresholds = triton_head._WEIGHT_THRESHOLD, triton_head._HIDDEN_THRESHOLD
    places_of_true, shares = triton_head._places_of_true, []

    def recording(mask: Tensor) -> tuple[Tensor, Tensor]:
        shares.append(mask.float().mean())
        return places_of_true(mask)

    triton_head._places_of_true = recording
    results = {}
    for name, case in CASES.items():
        shares.clear()
        triton_head._WEIGHT_THRESHOLD, triton_head._HIDDEN_THRESHOLD = (
            threshold * case.skipping for threshold in thresholds
        )
        triton_head.weight_gradient_dtype = lambda _, stored=case.stored: stored
        results[name] = parts(triton_head.triton_head(*problem(case)))
        if shares:
            results[name]["live_share"] = torch.stack(shares).mean()
    torch.save(results, path)


if __name__ == "__main__":
    _interpret_all(sys.argv[1])
