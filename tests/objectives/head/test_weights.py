"""Weights of tokens multiply value, gate and mix: every backend against formulas in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from deft.objectives import ObjectiveOutput, TokenStats, get_objective, linear_objective, objective
from deft.objectives.base import Objective
from deft.objectives.head import blocked, chunked

IGNORED = -100


def deft(logits: Tensor, logp: Tensor) -> Tensor:
    focus = logits.softmax(-1).square().sum(-1).detach()
    return -torch.expm1(focus * logp) / (focus + 1e-6)


def cayley(logits: Tensor, logp: Tensor) -> Tensor:
    p = logp.detach().exp()
    share = (1 - (1 - p + 1e-8)) / (1 + (1 - p + 1e-8) + 1e-8)
    # The floor is a mean over tokens, whatever they weigh.
    floor = 0.5 * p.mean()
    focus = (floor + (1 - floor) * share).clamp(0.001, 1)
    return -torch.expm1(focus * logp) / (focus + 1e-8)


def smoothed(logits: Tensor, logp: Tensor) -> Tensor:
    return -0.9 * logp - 0.1 * logits.log_softmax(-1).mean(-1)


FORMULAS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "original": lambda _, logp: -logp,
    "p": lambda _, logp: 1 - logp.exp(),
    "DEFT": deft,
    "Cayley_Trans": cayley,
    "OnlyTopLogP-0.1": lambda _, logp: -logp * (logp.detach().exp() >= 0.1),
    "LabelSmoothing-0.1": smoothed,
}
"""Values [N] by logits [N, V] and log p [N]."""


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "_CHUNK_ROWS", 24)
    monkeypatch.setattr(blocked, "_ROWS", 24)
    monkeypatch.setattr(blocked, "_ENTRIES", 128)


@pytest.mark.parametrize(
    ("backend", "dtype", "tolerance"),
    [
        ("reference", torch.float64, 1e-9),
        ("torch", torch.float64, 1e-9),
        ("torch", torch.float32, 1e-4),
        ("torch", torch.bfloat16, 2e-2),
        ("blocked", torch.bfloat16, 2e-2),
    ],
)
@pytest.mark.parametrize("name", FORMULAS)
def test_loss_and_gradients_are_those_of_the_weighted_formula(
    name: str, backend: str, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == "blocked":
        monkeypatch.setattr(blocked, "has_native_bfloat16", lambda _: True)
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(70, 24, generator=generator).to(dtype).double().requires_grad_()
    weight = torch.randn(300, 24, generator=generator).to(dtype).double().requires_grad_()
    labels = torch.randint(300, (70,), generator=generator)
    labels[::2] = (hidden @ weight.T).argmax(-1)[::2]
    labels[::7] = IGNORED
    weights = 3 * torch.rand(70, generator=generator, dtype=torch.float64)
    weights[3] = 0

    target = labels != IGNORED
    logits = (hidden @ weight.T)[target]
    logp = logits.log_softmax(-1).gather(1, labels[target, None]).squeeze(1)
    values = FORMULAS[name](logits, logp)
    # Dropped tokens leave the number that the sum is divided by; light ones do not.
    num_kept = int((logp.exp() >= 0.1).sum()) if name.startswith("Only") else len(values)
    loss = (weights[target] * values).sum() / num_kept
    expected = torch.autograd.grad(loss, (hidden, weight))

    leaves = [leaf.detach().to(dtype).requires_grad_() for leaf in (hidden, weight)]
    output = linear_objective(
        *leaves,
        labels,
        name,
        context={"weight": weights},
        backend="torch" if backend == "blocked" else backend,  # type: ignore[arg-type]
    )
    output.loss.backward()
    assert output.loss.item() == pytest.approx(loss.item(), rel=tolerance)
    for leaf, gradient in zip(leaves, expected, strict=True):
        assert leaf.grad is not None
        error = (leaf.grad.double() - gradient).norm() / gradient.norm()
        assert error <= tolerance
    assert_close(
        output.value[target].double(),
        (weights[target] * values).detach(),
        rtol=tolerance,
        atol=10 * tolerance,
    )


def lighter(stats: TokenStats) -> ObjectiveOutput:
    """NLL over the weight, which undoes what the head multiplies by."""
    weight = stats.require("weight")
    return ObjectiveOutput(value=-stats.logp / weight, gate=1 / weight)


def test_an_objective_reads_weights_if_it_declares_them() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(9, 8, generator=generator), torch.randn(40, 8, generator=generator)
    labels = torch.randint(40, (9,), generator=generator)
    weights = 0.5 + torch.rand(9, generator=generator)
    built = get_objective("original")
    fields = {**vars(built), "function": lighter, "context": frozenset({"weight"})}
    reading = Objective(**fields)
    plain = linear_objective(hidden, weight, labels, "original")
    for context in ({"weight": weights}, {"weight": None}, {}):
        output = linear_objective(hidden, weight, labels, reading, context=context)
        assert_close(output.value, plain.value)
        assert_close(output.gate, plain.gate)
    with pytest.raises(ValueError, match=r"needs=\{'weight'\}"):
        objective()(lighter)(plain.stats)
