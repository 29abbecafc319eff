"""Devices that cells take turns with."""

from __future__ import annotations

import threading
from pathlib import Path

from deft.platform.run.training_slots import TrainingSlots


def test_no_more_cells_hold_a_slot_than_there_are(tmp_path: Path) -> None:
    slots, entered = TrainingSlots(tmp_path / "slots", 2), threading.Event()

    def third() -> None:
        with slots.one():
            entered.set()

    waiting = threading.Thread(target=third)
    with slots.one():
        with slots.one():
            waiting.start()
            assert not entered.wait(0.5)
        assert entered.wait(60)
    waiting.join()
