"""How many cells run at the same time, and how many engines they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Placement:
    """A cluster's devices, divided between training and evaluation."""

    num_cells: int
    """Cells at the same time."""
    num_training: int
    """Cells of these that train or measure held-out losses at the same time."""
    num_engines: int
    """Warm engines that all cells share; with none, each cell starts its own after training."""
    reserved: bool
    """True if devices are set aside for the engines."""


def divide_cluster(
    nodes: Sequence[Mapping[str, float]],
    *,
    num_workers: int,
    tensor_parallel: int,
    generates: bool,
    measures: bool,
) -> Placement:
    """Divide a cluster's devices between training and evaluation.

    On GPUs, engines keep theirs for the whole sweep: about one for every `num_workers` that train,
    so that one cell is evaluated while the next trains. A cell that has trained measures its
    held-out loss on the GPUs that it trained on, before another cell gets them. Where the GPUs are
    too few for both, cells run one by one with engines of their own. On CPUs nothing is set aside:
    an engine that waits for the next model costs no time.

    Args:
        nodes: the resources of each node, ``CPU`` and ``GPU``.
        num_workers: training workers of the largest cell, one device each.
        tensor_parallel: GPUs of one node that hold one model, in an engine and in a measurement of
            held-out losses.
        generates: whether cells need an engine at all.
        measures: whether cells measure held-out losses.
    """
    # Each process that uses a GPU has a core to itself.
    gpus = [int(min(node.get("GPU", 0), node.get("CPU", 0))) for node in nodes]
    if sum(gpus) == 0:
        cores = [int(node.get("CPU", 0)) for node in nodes]
        training = max(1, sum(cores) // num_workers)
        engines = sum(count > 0 for count in cores) if generates else 0
        return Placement(training + min(engines, 1), training, engines, reserved=False)
    cell = max(num_workers, tensor_parallel) if measures else num_workers
    if not generates:
        training = max(1, sum(gpus) // cell)
        return Placement(training, training, 0, reserved=False)
    engines = sum(gpus) // (cell + tensor_parallel)
    # One place for a whole model is left for measurements.
    engines = min(engines, sum(count // tensor_parallel for count in gpus) - measures)
    if engines <= 0:
        return Placement(1, 1, 0, reserved=False)
    training = (sum(gpus) - engines * tensor_parallel) // cell
    return Placement(training + engines, training, engines, reserved=True)
