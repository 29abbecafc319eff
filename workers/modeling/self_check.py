"""Whether a model, run the way training runs it, is still the model: a check before training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from deft.workers.common.compat import attention_of, calls_attention_functions
from deft.workers.modeling.attention import (
    FLASH_ATTN,
    first_line,
    padded_attention,
    remedy,
)
from deft.workers.modeling.logit_transform import logit_transform
from deft.workers.modeling.objective_model import target_statistics
from deft.workers.training.batches import collate

LENGTHS = (3, 9, 5)
"""Tokens of the examples that are compared."""

TOLERANCE = {torch.float32: 1e-4}
"""Mean difference of log-probabilities, relative to their mean size where that is above 1."""
ROUNDED_TOLERANCE = 5e-2
"""The same in dtypes of 16 bits."""


@torch.no_grad()
def settle_attention(model: PreTrainedModel, *, packing: bool) -> None:
    """Check that batches of examples give the log-probabilities that the model gives each alone.

    What is compared with is eager attention, which every family defines itself. A padded model
    whose attention ignores a part of that, such as a cap of its logits, gets eager attention as
    well. Layers that carry state from one packed example to the next, attention that looks ahead
    into the padding, and logits that objectives would not see are found, whatever the model is.

    Args:
        model: as loaded, without adapters and with its own head, in evaluation mode.
        packing: whether examples are packed in training.

    Raises:
        ValueError: they differ, or the model cannot be run like that.
    """
    loaded, name = attention_of(model), model.config.model_type
    if loaded == FLASH_ATTN:
        return
    can_change = calls_attention_functions(model)
    eager = "eager" if can_change else loaded
    padded = padded_attention(model.config) if packing else loaded
    examples = _examples(model)
    try:
        with _attention(model, eager):
            expected = torch.cat([own_logp(model, ids) for ids in examples])
        for exact in dict.fromkeys((padded, eager)):
            with _attention(model, exact):
                problem = _difference(model, examples, expected, packing=False)
            if problem is None:
                break
    except Exception as error:  # a family's forward may raise anything
        problem = first_line(error)
    if problem is not None:
        raise ValueError(f"model: {name} cannot be trained: {problem}")
    if not packing:
        _set_attention(model, exact)
        return
    try:
        problem = _difference(model, examples, expected, packing=True)
    except Exception as error:
        problem = first_line(error)
    if problem is not None:
        raise ValueError(f"training.packing: {name}: {problem}; {remedy(exact)}")


@torch.no_grad()
def unused_modules(model: PreTrainedModel, *, packing: bool) -> set[str]:
    """Name the modules that the model does not call; some models read a layer's weight instead."""
    if attention_of(model) == FLASH_ATTN:
        return set()
    unused = {name for name, _ in model.named_modules()}
    hooks = [
        module.register_forward_pre_hook(lambda *_, name=name: unused.discard(name))
        for name, module in model.named_modules()
    ]
    rows = [{"input_ids": ids, "labels": ids} for ids in _examples(model)]
    batch = collate(rows, 0, model.device, packing=packing)
    target_statistics(model, logit_transform(model), **batch)
    for hook in hooks:
        hook.remove()
    return unused


def _examples(model: PreTrainedModel) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.get_text_config().vocab_size
    return [torch.randint(vocabulary, (n,), generator=generator).tolist() for n in LENGTHS]


def own_logp(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    """Compute log-probabilities [T − 1] from the model's own logits, of one example alone."""
    tokens = torch.tensor([ids], device=model.device)
    log_probs = model(input_ids=tokens, use_cache=False).logits[0, :-1].float().log_softmax(-1)
    logp: torch.Tensor = log_probs.gather(1, tokens[0, 1:, None])[:, 0]
    return logp


def _difference(
    model: PreTrainedModel, examples: list[list[int]], expected: torch.Tensor, *, packing: bool
) -> str | None:
    """Say how the log-probabilities of one batch differ from ``expected``; None if they do not."""
    rows = [{"input_ids": ids, "labels": ids} for ids in examples]
    batch = collate(rows, 0, model.device, packing=packing)
    logp = target_statistics(model, logit_transform(model), **batch).logp
    error, size = (logp - expected).abs().mean(), expected.abs().mean().clamp(min=1)
    if error <= TOLERANCE.get(model.dtype, ROUNDED_TOLERANCE) * size:
        return None
    how = "packed into one row" if packing else "padded to one length"
    return (
        f"examples {how} do not have the log-probabilities that each has alone (they differ by "
        f"{error:.2g} on average)"
    )


@contextmanager
def _attention(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Run the block with another attention."""
    before = attention_of(model)
    _set_attention(model, name)
    try:
        yield
    finally:
        _set_attention(model, before)


def _set_attention(model: PreTrainedModel, name: str) -> None:
    if attention_of(model) != name:
        model.set_attn_implementation(name)
