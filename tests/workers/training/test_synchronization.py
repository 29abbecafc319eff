"""A micro-batch asks the device for no number: the host runs ahead of it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, LlamaConfig

from deft.objectives import get_objective
from deft.objectives.head import linear
from deft.objectives.head.gpu_blocks import gpu_blocks_head
from deft.workers.modeling.attention import PACKED_ATTENTION
from deft.workers.modeling.objective_model import ObjectiveModel
from deft.workers.training.batches import collate
from deft.workers.training.reduction import loss_factor


class Synchronizations(TorchDispatchMode):
    """Counts operations whose result the host would wait for, if they ran on a GPU."""

    WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select")

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in self.WAITING:
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("objective", ["DEFT", "Cayley_Trans", "GEM", "EAFT"])
def test_forward_and_backward_of_a_micro_batch_wait_for_nothing(
    monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    # The backends for CPUs may look at their numbers, that of GPUs may not.
    monkeypatch.setattr(linear, "_backend", lambda *_: gpu_blocks_head)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation=PACKED_ATTENTION)
    model = ObjectiveModel(model, get_objective(objective))
    rows = [{"input_ids": list(range(9)), "labels": [-100] * 4 + list(range(4, 9))}] * 2
    batch = collate(rows, 0, torch.device("cpu"), packing=True)
    model(**batch)[0].backward()  # the first one is verified
    with Synchronizations() as synchronizations:
        loss, tokens = model(**batch)
        kept = tokens["kept"].sum()
        factor = loss_factor(
            "global_tokens",
            kept_in_step=kept,
            kept_in_micro_batch=kept,
            num_micro_batches=1,
            world_size=1,
        )
        (loss * factor).backward()
    # The length of the longest example, which lies in the host's memory.
    assert synchronizations.seen == Counter(_local_scalar_dense=1)
