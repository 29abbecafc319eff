"""What it costs to verify the objective on the first step."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

MEASURE = """
import sys
from pathlib import Path
import torch
from deft.objectives import get_objective
from deft.workers.modeling.objective_model import ObjectiveHead

VOCABULARY, WIDTH, TOKENS = 151_936, 64, 400
dtype = getattr(torch, sys.argv[1])
# Cayley_Trans reads the whole micro-batch's mean, so no part of it can be verified alone.
generator = torch.Generator().manual_seed(0)
linear = torch.nn.Linear(WIDTH, VOCABULARY, bias=False, dtype=dtype)
head = ObjectiveHead(linear, get_objective("Cayley_Trans")).train()
hidden = torch.randn(TOKENS, WIDTH, generator=generator).to(dtype).requires_grad_()
labels = torch.randint(VOCABULARY, (TOKENS,), generator=generator)

def peak():
    head.zero_grad()
    # Writing 5 sets the high-water mark back to what is resident now.
    Path("/proc/self/clear_refs").write_text("5")
    head(hidden, labels)[0].backward()
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

peak()  # loads libraries
later = peak()
assert head.verified
head.verified = False
print(peak(), later)
"""
"""Prints the largest resident memory of a first step and of a later one, in KiB."""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc")
def test_first_step_takes_no_more_memory_than_later_ones(dtype: str) -> None:
    # Else glibc keeps freed tensors below 32 MiB, more or less of them from one run to the next.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    measure = [sys.executable, "-c", MEASURE, dtype]
    measured = subprocess.run(measure, capture_output=True, text=True, check=True, env=environment)
    first, later = map(int, measured.stdout.split())
    assert first < 1.1 * later
