"""How devices are divided; clusters of GPUs exist here as numbers only."""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from deft.sweeps.placement import Placement, divide_cluster


def cpus(*counts: int) -> list[dict[str, float]]:
    return [{"CPU": count} for count in counts]


def gpus(*counts: int) -> list[dict[str, float]]:
    return [{"CPU": 16, "GPU": count} for count in counts]


@pytest.mark.parametrize(
    ("nodes", "settings", "expected"),
    [
        # CPUs: as many cells as find workers, one more that is evaluated, nothing set aside.
        (cpus(2), {}, Placement(3, 2, 1, False)),
        (cpus(2), {"num_workers": 2}, Placement(2, 1, 1, False)),
        (cpus(16, 16, 16, 16), {"num_workers": 4}, Placement(17, 16, 4, False)),
        (cpus(0, 2), {}, Placement(3, 2, 1, False)),
        (cpus(2), {"generates": False}, Placement(2, 2, 0, False)),
        # GPUs: too few for both, then one for each, then 6 to train and 2 to evaluate.
        (gpus(1), {}, Placement(1, 1, 0, False)),
        (gpus(2), {}, Placement(2, 1, 1, True)),
        (gpus(8), {"num_workers": 2}, Placement(5, 3, 2, True)),
        (gpus(8), {"num_workers": 2, "tensor_parallel": 2}, Placement(4, 2, 2, True)),
        (gpus(8), {"num_workers": 8}, Placement(1, 1, 0, False)),
        (gpus(8), {"num_workers": 2, "generates": False}, Placement(4, 4, 0, False)),
        # A model on two GPUs takes two of one node to be measured, too.
        (gpus(2, 1, 1), {"tensor_parallel": 2}, Placement(1, 1, 0, False)),
        (gpus(2, 1, 1), {"tensor_parallel": 2, "measures": False}, Placement(3, 2, 1, True)),
        # Each process on a GPU needs a core.
        ([{"CPU": 4, "GPU": 8}], {}, Placement(4, 2, 2, True)),
    ],
)
def test_devices_are_divided(
    nodes: list[dict[str, float]], settings: dict[str, Any], expected: Placement
) -> None:
    usual = {"num_workers": 1, "tensor_parallel": 1, "generates": True, "measures": True}
    assert divide_cluster(nodes, **{**usual, **settings}) == expected


Step = float | Callable[[], bool]
"""Seconds that a cell takes for something, or what it waits for and then holds."""


@dataclass
class SimulatedSweep:
    """A sweep on a cluster of numbers, by the rules of `TrainingSlots` and `EngineLender`.

    As under Ray, workers may lie on several nodes, an engine or a measurement on one only; what
    waits holds nothing, and any of those that wait may come first.
    """

    nodes: Sequence[int]
    num_workers: int
    tensor_parallel: int
    num_cells: int
    seed: int
    time: float = 0.0
    busy: float = 0.0
    """GPU-seconds of training, measuring and generating."""
    finished: int = 0
    base_done: bool = False
    base_held: bool = False
    queue: deque[list[float]] = field(default_factory=deque)
    """Shards that wait for an engine: seconds, and whether each is done."""

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.free = list(self.nodes)
        self.placement = divide_cluster(
            gpus(*self.nodes),
            num_workers=self.num_workers,
            tensor_parallel=self.tensor_parallel,
            generates=True,
            measures=True,
        )
        self.slots = self.placement.num_training
        for _ in range(self.placement.num_engines):
            assert self.on_one_node(), "an engine that no node can hold"
        self.idle_engines = self.placement.num_engines
        self.remaining = self.num_cells

    def on_one_node(self) -> bool:
        fitting = [n for n, count in enumerate(self.free) if count >= self.tensor_parallel]
        if not fitting:
            return False
        self.held = [self.random.choice(fitting)] * self.tensor_parallel
        self.hold()
        return True

    def anywhere(self) -> bool:
        open_ = [n for n, count in enumerate(self.free) for _ in range(count)]
        if len(open_) < self.num_workers:
            return False
        self.held = self.random.sample(open_, self.num_workers)
        self.hold()
        return True

    def hold(self) -> None:
        for node in self.held:
            self.free[node] -= 1
            assert self.free[node] >= 0

    def use(self, take: Callable[[], bool], seconds: float) -> Iterator[Step]:
        yield take
        held = self.held
        yield seconds
        self.busy += seconds * len(held)
        for node in held:
            self.free[node] += 1

    def slot(self) -> bool:
        if self.slots == 0:
            return False
        self.slots -= 1
        return True

    def base_lock(self) -> bool:
        if self.base_held:
            return False
        self.base_held = True
        return True

    def generate(self, seconds: float) -> Iterator[Step]:
        if not self.placement.num_engines:  # a pool of the cell's own, on all GPUs
            number = sum(count // self.tensor_parallel for count in self.nodes)
            yield seconds / number
            self.busy += seconds * self.tensor_parallel
            return
        number = max(1, self.idle_engines - len(self.queue))
        shards = [[seconds / number, 0.0] for _ in range(number)]
        self.queue.extend(shards)
        yield lambda: all(done for _, done in shards)

    def engine(self) -> Iterator[Step]:
        while True:
            yield lambda: bool(self.queue)
            shard = self.queue.popleft()
            self.idle_engines -= 1
            yield shard[0]
            self.busy += shard[0] * self.tensor_parallel
            shard[1] = 1.0
            self.idle_engines += 1

    def cell(self) -> Iterator[Step]:
        while self.remaining:
            self.remaining -= 1
            yield self.slot
            yield from self.use(self.anywhere, self.random.uniform(500, 2000) / self.num_workers)
            yield from self.use(self.on_one_node, self.random.uniform(20, 60))
            self.slots += 1
            yield self.base_lock
            if not self.base_done:
                yield self.slot
                yield from self.use(self.on_one_node, 40)
                self.slots += 1
                yield from self.generate(800)
                self.base_done = True
            self.base_held = False
            yield from self.generate(self.random.uniform(300, 1500))
            self.finished += 1

    def run(self) -> None:
        waiting: list[tuple[Callable[[], bool], Iterator[Step]]] = []
        later: list[tuple[float, int, Iterator[Step]]] = []
        number = 0

        def go_on(process: Iterator[Step]) -> None:
            nonlocal number
            step = next(process, None)
            if callable(step):
                waiting.append((step, process))
            elif step is not None:
                number += 1
                heapq.heappush(later, (self.time + step, number, process))

        for _ in range(self.placement.num_cells):
            go_on(self.cell())
        for _ in range(self.placement.num_engines):
            go_on(self.engine())
        while self.finished < self.num_cells:
            self.random.shuffle(waiting)
            for index, (condition, process) in enumerate(waiting):
                if condition():
                    del waiting[index]
                    go_on(process)
                    break
            else:
                assert later, f"deadlock after {self.finished} cells: {self}"
                self.time, _, process = heapq.heappop(later)
                go_on(process)


CLUSTERS = [
    *([count] for count in (1, 2, 3, 4, 6, 8)),
    *([8] * count for count in (2, 4, 8)),
    *([[1] * 4, [2, 1, 1], [1, 1, 1, 3], [3, 3], [4, 2], [8, 4, 2, 1], [0, 8], [8, 8, 2, 1, 1]]),
]


def test_no_cluster_of_1_to_64_gpus_ends_in_a_deadlock() -> None:
    """Prints how long devices idle, with a benchmark that takes about as long as training."""
    print("\n| nodes | workers | GPUs of a model | training | engines | idle |")
    print("|---|---|---|---|---|---|")
    for nodes in CLUSTERS:
        for num_workers, tensor_parallel in ((1, 1), (2, 1), (4, 2), (1, 2), (8, 4)):
            if num_workers > sum(nodes) or tensor_parallel > max(nodes):
                continue
            sweeps = [
                SimulatedSweep(nodes, num_workers, tensor_parallel, num_cells=60, seed=seed)
                for seed in range(3)
            ]
            for sweep in sweeps:
                sweep.run()
            placement = sweeps[0].placement
            used = math.fsum(sweep.busy for sweep in sweeps)
            idle = 1 - used / math.fsum(sweep.time * sum(nodes) for sweep in sweeps)
            assert 0 <= idle < 1
            shape = "+".join(map(str, nodes))
            print(
                f"| {shape} | {num_workers} | {tensor_parallel} | {placement.num_training} | "
                f"{placement.num_engines} | {idle:.0%} |"
            )
