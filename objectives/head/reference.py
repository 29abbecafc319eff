"""The `reference` backend: materialized logits, formulas as they stand in the papers.

Slow and large on purpose. With float64 inputs it is what every other backend is tested against.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deft.objectives.base import Objective, Target, TokenStats
from deft.objectives.head.interface import (
    HeadInputs,
    HeadResult,
    Wanted,
    accumulation_dtype,
    apply_objective,
)

# Rows of the weight that are converted to the accumulation dtype at a time.
_CONVERTED_ROWS = 4096


@torch.no_grad()
def reference_head(inputs: HeadInputs, objective: Objective, wanted: Wanted) -> HeadResult:
    """Compute value, gate and gradients from the whole [M, V] matrix of logits."""
    dtype = accumulation_dtype(inputs.hidden.dtype)
    hidden = inputs.hidden.to(dtype)
    rows = torch.arange(len(inputs.labels), device=hidden.device)

    linear = _linear(hidden, inputs.weight, inputs.bias)
    logits = linear if inputs.softcap is None else soft_cap(linear, inputs.softcap)
    log_probs = torch.log_softmax(logits, dim=-1)
    probs = log_probs.exp()
    logp = log_probs[rows, inputs.labels]
    logp = logp.masked_fill(~logits.isfinite().all(dim=-1), torch.nan)

    divergence = target = None
    if objective.target is not None:
        divergence, target = _divergence(objective.target, logits, log_probs, inputs)
    stats = TokenStats(
        logp=logp,
        p=logp.exp(),
        mask=torch.ones_like(logp, dtype=torch.bool),
        concentration=probs.square().sum(-1) if "concentration" in wanted.statistics else None,
        entropy=_entropy(log_probs) if "entropy" in wanted.statistics else None,
        entropy_top=(
            _entropy(
                logits.topk(min(inputs.top_k, logits.shape[-1]), dim=-1).values.log_softmax(-1)
            )
            if "entropy_top" in wanted.statistics
            else None
        ),
        top_logp=log_probs.amax(-1) if "top_logp" in wanted.statistics else None,
        divergence=divergence,
        step_mean_p=inputs.step_mean_p,
    )
    output = apply_objective(objective, stats, inputs.context)
    if not wanted.gradients:
        return HeadResult(stats, output, None, None, None)

    weight = inputs.weight.to(dtype)
    error = probs
    error[rows, inputs.labels] -= 1
    error = output.gate[:, None] * error
    if target is not None and output.mix is not None:
        error += output.mix[:, None] * (log_probs.exp() - target)
    if inputs.softcap is not None:
        error *= 1 - (logits / inputs.softcap).square()
    return HeadResult(
        stats,
        output,
        grad_hidden=error @ weight if wanted.hidden else None,
        grad_weight=error.T @ hidden if wanted.weight else None,
        grad_bias=error.sum(0) if wanted.bias else None,
    )


def _linear(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute hidden @ weight.T + bias in the dtype of hidden."""
    # A weight that must be converted is so in parts: this backend also verifies a few rows of a
    # training step, where a float32 copy of the whole weight would be the largest tensor.
    rows = len(weight) if weight.dtype == hidden.dtype else _CONVERTED_ROWS
    logits = torch.cat([hidden @ part.to(hidden.dtype).T for part in weight.split(rows)], dim=-1)
    return logits if bias is None else logits + bias.to(hidden.dtype)


def soft_cap(logits: Tensor, cap: float) -> Tensor:
    """Squash logits to cap · tanh(logits / cap), which keeps them within ±cap."""
    return cap * torch.tanh(logits / cap)


def _entropy(log_probs: Tensor) -> Tensor:
    return -(log_probs.exp() * log_probs).sum(-1)


def _divergence(
    target: Target, logits: Tensor, log_probs: Tensor, inputs: HeadInputs
) -> tuple[Tensor, Tensor]:
    """Compute D(T, P) [M] and T [M, V], such that the gradient of D in the logits is P − T."""
    if target.kind == "uniform":
        return -log_probs.mean(-1), torch.full_like(logits, 1 / logits.shape[-1])
    if target.kind == "tempered":
        tempered = torch.softmax(logits / target.temperature, dim=-1)
        return -(tempered * log_probs).sum(-1), tempered
    log_reference = torch.log_softmax(_reference_logits(inputs, logits.dtype), dim=-1)
    if target.kind == "reference":
        return (log_reference.exp() * (log_reference - log_probs)).sum(-1), log_reference.exp()
    # KL[P ‖ R] has the logit gradient P · (log(P/R) − KL), which is P − T for this T.
    log_ratio = log_probs - log_reference
    probs = log_probs.exp()
    divergence = (probs * log_ratio).sum(-1)
    return divergence, probs * (1 - log_ratio + divergence[:, None])


def _reference_logits(inputs: HeadInputs, dtype: torch.dtype) -> Tensor:
    """Compute the frozen model's logits [M, V]."""
    assert inputs.reference is not None
    hidden, weight, bias = inputs.reference
    logits = _linear(hidden.to(dtype), weight, bias)
    return logits if inputs.softcap is None else soft_cap(logits, inputs.softcap)
