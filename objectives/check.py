"""Checks of an objective before it trains: value, gate, keep and mix on random statistics.

The head takes an objective's gates for its gradients and cannot see whether they are those of its
value, so a wrong gate would train something else without a word. Here the gate is compared with
−∂value/∂log p: by autograd through the function, or by finite differences where it leaves autograd.

What counts as held fixed, sg(·): every statistic but log p, and whatever is detached. For p, which
is a statistic of its own and a function of log p, both readings are accepted: −p · log p may have
the gate p, as in DFT, or p · (1 + log p).
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from deft.objectives.base import (
    CONTEXT,
    STATISTICS,
    Objective,
    ObjectiveOutput,
    TokenStats,
    get_objective,
)
from deft.objectives.spec import ObjectiveSpec
from deft.workers.common.names import describe_import_error

_TOKENS = 96
_VOCABULARY = 97
# Within these log-probabilities value and gate must be finite whatever the parameters.
_USUAL_LOGP = -20.0
# Agreement of the gate with the derivative: autograd in float64 is exact but for an author's
# epsilons and float32 constants; finite differences of a function that rounds to float32 are not.
_AUTOGRAD_TOLERANCE = 1e-3
_DIFFERENCES_TOLERANCE = 1e-2
_ABSOLUTE_TOLERANCE = 1e-6
_DIFFERENCE = 1e-4
# Means of p over an optimizer step: unknown, and known.
_STEP_MEANS = (None, 0.3)


def check_own_objective(spec: str | Mapping[str, Any] | ObjectiveSpec) -> None:
    """Load the objective of a run file, and check it if it is given by an import path.

    The catalog's objectives are checked by the tests.

    Raises:
        ValueError: it cannot be imported or used; one sentence says why.
    """
    try:
        objective = get_objective(spec)
        if objective.spec.info is None:
            check_objective(objective)
    except ValueError as error:
        raise ValueError(f"objective: {error}") from None


def check_objective(objective: Objective) -> None:
    """Check an objective on random statistics that cover the whole range.

    Raises:
        ValueError: it cannot be called, its output has a wrong form or is not finite, or its gate
            or mix is not the derivative of its value; one sentence says which, where, and what was
            expected.
    """
    if problems := find_problems(objective):
        raise ValueError(problems[0])


def find_problems(objective: Objective) -> list[str]:
    """Return what is wrong with an objective, one sentence each; see `check_objective`.

    An output of a wrong form is the only problem then: nothing else can be said of it.
    """
    problems: list[str] = []
    checks = [_check_finite, _check_token_local, _check_gate, _check_mix]
    try:
        _check_signature(objective)
        for step_mean_p in _STEP_MEANS:
            stats = random_statistics(objective, step_mean_p)
            output = _evaluate(objective, stats)
            for check in checks.copy():
                try:
                    check(objective, stats, output)
                except _RefusalError as refusal:
                    problems.append(str(refusal))
                    checks.remove(check)
            # A rank may have no target token in a micro-batch.
            _evaluate(objective, stats.rows(slice(0, 0)), situation="without target tokens, ")
    except _RefusalError as refusal:
        problems.append(str(refusal))
    return problems


def unread_statistics(objective: Objective) -> list[str]:
    """Return what an objective declares and does not read: its output is the same without it."""
    stats = random_statistics(objective, _STEP_MEANS[-1])
    output = _evaluate(objective, stats)
    unread = []
    for name in sorted((objective.needs | objective.context) - {"divergence", "weight"}):
        with suppress(Exception):
            without: dict[str, Any] = {name: None}
            others = objective(replace(stats, **without))
            if all(map(_is_same, output, others)):
                unread.append(name)
    return unread


def _is_same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)


class _RefusalError(ValueError):
    """An objective cannot be used; the message is one sentence."""


def _check_signature(objective: Objective) -> None:
    try:
        signature = inspect.signature(objective.function)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(None, **objective.spec.params)
    except TypeError as error:
        name = objective.spec.name.partition(":")[2]
        raise _refusal(
            objective, f"{error}; the function is {name}{signature}, called as {name}(stats, …)"
        ) from None


def random_statistics(
    objective: Objective, step_mean_p: float | None, dtype: torch.dtype = torch.float64
) -> TokenStats:
    """Draw statistics [N] of random predictions, from open to certain, and of extremes."""
    generator = torch.Generator().manual_seed(0)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    # Rows of logits whose spread runs from nearly uniform to nearly certain. Half of the targets
    # are the most probable token; the others are anything, confident conflicts among them.
    logits = (uniform(_TOKENS, _VOCABULARY) - 0.5) * torch.logspace(-1, 1.8, _TOKENS)[:, None]
    targets = (uniform(_TOKENS) * _VOCABULARY).long()
    targets[::2] = logits[::2].argmax(-1)
    log_probs = logits.log_softmax(-1)
    probs = log_probs.exp()
    top = logits.topk(min(objective.top_k, _VOCABULARY)).values.log_softmax(-1)
    drawn = {
        "logp": log_probs.gather(1, targets[:, None]).squeeze(1),
        "concentration": probs.square().sum(-1),
        "entropy": -(probs * log_probs).sum(-1),
        "entropy_top": -(top.exp() * top).sum(-1),
        "top_logp": log_probs.amax(-1),
    }
    # Certain and right, certain and wrong, hopeless, uniform over a large vocabulary.
    large = math.log(151_936)
    extremes = {
        "logp": (0.0, _USUAL_LOGP, -110.0, -large),
        "concentration": (1.0, 1.0, 1.0, math.exp(-large)),
        "entropy": (0.0, 0.0, 0.0, large),
        "entropy_top": (0.0, 0.0, 0.0, math.log(20)),
        "top_logp": (0.0, 0.0, 0.0, -large),
    }
    columns = {
        name: torch.cat([column, column.new_tensor(extremes[name])])
        for name, column in drawn.items()
    }
    logp = columns.pop("logp")
    stats = TokenStats(
        logp=logp,
        p=logp.exp(),
        mask=torch.ones_like(logp, dtype=torch.bool),
        # Only what the objective declares, as in the head.
        **{name: column for name, column in columns.items() if name in objective.needs},
        **_random_context(objective, logp, uniform),
        divergence=None if objective.target is None else 5 * uniform(len(logp)),
        step_mean_p=None if step_mean_p is None else logp.new_tensor(step_mean_p),
    )
    return _cast(stats, dtype)


def _random_context(
    objective: Objective, logp: Tensor, uniform: Callable[..., Tensor]
) -> dict[str, Tensor]:
    """Draw what the trainer hands in: examples of uneven length, other models near this one."""
    example = torch.arange(len(logp)) // 7
    columns = {"example": example, "position": torch.arange(len(logp)) - 7 * example}
    for name in ("reference_logp", "initial_logp", "old_logp"):
        columns[name] = (logp + uniform(len(logp)) - 0.5).clamp(max=0)
    columns["weight"] = 2 * uniform(len(logp))
    return {name: column for name, column in columns.items() if name in objective.context}


def _evaluate(objective: Objective, stats: TokenStats, *, situation: str = "") -> ObjectiveOutput:
    """Call the objective and check the form of what it returns."""
    handed = _map(stats, Tensor.clone)
    try:
        with torch.no_grad():
            output = objective(handed)
    except (Exception, SystemExit) as error:
        raise _refusal(objective, f"{situation}it raises {describe_import_error(error)}") from None
    for field in fields(TokenStats):
        before, after = getattr(stats, field.name), getattr(handed, field.name)
        if before is not None and not torch.equal(before, after):
            raise _refusal(objective, f"it changes stats.{field.name} in place; work on a copy")
    if not isinstance(output, ObjectiveOutput):
        raise _refusal(
            objective, f"it returns {type(output).__name__}; return an ObjectiveOutput(value, gate)"
        )
    for name, tensor in output._asdict().items():
        if tensor is None and name not in ("value", "gate"):
            continue
        if not isinstance(tensor, Tensor):
            raise _refusal(
                objective, f"{name} is {type(tensor).__name__}; return a tensor, one entry a token"
            )
        if tensor.shape != stats.logp.shape:
            raise _refusal(
                objective,
                f"{situation}{name} has the shape {list(tensor.shape)} for {len(stats.logp)} "
                "tokens; return one entry a token, without a mean or sum over them",
            )
        expected = torch.bool if name == "keep" else stats.logp.dtype
        # Constants of the usual dtype are no fault of an author's, and float64 is only for here.
        if tensor.dtype != expected and not (expected == torch.float64 and name != "keep"):
            raise _refusal(objective, f"{name} is {tensor.dtype}; return {expected}")
    _check_declaration(objective, output)
    return output


def _check_declaration(objective: Objective, output: ObjectiveOutput) -> None:
    if output.keep is not None and not objective.drops_tokens:
        raise _refusal(objective, "it returns keep; declare it by @objective(drops_tokens=True)")
    if output.mix is not None and objective.target is None:
        raise _refusal(
            objective, "it returns mix; declare the distribution by @objective(target=…)"
        )
    if output.mix is None and objective.target is not None:
        raise _refusal(objective, "it declares a target distribution; return its weight as mix")


def _check_finite(objective: Objective, stats: TokenStats, exact: ObjectiveOutput) -> None:
    """Check that value, gate and mix are finite wherever they can be, in float32 as in float64."""
    single = _cast(stats, torch.float32)
    rounded = _evaluate(objective, single)
    # A thousandth of the range is left to what is computed on the way.
    largest = torch.finfo(torch.float32).max / 1000
    for name in ("value", "gate", "mix"):
        in_float64, in_float32 = getattr(exact, name), getattr(rounded, name)
        if in_float64 is None:
            continue
        # p^α with a negative α overflows float32 for a hopeless token: that is its definition.
        # Where float64 shows a number that float32 could hold, infinity or NaN is a defect.
        bad = in_float64.isnan() | (~in_float64.isfinite() & (stats.logp >= _USUAL_LOGP))
        bad |= (in_float64.abs() < largest) & ~in_float32.isfinite()
        if exact.keep is not None and rounded.keep is not None:
            bad &= exact.keep & rounded.keep
        if bad.any():
            row = int(bad.nonzero()[0])
            raise _refusal(
                objective,
                f"{name} is {float(in_float32[row]):g} {_at(stats, row)}; it must be finite there",
            )


def _check_token_local(objective: Objective, stats: TokenStats, output: ObjectiveOutput) -> None:
    """Check that a token-local objective gives some rows what it gives them among all."""
    if not objective.token_local:
        return
    half = slice(0, len(stats.logp) // 2)
    alone = _evaluate(objective, stats.rows(half))
    for name, all_rows, some_rows in zip(output._fields, output.rows(half), alone, strict=True):
        if all_rows is None or some_rows is None:
            continue
        if not torch.allclose(all_rows.double(), some_rows.double(), rtol=1e-6, equal_nan=True):
            raise _refusal(
                objective,
                f"a token's {name} depends on other tokens; "
                "declare it by @objective(token_local=False)",
            )


def _check_gate(objective: Objective, stats: TokenStats, output: ObjectiveOutput) -> None:
    """Check that the gate is −∂value/∂log p with p held fixed, or with p following log p."""
    rows = stats.logp < -1e-6
    if output.keep is not None:
        rows &= output.keep
    gate = output.gate.double()
    readings = []
    for p_follows in (False, True):
        derivative, tolerance = _derivative(objective, stats, "logp", p_follows=p_follows)
        expected = -derivative
        compared = rows & expected.isfinite()
        excess = (gate - expected).abs() - tolerance * expected.abs() - _ABSOLUTE_TOLERANCE
        excess = excess.masked_fill(~compared, -math.inf)
        # A value of p alone would have no gradient at all if p were held fixed.
        if p_follows or bool(expected[compared].any()):
            readings.append((excess, expected))
    if any(bool((excess <= 0).all()) for excess, _ in readings):
        return
    excess, expected = min(readings, key=lambda reading: float(reading[0].clamp(min=0).sum()))
    row = int((excess / (expected.abs() + _ABSOLUTE_TOLERANCE)).argmax())
    raise _refusal(
        objective,
        f"gate is {float(gate[row]):.6g} where −∂value/∂log p is {float(expected[row]):.6g}"
        f"{_factor(gate, expected, rows)}, {_at(stats, row)}; return that derivative, and read "
        "what is held fixed off stats.p or detach it",
    )


def _check_mix(objective: Objective, stats: TokenStats, output: ObjectiveOutput) -> None:
    """Check that mix is ∂value/∂divergence."""
    if output.mix is None:
        return
    expected, tolerance = _derivative(objective, stats, "divergence", p_follows=False)
    mix = output.mix.double()
    excess = (mix - expected).abs() - tolerance * expected.abs() - _ABSOLUTE_TOLERANCE
    if output.keep is not None:
        excess = excess.masked_fill(~output.keep, -math.inf)
    row = int(excess.argmax())
    if excess[row] > 0:
        raise _refusal(
            objective,
            f"mix is {float(mix[row]):.6g} where ∂value/∂divergence is "
            f"{float(expected[row]):.6g}, {_at(stats, row)}; return that derivative",
        )


def _derivative(
    objective: Objective, stats: TokenStats, name: str, *, p_follows: bool
) -> tuple[Tensor, float]:
    """Differentiate Σ value over kept tokens in a statistic; also returns the tolerance."""
    # Autograd knows what is detached, so it comes first. It says nothing of a function that is
    # decorated with no_grad or goes through NumPy.
    variable = getattr(stats, name).clone().requires_grad_()
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            # `float(stats.p.mean())` is a way to hold the mean fixed.
            warnings.simplefilter("ignore")
            value = _kept_values(objective(_with(stats, name, variable, p_follows=p_follows)))
            if value.requires_grad:
                (gradient,) = torch.autograd.grad(value.sum(), variable, allow_unused=True)
                if gradient is not None:
                    return gradient, _AUTOGRAD_TOLERANCE
    except (RuntimeError, TypeError):
        pass
    difference = torch.zeros_like(stats.logp)
    everything = torch.ones_like(stats.mask)
    rows = [everything] if objective.token_local else torch.eye(len(everything)).bool().unbind()
    for perturbed in rows:
        step = _DIFFERENCE * perturbed
        with torch.no_grad():
            higher, lower = (
                _kept_values(
                    objective(_with(stats, name, getattr(stats, name) + sign * step, p_follows))
                )
                for sign in (1, -1)
            )
        change = (higher.double() - lower.double()) / (2 * _DIFFERENCE)
        difference += change if objective.token_local else change.nansum() * perturbed
    return difference, _DIFFERENCES_TOLERANCE


def _kept_values(output: ObjectiveOutput) -> Tensor:
    return output.value if output.keep is None else output.value * output.keep


def _with(stats: TokenStats, name: str, tensor: Tensor, p_follows: bool) -> TokenStats:
    """Replace a statistic in a copy, and p with it if p follows log p."""
    copied = _map(stats, Tensor.clone)
    if name == "logp" and p_follows:
        return replace(copied, logp=tensor, p=tensor.exp())
    return replace(copied, **{name: tensor})


def _map(stats: TokenStats, function: Callable[[Tensor], Tensor]) -> TokenStats:
    columns: dict[str, Any] = {
        field.name: None if column is None else function(column)
        for field in fields(TokenStats)
        for column in [getattr(stats, field.name)]
    }
    return TokenStats(**columns)


def _cast(stats: TokenStats, dtype: torch.dtype) -> TokenStats:
    return _map(stats, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)


def _factor(found: Tensor, expected: Tensor, rows: Tensor) -> str:
    """Say by which factor the gate is off, if it is one and the same everywhere."""
    telling = rows & (expected.abs() > 1e-3) & found.isfinite()
    ratios = found[telling] / expected[telling]
    if len(ratios) < 2 or float(ratios.abs().max()) == 0:
        return ""
    if float(ratios.max() - ratios.min()) > 1e-3 * float(ratios.abs().max()):
        return ""
    factor = float(ratios.mean())
    if abs(factor - 1) < 1e-3:
        return ""
    return " (the sign is wrong)" if abs(factor + 1) < 1e-3 else f" (a factor of {factor:.4g})"


def _at(stats: TokenStats, row: int) -> str:
    """Describe a token by its statistics."""
    shown = {"log p": stats.logp, "p": stats.p}
    for name in (*STATISTICS, *CONTEXT):
        column = getattr(stats, name)
        if column is not None:
            shown[name] = column
    shown |= {} if stats.step_mean_p is None else {"step_mean_p": stats.step_mean_p.expand(row + 1)}
    values = ", ".join(f"{name} = {float(column[row]):.6g}" for name, column in shown.items())
    return f"at a token with {values}"


def _refusal(objective: Objective, problem: str) -> _RefusalError:
    return _RefusalError(f"{objective.spec}: {problem}")
