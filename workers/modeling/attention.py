"""Attention over examples packed into one row, none of which sees another.

On a GPU with flash-attn its variable-length kernels do it. Elsewhere `packed_sdpa` runs PyTorch's
scaled dot-product attention example by example: exact, without a block-diagonal mask whose masked
blocks would be computed all the same.

Shapes: H query heads, G key and value heads, T positions of the row, E width of a head.
"""

from __future__ import annotations

from copy import deepcopy
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from deft.workers.common.compat import attention_of, calls_attention_functions

PACKED_SDPA = "packed_sdpa"
GPU_ATTENTION = "flash_attention_2"
"""Attention of flash-attn, which runs on a GPU only: not before a model has been moved there."""


def choose_attention(config: PreTrainedConfig, *, packing: bool) -> str:
    """Return the attention to train with, for `from_pretrained(attn_implementation=…)`.

    Raises:
        ValueError: the model has none that can be used; the message says which setting would do.
    """
    if packing:
        require_packable(config)
    if (
        torch.cuda.is_available()
        and find_spec("flash_attn") is not None
        and _problem_of(config, GPU_ATTENTION) is None
    ):
        return GPU_ATTENTION
    if not packing:
        return padded_attention(config)
    if _problem_of(config, PACKED_SDPA) is not None:
        raise ValueError(
            f"training.packing: {config.model_type} has attention of its own; "
            f"{remedy(padded_attention(config))}"
        )
    return PACKED_SDPA


def padded_attention(config: PreTrainedConfig) -> str:
    """Return the attention of PyTorch or the model's own that computes all the model defines.

    Raises:
        ValueError: neither can be used.
    """
    # transformers' sdpa leaves a cap of the attention's logits out.
    is_capped = bool(getattr(config.get_text_config(), "attn_logit_softcapping", None))
    names = ["eager"] if is_capped else ["sdpa", "eager"]
    for name in names:
        problem = _problem_of(config, name)
        if problem is None:
            return name
    raise ValueError(
        f"model: {config.model_type} cannot be trained: none of the attentions "
        f"{', '.join(names)} can be used ({problem})"
    )


def _problem_of(config: PreTrainedConfig, attention: str) -> str | None:
    """Say why a model cannot be built with an attention; None if it can."""
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                deepcopy(config), attn_implementation=attention
            )
        require_supported(model)
    except Exception as error:  # each family refuses an attention in a way of its own
        return first_line(error)
    return None


def remedy(attention: str) -> str:
    """Say how to train without packing."""
    return f"set training.packing to false: examples are padded then, with {attention} attention"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, with its type where that says more."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else ""
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"


def require_packable(config: PreTrainedConfig) -> None:
    """Raise ValueError if a model's layers would let packed examples see each other."""
    kinds = set(getattr(config.get_text_config(), "layer_types", None) or ())
    if foreign := sorted(kinds - {"full_attention", "sliding_attention"}):
        raise ValueError(
            f"training.packing: {config.model_type} has layers of kind {', '.join(foreign)}, which "
            "may carry over from one packed example to the next; "
            f"{remedy(padded_attention(config))}"
        )


def require_supported(model: PreTrainedModel) -> None:
    """Raise ValueError if ``model`` cannot be told which attention to use."""
    if attention_of(model) == PACKED_SDPA and not calls_attention_functions(model):
        raise ValueError(
            f"training.packing: {type(model).__name__} has attention of its own; "
            f"{remedy(padded_attention(model.config))}"
        )


def packed_keywords(cu_seq_lens: torch.Tensor, position_ids: torch.Tensor) -> dict[str, Any]:
    """Build the arguments that make a transformers model attend within examples only.

    Args:
        cu_seq_lens: int32 [examples + 1], where each example begins and the last ends.
        position_ids: int64 [1, T], starting anew with each example.
    """
    longest = int(cu_seq_lens.diff().max())
    return {
        "position_ids": position_ids,
        "cu_seq_lens_q": cu_seq_lens,
        "cu_seq_lens_k": cu_seq_lens,
        "max_length_q": longest,
        "max_length_k": longest,
    }


@torch.compiler.disable  # type: ignore[untyped-decorator]
def packed_sdpa(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    *,
    cu_seq_lens_q: torch.Tensor | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **unused: Any,
) -> tuple[torch.Tensor, None]:
    """Compute causal attention within each example, as transformers calls an attention function.

    It is not compiled: every new number of examples would be compiled anew.

    Args:
        module: the attention layer.
        query: [1, H, T, E].
        key: [1, G, T, E].
        value: [1, G, T, E].
        attention_mask: None; not supported.
        dropout: probability of dropping an attention weight.
        scaling: factor of the products; 1/√E if None.
        cu_seq_lens_q: int32 [examples + 1].
        sliding_window: positions that a query sees, itself included; all before it if None.
        softcap: not supported.
        s_aux: attention sinks; not supported.
        unused: what other attention functions need.

    Returns:
        [1, T, H, E].

    Raises:
        ValueError: the model caps attention logits, has attention sinks or a mask of its own, or
            does not pass on where examples begin.
    """
    if softcap is not None or s_aux is not None:
        raise ValueError(
            "the model caps attention logits or has attention sinks, which packing supports only "
            "with flash-attn on a GPU"
        )
    if cu_seq_lens_q is None:
        raise ValueError("the model does not tell its attention where packed examples begin")
    if attention_mask is not None:
        raise ValueError("the model masks attention in a way of its own")
    grouped = key.shape[1] != query.shape[1]
    # Split, not sliced: a slice's gradient would be a tensor of the whole row's size.
    lengths = cu_seq_lens_q.diff().tolist()
    parts = []
    for q, k, v in zip(
        *(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True
    ):
        mask = None
        if sliding_window is not None and q.shape[2] > sliding_window:
            distance = torch.arange(q.shape[2], device=q.device)
            distance = distance[:, None] - distance
            mask = (distance >= 0) & (distance < sliding_window)
        parts.append(
            F.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=mask,
                dropout_p=dropout,
                scale=scaling,
                is_causal=mask is None,
                enable_gqa=grouped,
            )
        )
    # Some models take a view of the result.
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register(PACKED_SDPA, packed_sdpa)
