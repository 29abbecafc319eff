"""Notices that training must end soon: its node is taken away, or its driver was told to stop."""

from __future__ import annotations

import time
from typing import Literal

import ray.train
import torch

from deft.workers.common.stop_request import is_stop_requested

ASK_EVERY = 5.0
"""Seconds between queries for preempted nodes, as often as Ray Train itself looks at them. Each
makes all workers wait for one another, so it is not sent at every step."""

LOOK_EVERY = 1.0
"""Seconds between rank 0's looks whether the driver asks for a stop."""

NOTHING, ASK, STOP = range(3)
"""What rank 0 tells the others."""


class EndNotice:
    """Tells once, on all ranks at the same step, that a worker will be gone soon."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._asked_at = self._looked_at = time.monotonic()
        self._is_preempted = False
        self.is_stop = False
        """Whether training must stop after this step."""

    def arrived(self) -> Literal["preemption", "stop"] | None:
        """Tell which notice has just come; every rank must call this at every step."""
        # The clocks of the ranks differ, so rank 0's counts.
        is_first = torch.distributed.get_rank() == 0
        told = torch.tensor(
            [self._look() if is_first else NOTHING], dtype=torch.uint8, device=self._device
        )
        torch.distributed.broadcast(told, src=0)
        if told.item() == STOP:
            self.is_stop = True
            return "stop"
        if told.item() == ASK and ray.train.get_preemption_info() is not None:
            self._is_preempted = True
            return "preemption"
        return None

    def _look(self) -> int:
        now = time.monotonic()
        if now - self._looked_at >= LOOK_EVERY:
            self._looked_at = now
            if is_stop_requested():
                return STOP
        if not self._is_preempted and now - self._asked_at >= ASK_EVERY:
            self._asked_at = now
            return ASK
        return NOTHING
