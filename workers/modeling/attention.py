"""Attention over examples packed into one row, none of which sees another.

On a GPU with flash-attn its variable-length kernels do it. Elsewhere `packed_sdpa` runs PyTorch's
scaled dot-product attention example by example: exact, without a block-diagonal mask whose masked
blocks would be computed all the same.

Shapes: H query heads, G key and value heads, T positions of the row, E width of a head.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel

from deft.workers.common.compat import attention_of, calls_attention_functions

PACKED_SDPA = "packed_sdpa"


def attention_implementation(*, packing: bool) -> str:
    """The attention to load a model with, as `from_pretrained(attn_implementation=…)` takes it."""
    if torch.cuda.is_available() and find_spec("flash_attn") is not None:
        return "flash_attention_2"
    return PACKED_SDPA if packing else "sdpa"


def require_packable(config: PreTrainedConfig) -> None:
    """Raise ValueError if a model's layers would let packed examples see each other."""
    kinds = set(getattr(config.get_text_config(), "layer_types", None) or ())
    if foreign := sorted(kinds - {"full_attention", "sliding_attention"}):
        raise ValueError(
            f"training.packing: {config.model_type} has layers of kind {', '.join(foreign)}, which "
            "would carry over from one packed example to the next; set training.packing to false"
        )


def require_supported(model: PreTrainedModel) -> None:
    """Raise ValueError if ``model`` cannot be told which attention to use."""
    if attention_of(model) == PACKED_SDPA and not calls_attention_functions(model):
        raise ValueError(
            f"training.packing: {type(model).__name__} has attention of its own; "
            "set training.packing to false"
        )


def packed_keywords(cu_seq_lens: torch.Tensor, position_ids: torch.Tensor) -> dict[str, Any]:
    """What a transformers model takes to attend within examples only.

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
    cu_seq_lens_q: torch.Tensor,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **unused: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each example; an attention function as transformers calls it.

    It is not compiled: every new number of examples would be compiled anew.

    Args:
        module: the attention layer.
        query: [1, H, T, E].
        key: [1, G, T, E].
        value: [1, G, T, E].
        attention_mask: None.
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
        ValueError: the model caps attention logits or has attention sinks.
    """
    if softcap is not None or s_aux is not None:
        raise ValueError(
            "training.packing: this model caps attention logits or has attention sinks, which "
            "packing supports only with flash-attn on a GPU; set training.packing to false"
        )
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
    return torch.cat(parts, dim=2).transpose(1, 2), None


AttentionInterface.register(PACKED_SDPA, packed_sdpa)
