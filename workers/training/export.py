"""The trained model as Hugging Face files, and the proof that they are the trained model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import deepspeed
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from deft.workers.data.chat import end_of_turn
from deft.workers.modeling.loading import load_causal_lm
from deft.workers.modeling.lora import (
    MergedTensor,
    adapter_tensors,
    merged_tensors,
    save_adapter,
)
from deft.workers.modeling.self_check import own_logp
from deft.workers.training.batches import collate

if TYPE_CHECKING:
    from datasets import Dataset

ADAPTER_FOLDER = "adapter"
"""Where the adapter lies in an exported model's directory, if it is kept."""

NUM_ROWS = 4
"""Rows on which the exported model is compared with the one in memory."""
NUM_TOKENS = 256
"""First tokens of each of them that are compared."""

TOLERANCE = {torch.float32: 1e-3}
"""Mean difference of a token's log-probability, in nats, relative to its mean size if above 1."""
ROUNDED_TOLERANCE = 5e-2
"""The same in dtypes of 16 bits."""

MAX_NAMED = 10
"""Tensors that a message names."""


def export_model(
    engine: deepspeed.DeepSpeedEngine,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    *,
    style: str,
    rows: Dataset,
    packing: bool,
    keep_adapter: bool = False,
) -> None:
    """Write Hugging Face safetensors and tokenizer on rank 0; every rank must call this.

    Adapters are merged into the weights that they adapt. Under ZeRO-3 parameters are gathered a few
    at a time, so no device ever holds the whole model. What was written is loaded again and
    compared with the model in memory on some of ``rows``.

    Raises:
        RuntimeError: the exported model is not the trained one; on every rank.
    """
    model: PreTrainedModel = engine.module.model
    examples = first_tokens(rows)
    expected = logp_in_memory(engine, examples, packing=packing)
    state = gather(engine, merged_tensors(model))
    adapter = gather(engine, adapter_tensors(model)) if keep_adapter else {}
    problem: list[str | None] = [None]
    if torch.distributed.get_rank() == 0:
        limit_length(tokenizer, model)
        declare_end(model, tokenizer, style)
        model.save_pretrained(directory, state_dict=dict(state))
        tokenizer.save_pretrained(directory)
        if keep_adapter:
            save_adapter(model, adapter, directory / ADAPTER_FOLDER)
        size = sum(tensor.nbytes for tensor in state.values())
        device = spare_device(engine.device, size)
        problem[0] = find_difference(
            directory, state, examples, expected, model.dtype, device=device
        )
    torch.distributed.broadcast_object_list(problem, src=0)
    if problem[0] is not None:
        raise RuntimeError(
            f"the exported model is not the trained one: {problem[0]}; this is a defect"
        )


def limit_length(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """Let the tokenizer know the model's context where it would take any length (1e30)."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and tokenizer.model_max_length > positions:
        tokenizer.model_max_length = positions


def declare_end(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, style: str) -> None:
    """Let generation end where turns end in ``style``: a base model's config names EOS alone.

    Servers and `generate` read it where they are told nothing else.
    """
    config = getattr(model, "generation_config", None)
    token_ids: list[int] = []
    with suppress(ValueError):  # a template that refuses two plain turns
        token_ids = end_of_turn(tokenizer, style)
    if config is None or not token_ids:
        return
    declared = config.eos_token_id
    known = declared if isinstance(declared, list) else [declared]
    ends = list(dict.fromkeys(id for id in (*known, *token_ids) if id is not None))
    config.eos_token_id = ends if len(ends) > 1 else ends[0]


def gather(
    engine: deepspeed.DeepSpeedEngine, tensors: Iterable[MergedTensor]
) -> dict[str, torch.Tensor]:
    """Copy tensors to rank 0's memory, where they are sharded from all ranks."""
    is_sharded = engine.zero_optimization_stage() == 3
    writes = torch.distributed.get_rank() == 0
    # Tied parameters appear once, under their first name, as in a Hugging Face checkpoint.
    state: dict[str, torch.Tensor] = {}
    for tensor in tensors:
        with torch.no_grad(), deepspeed.zero.GatheredParameters(tensor.parts, enabled=is_sharded):
            if writes:
                state[tensor.name] = tensor.value().detach().cpu().clone().contiguous()
    return state


def first_tokens(rows: Dataset) -> list[list[int]]:
    """Return the first token ids of the first rows."""
    return [rows[i]["input_ids"][:NUM_TOKENS] for i in range(min(NUM_ROWS, len(rows)))]


@torch.no_grad()
def logp_in_memory(
    engine: deepspeed.DeepSpeedEngine, examples: Sequence[list[int]], *, packing: bool
) -> torch.Tensor:
    """Compute the log-probability of every token but the first of each example, on all ranks.

    The path is that of training: the attention, the adapters and the objective's head.
    """
    was_training = engine.training
    engine.eval()
    device = engine.device
    parts = []
    for ids in examples:
        rows = [{"input_ids": ids, "labels": ids}]
        _, tokens = engine(**collate(rows, 0, device, packing=packing))
        parts.append(tokens["logp"].float().cpu())
    engine.train(was_training)
    return torch.cat(parts)


def spare_device(device: torch.device, size: int) -> torch.device:
    """Return ``device`` if a second model of ``size`` bytes fits on it, else the CPU."""
    if device.type == "cuda" and torch.cuda.mem_get_info(device)[0] > 1.5 * size:
        return device
    return torch.device("cpu")


@torch.no_grad()
def find_difference(
    directory: Path,
    state: dict[str, torch.Tensor],
    examples: Sequence[list[int]],
    expected: torch.Tensor,
    dtype: torch.dtype,
    *,
    device: torch.device | str = "cpu",
) -> str | None:
    """Say how the exported model differs from the one in memory; None if it does not.

    Args:
        directory: the exported model.
        state: tensors of the model in memory, adapters merged.
        examples: token ids.
        expected: log-probabilities under the model in memory, of every token but each first.
        dtype: of the model in memory.
        device: where to run the exported model.
    """
    try:
        exported = load_causal_lm(directory, dtype=dtype, device_map=device).eval()
    except ValueError as error:
        return str(error)
    logp = torch.cat([own_logp(exported, ids) for ids in examples]).cpu()
    difference = (logp - expected).abs().nan_to_num(nan=torch.inf)
    difference[logp == expected] = 0  # infinities that are the same
    size = expected.abs()[expected.isfinite()].mean().clamp(min=1).nan_to_num(nan=1.0)
    tensors = _different_tensors(exported.state_dict(), state)
    if not tensors and difference.mean() <= TOLERANCE.get(dtype, ROUNDED_TOLERANCE) * size:
        return None
    details = f". These tensors differ: {', '.join(tensors[:MAX_NAMED])}" if tensors else ""
    return (
        f"log-probabilities of {len(logp)} tokens differ by {difference.mean():.3g} on average"
        f"{details}"
    )


def _different_tensors(
    exported: dict[str, torch.Tensor], state: dict[str, torch.Tensor]
) -> list[str]:
    """Name the tensors that are not the same in both, tied ones under their first name."""
    missing = [f"{name} (missing)" for name in state if name not in exported]
    return missing + [
        name
        for name, tensor in state.items()
        if name in exported
        and not torch.equal(exported[name].cpu().to(tensor.dtype), tensor)
        and not tensor.isnan().any()
    ]
