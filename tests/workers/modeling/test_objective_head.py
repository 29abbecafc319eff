"""What it costs to verify the objective on the first step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from deft.objectives import get_objective
from deft.workers.modeling.objective_model import ObjectiveHead

VOCABULARY, WIDTH, TOKENS = 151_936, 64, 800

LOGITS_KIB = TOKENS * VOCABULARY * 4 // 1024
"""KiB of a micro-batch's logits in float32."""


def resident_kib(key: str) -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith(key))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc")
def test_first_step_materializes_no_logits_of_a_micro_batch(dtype: torch.dtype) -> None:
    # Cayley_Trans reads the whole micro-batch's mean, so no part of it can be verified alone.
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(WIDTH, VOCABULARY, bias=False, dtype=dtype)
    head = ObjectiveHead(linear, get_objective("Cayley_Trans")).train()
    hidden = torch.randn(TOKENS, WIDTH, generator=generator).to(dtype).requires_grad_()
    labels = torch.randint(VOCABULARY, (TOKENS,), generator=generator)

    def peak() -> int:
        """Measure the largest resident memory during a step, in KiB."""
        head.zero_grad()
        # Writing 5 sets the high-water mark back to what is resident now.
        Path("/proc/self/clear_refs").write_text("5")
        head(hidden, labels)[0].backward()
        return resident_kib("VmHWM")

    def first_peak() -> int:
        head.verified = False
        return peak()

    peak()  # loads libraries
    later = peak()
    assert head.verified
    # Smaller tensors are recycled by malloc, more or less of them from one time to the next.
    assert min(first_peak() for _ in range(3)) < later + LOGITS_KIB // 2
