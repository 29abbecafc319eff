"""The head: every backend against float64, and what its callers rely on."""

from __future__ import annotations

import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from deft.objectives import (
    CATALOG,
    LinearObjectiveOutput,
    NonFiniteLogitsError,
    ReferenceHead,
    get_objective,
    linear_objective,
)
from deft.objectives.head import blocked, chunked, gpu_blocks, linear

EXAMPLES = [
    *(info.example for info in CATALOG.values()),
    "GeneralFamily--0.5",
    "EAFT-2",
    "EAFT_axolotl(a=0.5,k=33)",
]
IGNORED = -100
ANY_SHAPE = {
    "rows": st.integers(1, 60),
    "width": st.integers(1, 40),
    "vocabulary": st.integers(2, 400),
    "seed": st.integers(0, 10_000),
}


class Problem:
    """Leaves of one head, in float64 but exactly representable in a narrower dtype."""

    def __init__(
        self,
        rows: int,
        width: int,
        vocabulary: int,
        *,
        scale: float = 1.0,
        seed: int = 0,
        dtype: torch.dtype,
    ) -> None:
        N, D, V = rows, width, vocabulary
        generator = torch.Generator().manual_seed(seed)

        def randn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(dtype).double()

        self.hidden, self.weight = randn(N, D), (randn(V, D) * scale).to(dtype).double()
        self.bias = randn(V)
        self.reference = ReferenceHead(
            (self.hidden + 0.3 * randn(N, D)).to(dtype).double(), self.weight
        )
        logits = self.hidden @ self.weight.T + self.bias
        random = torch.randint(0, V, (N,), generator=generator)
        # Half of the targets are the likeliest token, as in text that the model knows.
        likely = torch.rand(N, generator=generator) < 0.5
        self.labels = torch.where(likely, logits.argmax(-1), random)
        self.labels[torch.rand(N, generator=generator) < 0.2] = IGNORED
        log_probs = logits.log_softmax(-1)
        logp = log_probs.gather(1, self.labels.clamp(min=0)[:, None])[:, 0]
        # Other models' log-probabilities, off by more than what rounding can tip over a bound.
        apart = torch.linspace(-1, 1, N, dtype=torch.float64).sign() * 0.7
        example = torch.arange(N) // 7
        self.context: dict[str, Tensor] = {
            "example": example,
            "position": torch.arange(N) - 7 * example,
            "reference_logp": logp + apart * torch.rand(N, generator=generator).double(),
            "initial_logp": logp - randn(N),
            "old_logp": logp + apart,
        }

    def run(
        self, objective: str, backend: str, dtype: torch.dtype, **options: object
    ) -> tuple[LinearObjectiveOutput, list[Tensor]]:
        """Return the output, and the gradients of hidden, weight and bias."""
        leaves = [
            leaf.to(dtype, copy=True).requires_grad_()
            for leaf in (self.hidden, self.weight, self.bias)
        ]
        reference = ReferenceHead(*(part.to(dtype) for part in self.reference[:2]))
        output = linear_objective(
            leaves[0],
            leaves[1],
            self.labels,
            objective,
            bias=leaves[2],
            reference=reference if get_objective(objective).needs_reference else None,
            context={
                name: column.to(dtype) if column.is_floating_point() else column
                for name, column in self.context.items()
            },
            backend=backend,  # type: ignore[arg-type]
            **options,  # type: ignore[arg-type]
        )
        output.loss.backward()
        return output, [leaf.grad for leaf in leaves if leaf.grad is not None]


def relative_error(found: Tensor, expected: Tensor, floor: float = 0.0) -> float:
    norm = max(expected.norm().item(), floor)
    error = (found.double() - expected).norm().item()
    return float(error / norm if norm else error)


def assert_matches_float64(
    problem: Problem,
    objective: str,
    dtype: torch.dtype,
    tolerance: float,
    *,
    floor: float = 0.0,
    **options: object,
) -> None:
    expected, expected_gradients = problem.run(objective, "reference", torch.float64, **options)
    output, gradients = problem.run(objective, "torch", dtype, **options)
    if torch.equal(output.kept, expected.kept):  # else a token lies on a threshold to the last bit
        assert relative_error(output.value, expected.value, floor) <= tolerance
        assert relative_error(output.gate, expected.gate, floor) <= tolerance
        for gradient, wanted in zip(gradients, expected_gradients, strict=True):
            assert relative_error(gradient, wanted, floor) <= tolerance


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks, tiles and blocks even in small problems, none of them full."""
    monkeypatch.setattr(chunked, "_CHUNK_ROWS", 24)
    monkeypatch.setattr(chunked, "_CACHED_LOGITS", 1024)
    monkeypatch.setattr(blocked, "_ROWS", 24)
    monkeypatch.setattr(blocked, "_ENTRIES", 128)
    monkeypatch.setattr(gpu_blocks, "BLOCK_BYTES", 0)
    monkeypatch.setattr(gpu_blocks, "LEAST_COLUMNS", 128)


@pytest.fixture(params=["cpu", "cuda"])
def device_type(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let the head be the one of this kind of device, whatever the tensors are on."""
    choose, kind = linear.head_for, str(request.param)
    monkeypatch.setattr(linear, "head_for", lambda *request: choose(*request[:3], kind))
    return kind


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("objective", EXAMPLES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)],
)
@pytest.mark.usefixtures("device_type")
def test_torch_backend_matches_float64(
    objective: str, dtype: torch.dtype, tolerance: float, softcap: float | None
) -> None:
    problem = Problem(100, 32, 517, scale=0.4, dtype=dtype)
    assert_matches_float64(problem, objective, dtype, tolerance, softcap=softcap)


@settings(max_examples=60, deadline=None)
@given(
    **ANY_SHAPE,
    scale=st.sampled_from([0.0, 1e-3, 0.3, 3.0, 300.0]),
    objective=st.sampled_from(["original", "p", "DEFT", "Cayley_Trans", "GEM", "OnlyTopP-0.1"]),
)
def test_any_shape_and_extreme_logits_in_float64(
    rows: int, width: int, vocabulary: int, scale: float, seed: int, objective: str
) -> None:
    problem = Problem(rows, width, vocabulary, scale=scale, seed=seed, dtype=torch.float32)
    # Under saturation or symmetry what is left of a gradient is the rounding of larger numbers.
    assert_matches_float64(problem, objective, torch.float64, 1e-8, floor=0.01 * max(scale, 1.0))


@settings(max_examples=60, deadline=None)
@given(
    **ANY_SHAPE,
    scale=st.sampled_from([0.0, 1e-3, 0.3, 3.0, 30.0]),
    objective=st.sampled_from(["original", "p", "DEFT", "Cayley_Trans", "OnlyTopP-0.1"]),
)
def test_any_shape_in_bfloat16(
    rows: int, width: int, vocabulary: int, scale: float, seed: int, objective: str
) -> None:
    problem = Problem(rows, width, vocabulary, scale=scale, seed=seed, dtype=torch.bfloat16)
    # Rounding is relative to what NLL, with gates of 1, makes of the same tokens; and to the
    # weights, where what they contribute cancels.
    nll, gradients = problem.run("original", "reference", torch.float64)
    floor = max(1.0, scale, *(part.norm().item() for part in (nll.value, *gradients)))
    assert_matches_float64(problem, objective, torch.bfloat16, 2e-2, floor=floor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 30.0, 1000.0])
@pytest.mark.usefixtures("device_type")
def test_extreme_logits_stay_finite_and_right(dtype: torch.dtype, scale: float) -> None:
    problem = Problem(60, 32, 300, scale=scale, dtype=dtype)
    _, nll = problem.run("original", "reference", torch.float64)
    for objective in ("original", "p", "DEFT", "Cayley_Trans"):
        expected, expected_gradients = problem.run(objective, "reference", torch.float64)
        output, gradients = problem.run(objective, "torch", dtype)
        assert relative_error(output.value, expected.value) <= 1e-3
        # Gates at certain tokens leave next to nothing of the gradient to be right about.
        for parts in zip(gradients, expected_gradients, nll, strict=True):
            assert relative_error(parts[0], parts[1], floor=0.01 * parts[2].norm().item()) <= 2e-2


@pytest.mark.parametrize("objective", EXAMPLES)
def test_reference_gradients_are_autograds(objective: str) -> None:
    """gate · (P − e_y) + mix · (P − T) against autograd through value(logits), statistics fixed."""
    problem = Problem(40, 16, 61, scale=0.5, dtype=torch.float64)
    problem.labels[problem.labels == IGNORED] = 3
    output, gradients = problem.run(objective, "reference", torch.float64, normalizer=1.0)
    built = get_objective(objective)

    hidden, weight, bias = (
        leaf.clone().requires_grad_() for leaf in (problem.hidden, problem.weight, problem.bias)
    )
    log_probs = F.log_softmax(hidden @ weight.T + bias, dim=-1)
    logp = log_probs.gather(1, problem.labels[:, None]).squeeze(1)
    surrogate = -(output.gate * logp).sum()
    if built.target is not None:
        mix = built(output.stats).mix
        assert mix is not None
        reference = F.log_softmax(problem.reference.hidden @ problem.weight.T, dim=-1)
        logits = (hidden @ weight.T + bias).detach()
        divergence = {
            "uniform": lambda: -log_probs.mean(-1),
            "tempered": lambda: (
                -((logits / built.target.temperature).softmax(-1) * log_probs).sum(-1)
            ),
            "reference": lambda: (reference.exp() * (reference - log_probs)).sum(-1),
            "reference_reverse": lambda: (log_probs.exp() * (log_probs - reference)).sum(-1),
        }[built.target.kind]()
        assert output.stats.divergence is not None
        assert_close(output.stats.divergence, divergence.detach())
        surrogate = surrogate + (mix * divergence).sum()
    surrogate.backward()
    for gradient, leaf in zip(gradients, (hidden, weight, bias), strict=True):
        assert leaf.grad is not None
        assert_close(gradient, leaf.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("device_type")
def test_statistics_are_those_of_the_softmax(dtype: torch.dtype) -> None:
    problem = Problem(50, 16, 300, scale=0.5, dtype=dtype)
    names = ("concentration", "entropy", "top_logp", "entropy_top")
    for asked in (names, names[:3], names[:2], names[1:2]):
        # What can go by vocabulary blocks has its e^z rounded to bfloat16.
        is_rounded = dtype == torch.bfloat16
        tolerance = 5e-3 if is_rounded else 1e-4
        output, _ = problem.run("original", "torch", dtype, statistics=asked)
        probs = (problem.hidden @ problem.weight.T + problem.bias).softmax(-1)
        top = probs.topk(20).values
        top = top / top.sum(-1, keepdim=True)
        truth = {
            "concentration": probs.square().sum(-1),
            "entropy": -(probs * probs.log()).sum(-1),
            "top_logp": probs.amax(-1).log(),
            "entropy_top": -(top * top.log()).sum(-1),
        }
        for name in names:
            statistic = getattr(output.stats, name)
            assert (statistic is not None) == (name in asked)
            if statistic is not None:
                mask = output.stats.mask
                close = {"rtol": tolerance, "atol": tolerance / 10}
                assert_close(statistic[mask].double(), truth[name][mask], **close)
                assert not statistic[~mask].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("device_type")
def test_an_almost_certain_token_keeps_the_digits_of_what_it_lacks(dtype: torch.dtype) -> None:
    problem = Problem(60, 32, 300, scale=2.0, dtype=dtype)
    problem.labels = (problem.hidden @ problem.weight.T + problem.bias).argmax(-1)
    expected, _ = problem.run("original", "reference", torch.float64)
    output, _ = problem.run("original", "torch", dtype)
    certain = (expected.stats.p - 0.995).abs() < 0.0049
    assert certain.any()
    assert_close(output.value[certain].double(), expected.value[certain], rtol=3e-2, atol=1e-6)


def test_what_has_no_target_has_no_part() -> None:
    problem = Problem(60, 16, 300, dtype=torch.float32)
    output, (grad_hidden, *_) = problem.run("DEFT", "torch", torch.float32)
    ignored = problem.labels == IGNORED
    assert not grad_hidden[ignored].any()
    assert grad_hidden[~ignored].any(dim=1).all()
    for tensor in (output.value, output.gate, output.focus, output.kept, output.stats.p):
        assert tensor is not None
        assert not tensor[ignored].any()
    problem.hidden[ignored] = torch.inf
    assert problem.run("DEFT", "torch", torch.float32)[0].loss == output.loss


@pytest.mark.usefixtures("device_type")
def test_dropped_tokens_leave_loss_normalizer_and_gradient() -> None:
    problem = Problem(80, 16, 300, scale=0.6, dtype=torch.float32)
    output, (grad_hidden, *_) = problem.run("OnlyTopLogP-0.3", "torch", torch.float32)
    target = problem.labels != IGNORED
    assert torch.equal(output.kept, target & (output.stats.p >= 0.3))
    assert 0 < output.kept.sum() < target.sum()
    assert_close(output.loss, -output.stats.logp[output.kept].mean())
    assert not grad_hidden[~output.kept].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("objective", ["DEFT", "Cayley_Trans", "TopQuantileP-0.5", "GEM"])
@pytest.mark.parametrize("rows", [0, 7])
@pytest.mark.usefixtures("device_type")
def test_without_targets_loss_and_gradients_are_zero(
    objective: str, rows: int, dtype: torch.dtype
) -> None:
    hidden = torch.randn(rows, 8, dtype=dtype, requires_grad=True)
    weight = torch.randn(50, 8, dtype=dtype, requires_grad=True)
    output = linear_objective(hidden, weight, torch.full((rows,), IGNORED), objective)
    output.loss.backward()
    assert output.loss == 0
    for leaf in (hidden, weight):
        assert leaf.grad is not None
        assert leaf.grad.shape == leaf.shape
        assert not leaf.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("device_type")
def test_without_kept_tokens_loss_and_gradients_are_zero(dtype: torch.dtype) -> None:
    problem = Problem(40, 16, 300, scale=0.1, dtype=dtype)
    output, gradients = problem.run("OnlyTopP-0.5", "torch", dtype)
    assert output.stats.mask.any()
    assert not output.kept.any()
    assert output.loss == 0
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("objective", ["DEFT", "OnlyTopP-0.2", "GEM"])
@pytest.mark.usefixtures("device_type")
def test_accumulation_with_a_shared_normalizer_is_one_batch(objective: str) -> None:
    problem = Problem(90, 16, 300, scale=0.5, dtype=torch.float64)
    whole, gradients = problem.run(objective, "torch", torch.float64)
    hidden = problem.hidden.clone().requires_grad_()
    weight, bias = problem.weight.clone().requires_grad_(), problem.bias.clone().requires_grad_()
    for rows in (slice(0, 13), slice(13, 80), slice(80, 90)):
        part = linear_objective(
            hidden[rows],
            weight,
            problem.labels[rows],
            objective,
            bias=bias,
            normalizer=whole.kept.sum(),
        )
        part.loss.backward()
    for gradient, leaf in zip(gradients, (hidden, weight, bias), strict=True):
        assert leaf.grad is not None
        assert_close(leaf.grad, gradient)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_upstream_gradient_multiplies_everything(dtype: torch.dtype) -> None:
    gradients = []
    for factor in (1.0, 8.0):
        problem = Problem(30, 16, 200, dtype=dtype)
        weight = problem.weight.to(dtype).requires_grad_()
        hidden = problem.hidden.to(dtype).requires_grad_()
        (factor * linear_objective(hidden, weight, problem.labels, "DEFT").loss).backward()
        gradients.append((hidden.grad, weight.grad))
    for one, eight in zip(*gradients, strict=True):
        assert one is not None
        assert one.dtype == dtype
        assert_close(8 * one, eight)


def test_tied_embeddings_get_both_gradients() -> None:
    table = torch.randn(40, 8, requires_grad=True)
    tokens, labels = torch.randint(0, 40, (20,)), torch.randint(0, 40, (20,))
    linear_objective(table[tokens].tanh(), table, labels, "original").loss.backward()
    twin = table.detach().clone().requires_grad_()
    F.cross_entropy(F.linear(twin[tokens].tanh(), twin), labels).backward()
    assert table.grad is not None
    assert_close(table.grad, twin.grad)


def test_low_rank_adapter_on_the_head() -> None:
    base, down, up = torch.randn(40, 8), torch.randn(3, 8), torch.randn(40, 3)
    adapters = [down.requires_grad_(), up.requires_grad_()]
    hidden, labels = torch.randn(20, 8), torch.randint(0, 40, (20,))
    linear_objective(hidden, base + up @ down, labels, "original").loss.backward()
    gradients = [adapter.grad for adapter in adapters]
    expected = torch.autograd.grad(
        F.cross_entropy(F.linear(hidden, base + up @ down), labels), adapters
    )
    assert base.grad is None
    assert_close(gradients, list(expected))


def test_the_backward_does_not_read_the_weight() -> None:
    """ZeRO-3 releases the parameters of a module that has run."""
    head = nn.Linear(8, 40, bias=False)
    hidden, labels = torch.randn(20, 8, requires_grad=True), torch.randint(0, 40, (20,))
    expected = torch.autograd.grad(F.cross_entropy(head(hidden), labels), (hidden, head.weight))
    loss = linear_objective(hidden, head.weight, labels, "original").loss
    head.weight.data.fill_(torch.nan)
    assert_close(torch.autograd.grad(loss, (hidden, head.weight)), expected)


def test_nothing_is_computed_that_nobody_differentiates() -> None:
    hidden, weight = torch.randn(20, 8), torch.randn(40, 8, requires_grad=True)
    labels = torch.randint(0, 40, (20,))
    linear_objective(hidden, weight, labels, "DEFT").loss.backward()
    assert hidden.grad is None
    with torch.no_grad():
        assert not linear_objective(hidden, weight, labels, "DEFT").loss.requires_grad


def test_gradients_can_be_taken_once() -> None:
    hidden = torch.randn(4, 8, requires_grad=True)
    loss = linear_objective(hidden, torch.randn(9, 8), torch.arange(4), "p").loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="only once"):
        loss.backward()


def test_autocast_multiplies_in_its_dtype() -> None:
    hidden = torch.randn(12, 8, requires_grad=True)
    weight = torch.randn(40, 8, requires_grad=True)
    labels = torch.randint(0, 40, (12,))
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_objective(hidden.bfloat16(), weight, labels, "DEFT").loss
    loss.backward()
    assert loss.dtype == torch.float32
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.usefixtures("device_type")
def test_logits_that_are_not_finite_are_refused_with_their_rows(
    backend: str, dtype: torch.dtype, poison: float
) -> None:
    hidden, weight = torch.randn(60, 8, dtype=dtype), torch.randn(300, 8, dtype=dtype)
    labels = torch.randint(0, 300, (60,))
    labels[3] = IGNORED
    hidden[3] = hidden[41, 0] = hidden[50, 2] = poison
    hidden.requires_grad_()
    with pytest.raises(NonFiniteLogitsError, match="2 of 59 rows: 41, 50"):
        linear_objective(hidden, weight, labels, "DEFT", backend=backend)  # type: ignore[arg-type]
    bias = torch.zeros(300, dtype=dtype)
    bias[7] = poison
    with pytest.raises(NonFiniteLogitsError, match="59 of 59 rows: 0, 1, 2, 4"):
        linear_objective(
            torch.zeros_like(hidden, requires_grad=True),
            weight,
            labels,
            "DEFT",
            bias=bias,
            backend=backend,  # type: ignore[arg-type]
        )


def test_a_value_that_overflows_is_refused() -> None:
    hidden = torch.zeros(3, 2)
    hidden[1, 0] = 200.0
    with pytest.raises(NonFiniteLogitsError, match=r"value of GeneralFamily--1 .* rows: 1"):
        linear_objective(hidden, torch.eye(2), torch.ones(3, dtype=torch.int64), "tsallis--1")


def test_the_error_crosses_process_boundaries() -> None:
    error = pickle.loads(pickle.dumps(NonFiniteLogitsError("row 3")))
    assert isinstance(error, FloatingPointError)
    assert str(error) == "row 3"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.zeros(4, 7)}, r"hidden must be \[N, D\]"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, r"labels must be \[4\]"),
        ({"labels": torch.full((4,), 9)}, r"labels must lie in \[0, 9\)"),
        ({"labels": torch.full((4,), -1)}, r"labels must lie in \[0, 9\)"),
        ({"bias": torch.zeros(8)}, r"bias must be \[9\]"),
        ({"hidden": torch.zeros(4, 8).bfloat16()}, "one floating-point dtype"),
        ({"softcap": 0.0}, "softcap must be positive"),
        ({"statistics": ["entropi"]}, "unknown statistic 'entropi'"),
        ({"objective": "ASFT"}, "give `reference`"),
        ({"backend": "tensor"}, "unknown backend"),
    ],
)
def test_what_does_not_fit_together_is_refused(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {
        "hidden": torch.zeros(4, 8),
        "weight": torch.zeros(9, 8),
        "labels": torch.zeros(4, dtype=torch.int64),
        "objective": "DEFT",
    }
    with pytest.raises(ValueError, match=message):
        linear_objective(**(arguments | change))  # type: ignore[arg-type]
