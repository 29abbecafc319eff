"""Low-rank adapters (LoRA) by peft, injected into a model that keeps its class and its names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.utils.error import NoMatchingPeftModuleError
from torch import nn
from transformers import PreTrainedModel

from deft.workers.common.compat import disable_adapters
from deft.workers.spec import LoraSpec

_ADAPTER = "default"


class LowRankUpdate(NamedTuple):
    """scaling · up @ down, which is added to a weight."""

    down: nn.Parameter
    """[R, in]."""
    up: nn.Parameter
    """[out, R]."""
    scaling: float

    def add_to(self, weight: torch.Tensor) -> torch.Tensor:
        """The adapted weight [out, in], in the dtype of ``weight`` [out, in]."""
        return weight + (self.scaling * (self.up @ self.down)).to(weight.dtype)


def add_adapters(model: PreTrainedModel, spec: LoraSpec) -> None:
    """Freeze ``model`` and put trainable adapters into it.

    Raises:
        ValueError: it has no module of such a name, or its head is tied to the embedding and named.
    """
    if "lm_head" in spec.targets and model.config.tie_word_embeddings:
        raise ValueError(
            "training.lora.targets: lm_head is tied to the embedding in this model, so it cannot "
            "be adapted on its own"
        )
    everything = spec.targets == ("all-linear",)
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        target_modules="all-linear" if everything else list(spec.targets),
    )
    names = {
        name.rpartition(".")[2] for name, module in model.named_modules() if _is_linear(module)
    }
    try:
        inject_adapter_in_model(config, model)
    except NoMatchingPeftModuleError:
        raise ValueError(
            f"training.lora.targets: no module is called {' or '.join(spec.targets)}; "
            f"there are: {', '.join(sorted(names))}"
        ) from None


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)


def unadapted(module: nn.Module) -> nn.Module:
    """The layer below an adapter; a layer without adapter itself."""
    return module.get_base_layer() if isinstance(module, LoraLayer) else module


def low_rank_update(module: nn.Module) -> LowRankUpdate | None:
    """The update of an adapted layer; None for a layer without adapter."""
    owned = getattr(module, "update", None)
    if isinstance(owned, LowRankUpdate):
        return owned
    if not isinstance(module, LoraLayer):
        return None
    down, up = module.lora_A[_ADAPTER].weight, module.lora_B[_ADAPTER].weight
    assert isinstance(down, nn.Parameter)
    assert isinstance(up, nn.Parameter)
    return LowRankUpdate(down, up, module.scaling[_ADAPTER])


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """Run the block with the model as it was before training."""
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        disable_adapters(layer, True)
    try:
        yield
    finally:
        for layer in layers:
            disable_adapters(layer, False)


class MergedParameter(NamedTuple):
    """A parameter of the model without adapters, in which they have been absorbed."""

    name: str
    parts: list[nn.Parameter]
    """What must be at hand to compute it."""
    value: Callable[[], torch.Tensor]


def merged_parameters(model: PreTrainedModel) -> Iterator[MergedParameter]:
    """The parameters of ``model``, tied ones once, each with its adapter added to it."""
    updates = {
        name: update
        for name, module in model.named_modules()
        for update in [low_rank_update(module)]
        if update is not None
    }
    low_rank = {id(part) for update in updates.values() for part in (update.down, update.up)}
    for full_name, parameter in model.named_parameters():
        if id(parameter) in low_rank:
            continue
        name = full_name.replace(".base_layer.", ".")
        owner, _, kind = name.rpartition(".")
        update = updates.get(owner) if kind == "weight" else None
        if update is None:
            yield MergedParameter(name, [parameter], parameter.detach)
        else:
            yield MergedParameter(
                name,
                [parameter, update.down, update.up],
                partial(update.add_to, parameter),
            )
