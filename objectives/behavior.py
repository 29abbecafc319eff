"""What an objective does to tokens from hopeless to certain, and what it costs, without a model."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from deft.objectives.base import Objective, get_objective
from deft.objectives.check import random_statistics
from deft.objectives.gate_curves import CONFLICT, OPEN, statistics_at

PROBABILITIES = (1e-9, 1e-3, 0.1, 0.5, 0.9, 0.999, 1.0)
"""Probabilities of the target that behavior is shown at."""
LARGE_GATE = 10.0
"""Gate beyond which one token pulls harder than ten tokens of NLL, whose gate is 1."""
SMALL_GATE = 1e-3
"""Gate below which a token is as good as ignored."""
TIMED_TOKENS = 2**17
"""Tokens of one timed call."""
TIMED_CALLS = 5


@dataclass(frozen=True)
class TokenBehavior:
    """Value and gate at one kind of token."""

    p: float
    """Probability of the target."""
    rest: str
    """Where the rest of the probability lies."""
    value: float
    gate: float
    """0 where the token is dropped."""


def behavior(objective: Objective) -> list[TokenBehavior]:
    """Compute value and gate from hopeless to certain tokens.

    Returns:
        Nothing for an objective that reads other models or examples: p does not describe it.
    """
    if not objective.is_described_by_gate:
        return []
    rows = []
    p = torch.tensor(PROBABILITIES, dtype=torch.float64)
    for rest in (CONFLICT, OPEN):
        output = objective(statistics_at(objective, p, rest))
        keep = torch.ones_like(p) if output.keep is None else output.keep
        # Adding 0 makes a 0 of −0.
        columns = zip(p, output.value * keep + 0.0, output.gate * keep + 0.0, strict=True)
        rows += [TokenBehavior(float(p), rest, float(v), float(g)) for p, v, g in columns]
    return rows


def describe_limits(rows: list[TokenBehavior]) -> Iterator[str]:
    """Say in a sentence each what stands out about gates towards p = 0 and p = 1, and below 0."""
    by_p = {p: [row for row in rows if row.p == p] for p in PROBABILITIES}
    first, last = by_p[PROBABILITIES[0]], by_p[PROBABILITIES[-1]]
    for limit, tokens in (("p → 0", first), ("p → 1", last)):
        largest = max(tokens, key=lambda row: abs(row.gate))
        if abs(largest.gate) > LARGE_GATE:
            yield (
                f"{limit}: the gate is {largest.gate:.3g} {_at(largest)}, where NLL's is 1; a few "
                "such tokens may outweigh all others"
            )
    largest = max(first, key=lambda row: abs(row.gate))
    if abs(largest.gate) < SMALL_GATE:
        yield f"p → 0: the gate is {largest.gate:.3g} {_at(largest)}; such tokens are not learned"
    negative = min(rows, key=lambda row: row.gate)
    if negative.gate < 0:
        yield f"the gate is {negative.gate:.3g} {_at(negative)}: such tokens become less probable"


def _at(row: TokenBehavior) -> str:
    return f"at p = {row.p:g}, the rest on {row.rest}"


def seconds_per_million_tokens(objective: Objective) -> float:
    """Measure the objective's function alone, in float32 on the CPU: the median of some calls."""
    stats = random_statistics(objective, step_mean_p=0.3, dtype=torch.float32)
    stats = stats.rows(torch.arange(TIMED_TOKENS) % len(stats.logp))
    seconds = []
    with torch.no_grad():
        for _ in range(TIMED_CALLS):
            started = time.perf_counter()
            objective(stats)
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds) * 1e6 / TIMED_TOKENS


def compared_with_nll(objective: Objective) -> tuple[float, float]:
    """Return seconds per million tokens of an objective's function, and of NLL's beside it."""
    nll = seconds_per_million_tokens(get_objective("original"))
    return seconds_per_million_tokens(objective), nll
