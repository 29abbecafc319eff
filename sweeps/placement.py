"""How many cells run at the same time, and where the engines that they share are."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Placement:
    """A cluster's devices, divided between training and evaluation."""

    num_cells: int
    """Cells at the same time."""
    num_engines: int
    """Warm engines that all cells share; with none, each cell starts its own after training."""
    reserved: bool
    """True if devices are set aside for the engines."""


def divide_cluster(
    *,
    num_cpus: float,
    num_gpus: float,
    num_nodes: int,
    num_workers: int,
    tensor_parallel: int,
    generates: bool,
) -> Placement:
    """Divide a cluster's devices between training and evaluation.

    On GPUs, engines keep theirs for the whole sweep: about one for every `num_workers` that train,
    so that one cell is evaluated while the next trains. Where the GPUs are too few for both, cells
    run one by one with engines of their own. On CPUs nothing is set aside: an engine that waits
    for the next model costs no time.

    Args:
        num_cpus: of the cluster.
        num_gpus: of the cluster; 0 for training on CPUs.
        num_nodes: with any devices.
        num_workers: training workers of the largest cell, one device each.
        tensor_parallel: GPUs of one engine.
        generates: whether cells need an engine at all.
    """
    if num_gpus == 0:
        training = max(1, int(num_cpus) // num_workers)
        engines = num_nodes if generates else 0
        return Placement(training + min(engines, 1), engines, reserved=False)
    if not generates:
        return Placement(max(1, int(num_gpus) // num_workers), 0, reserved=False)
    engines = int(num_gpus) // (num_workers + tensor_parallel)
    if engines == 0:
        return Placement(1, 0, reserved=False)
    training = (int(num_gpus) - engines * tensor_parallel) // num_workers
    return Placement(training + engines, engines, reserved=True)
