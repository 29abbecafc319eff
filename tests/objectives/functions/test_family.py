"""Every objective by itself: value, gate, limits, which tokens it touches."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from deft.objectives import CATALOG, ObjectiveOutput, TokenStats, get_objective, linear_objective

# log-probabilities from certain to hopeless, the confident conflict among them
LOGP = torch.tensor([-1e-6, -0.01, -0.3, -1.0, -2.5, -7.0, -30.0], dtype=torch.float64)


def stats_of(logp: Tensor) -> TokenStats:
    """Statistics in which the gate has to be read off logp and p alone."""
    return TokenStats(
        logp=logp,
        p=logp.exp(),
        mask=torch.ones_like(logp, dtype=torch.bool),
        concentration=torch.linspace(0.05, 0.95, len(logp), dtype=logp.dtype),
        entropy=torch.linspace(3.0, 0.1, len(logp), dtype=logp.dtype),
        entropy_top=torch.linspace(2.9, 0.0, len(logp), dtype=logp.dtype),
        divergence=torch.linspace(0.1, 2.0, len(logp), dtype=logp.dtype),
        example=torch.tensor([0, 0, 0, 1, 1, 2, 2])[: len(logp)],
        position=torch.tensor([0, 1, 2, 0, 1, 0, 1])[: len(logp)],
        reference_logp=logp - torch.linspace(-0.6, 0.9, len(logp), dtype=logp.dtype),
        initial_logp=logp + torch.linspace(0.4, -0.4, len(logp), dtype=logp.dtype) ** 2,
        old_logp=logp - torch.linspace(-0.5, 0.5, len(logp), dtype=logp.dtype),
    )


def apply(name: str, logp: Tensor = LOGP) -> ObjectiveOutput:
    return get_objective(name)(stats_of(logp))


def gate_by_autograd(value_of: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """−∂value/∂logp; value_of gets logp with a gradient and without."""
    logp = LOGP.clone().requires_grad_()
    value_of(logp, LOGP).sum().backward()
    assert logp.grad is not None
    return -logp.grad


def cayley_focus(p: Tensor) -> Tensor:
    floor = 0.5 * p.mean()
    distance = 1 - p + 1e-8
    return (floor + (1 - floor) * (1 - distance) / (1 + distance + 1e-8)).clamp(0.001, 1)


def deformed(alpha: Tensor | float, epsilon: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda logp, _: -((alpha * logp).exp() - 1) / (alpha + epsilon)


def polylog_exponent(logp: Tensor, beta: float, least: float, most: float) -> Tensor:
    return (-(logp + STATS.require("entropy")) / beta).exp().clamp(least, most)


def example_means(column: Tensor) -> Tensor:
    """Means over the examples of tokens 0 to 2, 3 and 4, 5 and 6."""
    return torch.cat([part.mean().expand(len(part)) for part in column.split([3, 2, 2])])


def median_loss(logp: Tensor) -> Tensor:
    return torch.stack([-part.mean() for part in logp.split([3, 2, 2])]).median()


STATS = stats_of(LOGP)
REFERENCE, OLD = STATS.require("reference_logp"), STATS.require("old_logp")
C, H20, D = (STATS.require(name) for name in ("concentration", "entropy_top", "divergence"))
# The defining expression of every objective, as its paper has it: (logp, sg(logp)) → value.
DEFINITIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "original": lambda logp, _: -logp,
    "p": lambda logp, _: 1 - logp.exp(),
    "GeneralFamily-0.5": deformed(0.5, 0.0),
    "GeneralFamily--0.3": deformed(-0.3, 0.0),
    "Cayley_Trans": deformed(cayley_focus(LOGP.exp()), 1e-8),
    "DEFT": deformed(C, 1e-6),
    "DEFT_exact": deformed(C, 0.0),
    "OnlyTopP-0.3": lambda logp, sg: (1 - logp.exp()) * (sg.exp() >= 0.3),
    "OnlyBottomP-0.3": lambda logp, sg: (1 - logp.exp()) * (sg.exp() <= 0.3),
    "OnlyTopLogP-0.3": lambda logp, sg: -logp * (sg.exp() >= 0.3),
    "OnlyBottomLogP-0.3": lambda logp, sg: -logp * (sg.exp() <= 0.3),
    "TopQuantileP-0.4": lambda logp, sg: (1 - logp.exp()) * (torch.arange(7) < 3),
    "BottomQuantileP-0.4": lambda logp, sg: (1 - logp.exp()) * (torch.arange(7) > 3),
    "TopQuantileLogP-0.4": lambda logp, sg: -logp * (torch.arange(7) < 3),
    "BottomQuantileLogP-0.4": lambda logp, sg: -logp * (torch.arange(7) > 3),
    "DFT": lambda logp, sg: -sg.exp() * logp,
    "DFT_floor": lambda logp, sg: -sg.exp().clamp(min=0.1) * logp,
    "EAFT": lambda logp, _: -(H20 / 3.0) * logp,
    "EAFT-2": lambda logp, _: -((H20 / 3.0) ** 2) * logp,
    "EAFT_axolotl": lambda logp, _: -H20 * logp,
    "EAFT_axolotl(a=2,k=7)": lambda logp, _: -(H20**2) * logp,
    "IDFT": lambda logp, sg: -((logp.exp() ** polylog_exponent(sg, 1.0, 0.1, 2.0)) * logp),
    "IDFT(beta=0.5,gamma_max=3)": lambda logp, sg: (
        -((logp.exp() ** polylog_exponent(sg, 0.5, 0.1, 3.0)) * logp)
    ),
    "ProFit": lambda logp, sg: -logp * (sg.exp() >= 0.3),
    "ProFit(q=0.01,most=0.8)": lambda logp, sg: -logp * ((sg.exp() >= 0.01) & (sg.exp() <= 0.8)),
    "TALR": lambda logp, sg: -(sg.exp() ** (1 / median_loss(sg))).clamp(min=0.01) * logp,
    "iwSFT": lambda logp, sg: -example_means(sg - REFERENCE).exp().clamp(0, 16) * logp,
    "iwSFT(temperature=2,high=1.5)": lambda logp, sg: (
        -(2 * example_means(sg - REFERENCE)).exp().clamp(0, 1.5) * logp
    ),
    "iwSFT_token": lambda logp, sg: -(sg - REFERENCE).exp().clamp(0.2, 1.8) * logp,
    "PSFT": lambda logp, _: -torch.minimum((logp - OLD).exp(), (logp - OLD).exp().clamp(0.8, 1.28)),
    "TokenCleaning": lambda logp, _: -logp * torch.tensor([1, 0, 0, 1, 0, 1, 0]),
    "TokenCleaning-1": lambda logp, _: -logp,
    "CHORD": lambda logp, sg: -sg.exp() * (1 - sg.exp()) * logp,
    "Focal": lambda logp, _: -((1 - logp.exp()) ** 2) * logp,
    "Focal-0.5": lambda logp, _: -((1 - logp.exp()) ** 0.5) * logp,
    "LabelSmoothing-0.2": lambda logp, _: -0.8 * logp + 0.2 * D,
    "GEM": lambda logp, _: -logp - D,
    "ASFT": lambda logp, sg: -sg.exp() * logp + 0.1 * D,
    "ASFT_reverse": lambda logp, sg: -sg.exp() * logp + 0.1 * D,
    "SFT_KL": lambda logp, _: -logp + 0.1 * D,
    "SFT_KL_reverse-2": lambda logp, _: -logp + 2 * D,
}


@pytest.mark.parametrize("name", DEFINITIONS)
def test_value_and_gate_are_those_of_the_defining_expression(name: str) -> None:
    output = apply(name)
    assert_close(output.value, DEFINITIONS[name](LOGP, LOGP), rtol=1e-9, atol=1e-12)
    assert_close(output.gate, gate_by_autograd(DEFINITIONS[name]), rtol=1e-6, atol=1e-9)


def test_every_objective_has_a_defining_expression_here() -> None:
    assert {get_objective(name).spec.name for name in DEFINITIONS} == set(CATALOG)


@pytest.mark.parametrize("name", CATALOG)
def test_catalog_schema_and_implementation_agree(name: str) -> None:
    info = CATALOG[name]
    objective = get_objective(info.example)
    parameters = [
        parameter
        for parameter in inspect.signature(objective.function).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    assert [parameter.name for parameter in parameters] == list(info.parameters.model_fields)
    # Defaults live in the schema alone.
    assert all(parameter.default is inspect.Parameter.empty for parameter in parameters)
    assert inspect.getdoc(objective.function)
    output = objective(stats_of(LOGP))
    assert (output.keep is not None) == objective.drops_tokens
    assert (output.mix is not None) == (objective.target is not None)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_an_objective_reads_only_the_statistics_it_declares(name: str) -> None:
    objective = get_objective(name)
    needed = {key: getattr(STATS, key) for key in objective.needs | objective.context}
    if objective.target is not None:
        needed["divergence"] = D
    bare = TokenStats(logp=LOGP, p=LOGP.exp(), mask=torch.ones(7, dtype=torch.bool), **needed)
    assert_close(objective(bare).value, apply(name).value)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_token_local_means_what_it_says(name: str) -> None:
    objective = get_objective(name)
    whole, alone = objective(STATS), objective(STATS.rows(slice(2, 3)))
    if objective.token_local:
        assert_close(whole.value[2:3], alone.value)
        assert_close(whole.gate[2:3], alone.gate)


@pytest.mark.parametrize(
    ("name", "limit", "tolerance"),
    [
        ("GeneralFamily-1e-12", "original", 1e-9),
        ("GeneralFamily--1e-12", "original", 1e-9),
        ("GeneralFamily-1", "p", 1e-12),
        ("OnlyTopP-0", "p", 1e-12),
        ("OnlyBottomP-1", "p", 1e-12),
        ("OnlyTopLogP-0", "original", 1e-12),
        ("OnlyBottomLogP-1", "original", 1e-12),
        ("TopQuantileP-1", "p", 1e-12),
        ("BottomQuantileLogP-1", "original", 1e-12),
        ("DFT_floor-0", "DFT", 1e-12),
        ("DFT_floor-1", "original", 1e-12),
        ("EAFT-0", "original", 1e-12),
        ("Focal-0", "original", 1e-12),
        ("LabelSmoothing-0", "original", 1e-12),
        ("ASFT-0", "DFT", 1e-12),
        ("SFT_KL-0", "original", 1e-12),
    ],
)
def test_limits(name: str, limit: str, tolerance: float) -> None:
    assert_close(apply(name).value, apply(limit).value, rtol=tolerance, atol=tolerance)
    assert_close(apply(name).gate, apply(limit).gate, rtol=tolerance, atol=tolerance)


def test_talr_takes_the_lower_of_two_middle_losses() -> None:
    logp = torch.tensor([-3.0, -1.0, -2.0, -4.0], dtype=torch.float64)
    stats = dataclasses.replace(stats_of(logp), example=torch.arange(4))
    assert_close(get_objective("TALR")(stats).gate, (logp / 2).exp())


def test_small_exponents_keep_their_digits_in_float32() -> None:
    logp = LOGP.float()
    assert_close(apply("GeneralFamily-1e-6", logp).value, -logp, rtol=1e-4, atol=0)


def test_p_and_dft_share_their_gate() -> None:
    assert_close(apply("p").gate, apply("DFT").gate)


def test_axolotl_weighs_three_times_what_eaft_does() -> None:
    assert_close(apply("EAFT_axolotl").gate, 3 * apply("EAFT").gate)


def test_deft_damps_a_confident_conflict_and_learns_an_open_question() -> None:
    logp = torch.tensor([-6.0, -6.0])
    stats = TokenStats(
        logp=logp,
        p=logp.exp(),
        mask=torch.ones(2, dtype=torch.bool),
        concentration=torch.tensor([0.95, 0.01]),
    )
    conflict, question = get_objective("DEFT")(stats).gate.tolist()
    assert conflict == pytest.approx(0.95 / (0.95 + 1e-6) * math.exp(-5.7), rel=1e-5)
    assert question == pytest.approx(math.exp(-0.06), rel=1e-3)


def test_cayley_takes_the_step_mean_instead_of_its_own_where_given() -> None:
    cayley = get_objective("Cayley_Trans")
    whole = cayley(STATS)
    part = STATS.rows(slice(0, 3))
    informed = TokenStats(logp=part.logp, p=part.p, mask=part.mask, step_mean_p=LOGP.exp().mean())
    assert_close(cayley(informed).gate, whole.gate[:3])
    assert not torch.allclose(cayley(part).gate, whole.gate[:3])


def test_batch_statistics_ignore_positions_without_a_target() -> None:
    mask = torch.tensor([True] * 4 + [False] * 3)
    stats = TokenStats(logp=LOGP, p=LOGP.exp(), mask=mask)
    for name in ("Cayley_Trans", "TopQuantileP-0.5", "BottomQuantileLogP-0.5"):
        masked = get_objective(name)(stats)
        alone = get_objective(name)(STATS.rows(slice(0, 4)))
        assert_close(masked.gate[:4], alone.gate)
        assert masked.keep is None or not masked.keep[4:].any()


def my_objective(stats: TokenStats, *, beta: float = 1.0) -> ObjectiveOutput:
    """Compute a third party's objective that is not declared."""
    return ObjectiveOutput(value=-beta * stats.logp, gate=torch.full_like(stats.logp, beta))


def test_an_objective_by_import_path_works_at_once() -> None:
    hidden, weight = torch.randn(5, 4), torch.randn(9, 4)
    labels = torch.arange(5)
    mine = linear_objective(hidden, weight, labels, f"{__name__}:my_objective(beta=2)")
    assert_close(mine.loss, 2 * linear_objective(hidden, weight, labels, "original").loss)
    # What declares nothing is trusted with nothing.
    assert not get_objective(f"{__name__}:my_objective").token_local


@pytest.mark.parametrize("path", ["no_such_module:mine", f"{__name__}:no_such", f"{__name__}:C"])
def test_an_import_path_that_leads_nowhere_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="objective '"):
        get_objective(path)


def test_a_statistic_that_was_not_declared_is_refused() -> None:
    with pytest.raises(ValueError, match="was not computed"):
        get_objective("DEFT")(TokenStats(LOGP, LOGP.exp(), LOGP < 0))
