"""Attention over examples packed into one row, none of which sees another.

`packed_attention` computes it by PyTorch's variable-length flash attention where the card, the
dtype and the head have a kernel. Elsewhere PyTorch's scaled dot-product attention runs example by
example: exact, without a block-diagonal mask whose masked blocks would be computed all the same.
Where flash-attn is installed, its kernels are called instead, by transformers itself.

Shapes: H query heads, G key and value heads, T positions of the row, E width of a head.
"""

from __future__ import annotations

from copy import deepcopy
from importlib.util import find_spec
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import varlen
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from deft.workers.common.compat import attention_of, calls_attention_functions

PACKED_ATTENTION = "packed_attention"
FLASH_ATTN = "flash_attention_2"
"""Attention of flash-attn, which runs on a GPU only: not before a model has been moved there."""

WIDEST_HEAD = 256
"""Elements of the widest head that flash attention's kernels compute."""
WIDEST_HEAD_OF_SMALL_CARDS = 192
"""The same with a gradient, where a multiprocessor has less shared memory than on an A100."""

_SHARES_KEYS = "enable_gqa"
"""Argument by which PyTorch 2.13 lets heads share keys; 2.11 has none and always does."""
_GROUPED: dict[str, Any] = (
    {_SHARES_KEYS: True} if _SHARES_KEYS in signature(varlen.varlen_attn).parameters else {}
)


def choose_attention(config: PreTrainedConfig, *, packing: bool, dtype: torch.dtype) -> str:
    """Return the attention to train with, for `from_pretrained(attn_implementation=…)`.

    Raises:
        ValueError: the model has none that can be used; the message says which setting would do.
    """
    if packing:
        require_packable(config)
    if (
        find_spec("flash_attn") is not None
        and flash_problem(dtype, head_width(config), compute_capability()) is None
        and _problem_of(config, FLASH_ATTN) is None
    ):
        return FLASH_ATTN
    if not packing:
        return padded_attention(config)
    if _problem_of(config, PACKED_ATTENTION) is not None:
        raise ValueError(
            f"training.packing: {config.model_type} has attention of its own; "
            f"{remedy(padded_attention(config))}"
        )
    return PACKED_ATTENTION


def describe_attention(model: PreTrainedModel) -> str:
    """Say what computes the attention of ``model``, and why no flash kernel does."""
    name = attention_of(model)
    if name == FLASH_ATTN:
        return "flash-attn"
    if name != PACKED_ATTENTION:
        return f"{name}, padded"
    problem = flash_problem(model.dtype, head_width(model.config), compute_capability())
    if problem is None:
        return "PyTorch's variable-length flash attention"
    return f"PyTorch's scaled dot-product attention, example by example: {problem}"


def compute_capability() -> tuple[int, int] | None:
    """Return the compute capability of this process's NVIDIA GPU; None without one."""
    if not torch.cuda.is_available() or torch.version.hip is not None:
        return None
    return torch.cuda.get_device_capability()


def head_width(config: PreTrainedConfig) -> int:
    """Return the elements of a query head."""
    text = config.get_text_config()
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(width)


def flash_problem(dtype: torch.dtype, width: int, capability: tuple[int, int] | None) -> str | None:
    """Say why flash attention has no kernel for heads of ``width`` elements; None if it has one."""
    if capability is None:
        return "there is no NVIDIA GPU"
    if capability < (8, 0):
        return f"compute capability {'.'.join(map(str, capability))} is below 8.0"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"flash attention has no kernel for {str(dtype).removeprefix('torch.')}"
    if width % 8 or width > WIDEST_HEAD:
        return f"a head of {width} elements is no multiple of 8 up to {WIDEST_HEAD}"
    is_small = capability[0] != 10 and capability not in ((8, 0), (9, 0))
    if is_small and width > WIDEST_HEAD_OF_SMALL_CARDS:
        return f"the gradient of a head of {width} elements needs more shared memory"
    return None


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
    if attention_of(model) == PACKED_ATTENTION and not calls_attention_functions(model):
        raise ValueError(
            f"training.packing: {type(model).__name__} has attention of its own; "
            f"{remedy(padded_attention(model.config))}"
        )


def packed_keywords(cu_seq_lens: torch.Tensor, position_ids: torch.Tensor) -> dict[str, Any]:
    """Build the arguments that make a transformers model attend within examples only.

    Args:
        cu_seq_lens: int32 [examples + 1] in the host's memory, so that nobody waits for the device
            to know it: where each example begins and the last ends.
        position_ids: int64 [1, T], starting anew with each example.
    """
    longest = int(cu_seq_lens.diff().max())
    on_device = cu_seq_lens.to(position_ids.device, non_blocking=True)
    return {
        "position_ids": position_ids,
        "cu_seq_lens_q": on_device,
        "cu_seq_lens_k": on_device,
        "max_length_q": longest,
        "max_length_k": longest,
        "cu_seq_lens_host": cu_seq_lens,
    }


@torch.compiler.disable  # type: ignore[untyped-decorator]
def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    *,
    cu_seq_lens_q: torch.Tensor | None = None,
    cu_seq_lens_host: torch.Tensor | None = None,
    max_length_q: int = 0,
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
        cu_seq_lens_host: the same in the host's memory.
        max_length_q: positions of the longest example.
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
    if cu_seq_lens_q is None or cu_seq_lens_host is None:
        raise ValueError("the model does not tell its attention where packed examples begin")
    if attention_mask is not None:
        raise ValueError("the model masks attention in a way of its own")
    if _has_kernel(query, value, dropout):
        output = packed_flash(
            query, key, value, cu_seq_lens_q, max_length_q, scaling, sliding_window
        )
    else:
        output = packed_sdpa(query, key, value, cu_seq_lens_host, dropout, scaling, sliding_window)
    # Some models take a view of the result.
    return output.contiguous(), None


def _has_kernel(query: torch.Tensor, value: torch.Tensor, dropout: float) -> bool:
    """Tell whether PyTorch's variable-length kernel computes attention over these tensors."""
    if not query.is_cuda or dropout or value.shape[-1] != query.shape[-1]:
        return False
    return flash_problem(query.dtype, query.shape[-1], compute_capability()) is None


def packed_flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_lens: torch.Tensor,
    longest: int,
    scaling: float | None,
    sliding_window: int | None,
) -> torch.Tensor:
    """Compute [1, T, H, E] by PyTorch's variable-length flash attention, all examples at once."""
    # The kernel counts the positions to the left of a query; transformers counts its own as well.
    before = -1 if sliding_window is None else sliding_window - 1
    output = varlen.varlen_attn(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        cu_seq_lens,
        cu_seq_lens,
        longest,
        longest,
        scale=scaling,
        window_size=(before, 0),
        **_GROUPED,
    )
    assert isinstance(output, torch.Tensor)
    return output[None]


def packed_sdpa(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_lens: torch.Tensor,
    dropout: float,
    scaling: float | None,
    sliding_window: int | None,
) -> torch.Tensor:
    """Compute [1, T, H, E] one example after the other; ``cu_seq_lens`` is in the host's memory."""
    grouped = key.shape[1] != query.shape[1]
    # Split, not sliced: a slice's gradient would be a tensor of the whole row's size.
    lengths = cu_seq_lens.diff().tolist()
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
    return torch.cat(parts, dim=2).transpose(1, 2)


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
