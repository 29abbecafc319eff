"""Where Ray puts what a driver depends on."""

from __future__ import annotations

import ray
from ray._raylet import PlacementGroupID
from ray.experimental.internal_kv import (
    _internal_kv_del,
    _internal_kv_get,
    _internal_kv_put,
)
from ray.util.placement_group import (
    PlacementGroup,
    get_current_placement_group,
    remove_placement_group,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


def on_this_node() -> NodeAffinitySchedulingStrategy:
    """Place actors beside this process, so that the loss of another node cannot end them."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


NAMESPACE = "deft.placement"
"""Namespace of Ray's key-value store that holds placement groups by run."""


def announce_placement_group(run: str) -> None:
    """Let `give_back_placement_group` know where this worker of ``run`` is placed."""
    group = get_current_placement_group()
    if group is not None:
        _internal_kv_put(run, group.id.binary(), namespace=NAMESPACE)


def give_back_placement_group(run: str) -> None:
    """Remove the placement group that a worker of ``run`` announced, if it is still there.

    Ray itself gives one back when both the actor that made it and that actor's job are gone. Ray
    Train's controller, killed, would so keep its workers' devices for as long as its driver lives.
    """
    announced = _internal_kv_get(run, namespace=NAMESPACE)
    if announced is not None:
        remove_placement_group(PlacementGroup(PlacementGroupID(announced)))
        _internal_kv_del(run, namespace=NAMESPACE)
