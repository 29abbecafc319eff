"""How devices are divided; clusters of GPUs exist here as numbers only."""

from __future__ import annotations

from typing import Any

import pytest

from deft.sweeps.placement import Placement, divide_cluster


@pytest.mark.parametrize(
    ("cluster", "expected"),
    [
        # CPUs: as many cells as find workers, one more that is evaluated, nothing set aside.
        ({"num_cpus": 2, "num_workers": 1}, Placement(3, 1, False)),
        ({"num_cpus": 2, "num_workers": 2}, Placement(2, 1, False)),
        ({"num_cpus": 64, "num_workers": 4, "num_nodes": 4}, Placement(17, 4, False)),
        ({"num_cpus": 2, "num_workers": 1, "generates": False}, Placement(2, 0, False)),
        # GPUs: no room for both, then one for each, then 6 to train and 2 to evaluate.
        ({"num_gpus": 1, "num_workers": 1}, Placement(1, 0, False)),
        ({"num_gpus": 2, "num_workers": 1}, Placement(2, 1, True)),
        ({"num_gpus": 8, "num_workers": 2}, Placement(5, 2, True)),
        ({"num_gpus": 8, "num_workers": 2, "tensor_parallel": 2}, Placement(4, 2, True)),
        ({"num_gpus": 8, "num_workers": 8}, Placement(1, 0, False)),
        ({"num_gpus": 8, "num_workers": 2, "generates": False}, Placement(4, 0, False)),
    ],
)
def test_devices_are_divided(cluster: dict[str, Any], expected: Placement) -> None:
    usual = {
        "num_cpus": 64,
        "num_gpus": 0,
        "num_nodes": 1,
        "tensor_parallel": 1,
        "generates": True,
    }
    placement = divide_cluster(**{**usual, **cluster})
    assert placement == expected


def test_training_and_engines_never_need_more_gpus_than_there_are() -> None:
    for num_gpus in range(1, 33):
        for num_workers in (1, 2, 4):
            for tensor_parallel in (1, 2):
                placement = divide_cluster(
                    num_cpus=64,
                    num_gpus=num_gpus,
                    num_nodes=1,
                    num_workers=num_workers,
                    tensor_parallel=tensor_parallel,
                    generates=True,
                )
                if placement.reserved:
                    training = placement.num_cells - placement.num_engines
                    used = training * num_workers + placement.num_engines * tensor_parallel
                    assert used <= num_gpus
                    assert training >= 1
