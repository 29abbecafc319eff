"""Low-rank adapters (LoRA) by peft, injected into a model that keeps its class and its names.

Linear layers (`nn.Linear` and the `Conv1D` of GPT-2), embeddings, and the stacked weights of the
experts of a mixture can be adapted. peft computes every update that is merged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from copy import copy
from difflib import get_close_matches
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Embedding, LoraLayer, ParamWrapper
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from deft.workers.common.compat import disable_adapters
from deft.workers.spec import ALL_LINEAR, LoraSpec

_ADAPTER = "default"

_RENAMED_BY_PEFT = ("gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")
"""Layers that peft takes for parts of the experts, whatever they are, in a model that has experts:
these are adapted through their weight instead."""

MAX_NAMED = 20
"""Modules that a message lists."""


class LowRankUpdate(NamedTuple):
    """scaling · up @ down, which is added to a weight."""

    down: nn.Parameter
    """[R, in]."""
    up: nn.Parameter
    """[out, R]."""
    scaling: float

    def delta(self) -> torch.Tensor:
        """Compute the update [out, in]."""
        return self.scaling * (self.up @ self.down)

    def add_to(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the adapted weight [out, in], in the dtype of ``weight`` [out, in]."""
        return weight + self.delta().to(weight.dtype)


class Targets(NamedTuple):
    """Full names of what is adapted."""

    modules: set[str]
    """Linear layers and embeddings."""
    parameters: set[str]
    """Weights of modules that are neither."""


def add_adapters(
    model: PreTrainedModel,
    spec: LoraSpec,
    *,
    zero_stage: int = 0,
    unused: Set[str] = frozenset(),
) -> None:
    """Freeze ``model`` and put trainable adapters into it.

    Args:
        model: to adapt.
        spec: what to adapt, and how.
        zero_stage: of the training run.
        unused: modules that the model does not call; adapters on them would do nothing.

    Raises:
        ValueError: a target matches nothing in it, or cannot be adapted or merged.
    """
    targets = resolve_targets(model, spec.targets, unused)
    _require_untied(model, targets)
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        target_modules=sorted(targets.modules),
        target_parameters=sorted(targets.parameters) or None,
        task_type="CAUSAL_LM",
        base_model_name_or_path=model.config.name_or_path or None,
        fan_in_fan_out=any(isinstance(model.get_submodule(n), Conv1D) for n in targets.modules),
    )
    if spec.dropout and targets.parameters:
        raise ValueError(
            "training.lora.dropout: the experts of a mixture (such as "
            f"{min(targets.parameters)}) are adapted without dropout only; set it to 0 or leave "
            "them out of training.lora.targets"
        )
    unsharded = targets.parameters | {
        name for name in targets.modules if isinstance(model.get_submodule(name), nn.Embedding)
    }
    if unsharded and zero_stage == 3:
        raise ValueError(
            f"training.lora.targets: {min(unsharded)} cannot be adapted under ZeRO stage 3, which "
            "gathers the weights of linear layers only; set training.zero_stage to 2"
        )
    try:
        inject_adapter_in_model(config, model)
    except ValueError as error:
        raise ValueError(
            f"training.lora.targets: peft refuses: {str(error).split('. ')[0]}; name the layers to "
            "adapt without it"
        ) from error


def resolve_targets(
    model: PreTrainedModel, names: tuple[str, ...], unused: Set[str] = frozenset()
) -> Targets:
    """Find what ``names`` stand for: whole names, or their last parts, or `all-linear`.

    Raises:
        ValueError: one of them matches nothing; the message says which names come near.
    """
    head = model.get_output_embeddings()
    layers = {
        name: module
        for name, module in model.named_modules()
        if _looks_up_ids(module) or _is_plain_linear(module)
    }
    experts = {name for name in _expert_weights(model) if name.rpartition(".")[0] not in unused}
    # The objective stands for the head, which is never called itself.
    head_names = {name for name, module in layers.items() if module is head}
    chosen: set[str] = set()
    for target in names:
        if target == ALL_LINEAR:
            chosen |= experts
            chosen |= {
                name
                for name, module in layers.items()
                if module is not head
                and not isinstance(module, nn.Embedding)
                and name not in unused
            }
            continue
        matching = {
            name for name in (*layers, *experts) if name == target or name.endswith(f".{target}")
        }
        if not matching:
            raise ValueError(_unknown_target(target, {*layers, *experts}))
        if idle := matching & unused - head_names:
            raise ValueError(
                f"training.lora.targets: {target} cannot be adapted: the model does not call "
                f"{min(idle)}, it reads its weight or leaves it out"
            )
        chosen |= matching
    if not chosen:
        raise ValueError("training.lora.targets: the model has no linear layer")
    if not experts:
        return Targets(chosen, set())
    renamed = {name for name in chosen - experts if name.rpartition(".")[2] in _RENAMED_BY_PEFT}
    parameters = (chosen & experts) | {f"{name}.weight" for name in renamed}
    return Targets(chosen - experts - renamed, parameters)


def _looks_up_ids(module: nn.Module) -> bool:
    """Tell whether a module is an embedding of what it is given; some work out positions first."""
    takes = signature(type(module).forward).parameters
    return isinstance(module, nn.Embedding) and list(takes)[1:] in (["input"], ["input_ids"])


def _is_plain_linear(module: nn.Module) -> bool:
    """Tell whether a module multiplies by its weight and does nothing else, as a router may."""
    if not isinstance(module, nn.Linear | Conv1D):
        return False
    if type(module).forward in (nn.Linear.forward, Conv1D.forward):
        return True
    inputs = torch.randn(2, module.weight.shape[1], generator=torch.Generator().manual_seed(0))
    inputs = inputs.to(module.weight)
    with torch.no_grad():
        output = module(inputs)
        expected = nn.functional.linear(inputs, module.weight, module.bias)
    if not isinstance(output, torch.Tensor) or output.shape != expected.shape:
        return False
    return torch.allclose(output, expected, rtol=1e-2, atol=1e-2)


def _expert_weights(model: PreTrainedModel) -> Iterator[str]:
    """Find stacked weights [experts, …, …], which belong to no layer of PyTorch's."""
    for owner, module in model.named_modules():
        if "expert" not in f"{owner} {type(module).__name__}".lower():
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 3 and min(parameter.shape) > 1:
                yield f"{owner}.{name}"


def _unknown_target(target: str, names: set[str]) -> str:
    leaves = {name.rpartition(".")[2] for name in names}
    near = get_close_matches(target, leaves, n=3)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    listed = ", ".join(sorted(leaves)[:MAX_NAMED])
    return (
        f"training.lora.targets: no module is called {target}; there are: {listed}.{hint} "
        f"{ALL_LINEAR} stands for all linear layers but the head."
    )


def _require_untied(model: PreTrainedModel, targets: Targets) -> None:
    """Raise ValueError if a head or embedding is adapted that is the other one as well."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is not embedding.weight:
        return
    for name in targets.modules:
        module = model.get_submodule(name)
        if module is head or module is embedding:
            other = "embedding" if module is head else "head"
            raise ValueError(
                f"training.lora.targets: {name.rpartition('.')[2]} is tied to the {other} in this "
                "model, so it cannot be adapted on its own"
            )


def unadapted(module: nn.Module) -> nn.Module:
    """Return the layer below an adapter; a layer without adapter itself."""
    return module.get_base_layer() if isinstance(module, LoraLayer) else module


def low_rank_update(module: nn.Module) -> LowRankUpdate | None:
    """Return the update of an adapted linear layer; None for a layer without adapter."""
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


class MergedTensor(NamedTuple):
    """A parameter or buffer of the model without adapters, in which they have been absorbed."""

    name: str
    parts: list[nn.Parameter]
    """Parameters that must be gathered to compute it."""
    value: Callable[[], torch.Tensor]


def merged_tensors(model: PreTrainedModel) -> Iterator[MergedTensor]:
    """Yield the persistent state of ``model``, tied parameters once, adapters added to it."""
    updates = dict(_updates(model))
    adapters = {id(part) for update in updates.values() for part in update.parts}
    for full_name, parameter in model.named_parameters():
        if id(parameter) in adapters:
            continue
        update = updates.get(id(parameter))
        name = _name_without_adapters(full_name)
        if update is None:
            yield MergedTensor(name, [parameter], parameter.detach)
        else:
            yield MergedTensor(name, [parameter, *update.parts], partial(update.add_to, parameter))
    for full_name, buffer in persistent_buffers(model):
        yield MergedTensor(_name_without_adapters(full_name), [], buffer.detach)


def persistent_buffers(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the buffers that belong into a checkpoint, such as the bias of an expert's score."""
    stored = model.state_dict(keep_vars=True).keys()
    return ((name, buffer) for name, buffer in model.named_buffers() if name in stored)


def adapter_tensors(model: PreTrainedModel) -> Iterator[MergedTensor]:
    """Yield the adapters alone, under the names by which peft loads them."""
    adapters = {id(part) for _, update in _updates(model) for part in update.parts}
    for full_name, parameter in model.named_parameters():
        if id(parameter) in adapters:
            name = full_name.replace(f".{_ADAPTER}", "")
            if name.endswith((".lora_A", ".lora_B")):  # the objective's head owns them itself
                name += ".weight"
            yield MergedTensor(f"base_model.model.{name}", [parameter], parameter.detach)


def save_adapter(model: PreTrainedModel, tensors: dict[str, torch.Tensor], directory: Path) -> None:
    """Write ``tensors`` and their configuration as `PeftModel.from_pretrained` reads them."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    config = copy(model.peft_config[_ADAPTER])
    config.inference_mode = True
    config.save_pretrained(directory)


def _name_without_adapters(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != "base_layer")


class _Update(NamedTuple):
    """The update of one parameter, by whichever layer adapts it."""

    parts: list[nn.Parameter]
    delta: Callable[[], torch.Tensor]

    def add_to(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.delta().to(weight.dtype)


def _updates(model: nn.Module) -> Iterator[tuple[int, _Update]]:
    """Yield the updates of all adapted parameters, by the parameter's identity."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            weight = (
                module.get_param()
                if isinstance(module, ParamWrapper)
                else module.get_base_layer().weight
            )
            yield id(weight), _Update(_factors(module), partial(module.get_delta_weight, _ADAPTER))
        elif isinstance(owned := getattr(module, "update", None), LowRankUpdate):
            yield id(module.weight), _Update([owned.down, owned.up], owned.delta)


def _factors(layer: Any) -> list[nn.Parameter]:
    if isinstance(layer, Embedding):
        return [layer.lora_embedding_A[_ADAPTER], layer.lora_embedding_B[_ADAPTER]]
    return [layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight]
