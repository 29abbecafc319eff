"""How a model turns the product of hidden states and head into logits: as it is, scaled, capped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from deft.objectives.head.softmax_stats import soft_cap_
from deft.workers.modeling.lora import unadapted

_SCALES = ("logits_scaling", "logit_scale", "lm_head_multiplier", "output_multiplier")
"""Settings that hold a factor of the logits; some models multiply by theirs, others divide."""

_SOFT_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""Settings that hold the bound of the logits."""


class LogitTransform(NamedTuple):
    """logits = softcap · tanh(head(scale · hidden) / softcap), or head(scale · hidden)."""

    scale: float = 1.0
    softcap: float | None = None

    def scaled(self, hidden: torch.Tensor) -> torch.Tensor:
        """Scale hidden states [..., D]; the head turns them into logits before the cap."""
        return hidden if self.scale == 1 else hidden * self.scale


@torch.no_grad()
def logit_transform(model: PreTrainedModel) -> LogitTransform:
    """Find how ``model`` gets from hidden states to logits, from its settings and its forward.

    The layers below the head are not run: they are made to return random hidden states.

    Raises:
        ValueError: its logits are something else than a known transform of its head's product, or
            not finite.
    """
    head, name = model.get_output_embeddings(), type(model).__name__
    linear = unadapted(head)
    if not isinstance(linear, nn.Linear) or layers_below_head(model) is model:
        raise ValueError(f"{name} has no linear head over layers of its own")
    weight = linear.weight
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, 4, weight.shape[1], generator=generator).to(weight)
    logits = _logits_of(model, hidden).float()
    if not bool(logits.isfinite().all()):
        raise ValueError(f"{name}: the weights of its head are not finite")

    config = model.config.get_text_config()
    caps = (getattr(config, name, None) for name in _SOFT_CAPS)
    softcap = next((float(cap) for cap in caps if cap), None)
    settings = [getattr(config, name, None) for name in _SCALES]
    scales = [float(value) for value in settings if value]
    candidates = [
        LogitTransform(scale, softcap) for scale in (1.0, *scales, *(1 / scale for scale in scales))
    ]

    def error(transform: LogitTransform) -> float:
        expected = head(transform.scaled(hidden)).float()
        if softcap is not None:
            soft_cap_(expected, softcap, None)
        if expected.shape != logits.shape:
            return float("inf")
        largest = logits.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
        return float((expected - logits).abs().max() / largest)

    best = min(candidates, key=error)
    tolerance = 1e-4 if weight.dtype == torch.float32 else 3e-2
    if not error(best) <= tolerance:
        raise ValueError(
            f"{name} makes its logits in a way of its own, which no objective would see; known are "
            f"a linear head, a soft cap given as {', '.join(_SOFT_CAPS)}, and a factor given as "
            f"{', '.join(_SCALES)}"
        )
    return best


def layers_below_head(model: PreTrainedModel) -> nn.Module:
    """Return the module that computes the last hidden states."""
    layers: nn.Module = model.base_model
    if layers is model:  # a model whose prefix is that of another one
        layers = next((m for m in model.children() if isinstance(m, PreTrainedModel)), model)
    return layers


def _logits_of(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """Compute the logits [1, T, V] that ``model`` makes of last hidden states [1, T, D]."""
    tokens = torch.zeros(hidden.shape[:2], dtype=torch.int64, device=hidden.device)
    # Most models call the one, OPT the other; ModernBERT calls its head a decoder.
    layers = {layers_below_head(model), model.get_decoder()}
    layers -= {None, model, model.get_output_embeddings()}
    with _forward_replaced(layers, _LayersOutput(hidden)):
        logits: torch.Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits


@contextmanager
def _forward_replaced(modules: Iterable[nn.Module], output: Any) -> Iterator[None]:
    """Make ``modules`` return ``output`` instead of being run, while the block lasts."""
    earlier = {module: vars(module).get("forward") for module in modules}
    for module in earlier:
        module.forward = lambda *_, **__: output
    try:
        yield
    finally:
        for module, forward in earlier.items():
            if forward is None:
                del module.forward
            else:
                module.forward = forward


class _LayersOutput:
    """What layers return, by attribute or position; all but the hidden states is None."""

    def __init__(self, hidden: torch.Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.last_hidden_state

    def __getattr__(self, name: str) -> Any:
        return None
