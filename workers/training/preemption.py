"""Notices that a node of the run is about to be taken away (a spot instance, a drained node)."""

from __future__ import annotations

import time

import ray.train
import torch

ASK_EVERY = 5.0
"""Seconds between queries, as often as Ray Train itself looks at the nodes. Each makes all workers
wait for one another, so it is not sent at every step."""


class PreemptionNotice:
    """Tells once, on all ranks at the same step, that a worker will be gone soon."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._asked_at = time.monotonic()
        self._is_given = False

    def arrived(self) -> bool:
        """Tell whether the notice has just come; every rank must call this at every step."""
        if self._is_given:
            return False
        # The clocks of the ranks differ, so rank 0's counts.
        is_time = time.monotonic() - self._asked_at >= ASK_EVERY
        ask = torch.tensor([is_time], dtype=torch.uint8, device=self._device)
        torch.distributed.broadcast(ask, src=0)
        if not ask.item():
            return False
        self._asked_at = time.monotonic()
        self._is_given = ray.train.get_preemption_info() is not None
        return self._is_given
