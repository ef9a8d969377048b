"""Room on the cluster: which nodes can hold a gang, and what is free of how much."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray._private import state as ray_state
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.experimental import internal_kv

from cluster.fleet.errors import FleetError

# On a machine without GPUs a leader reserves little: the ranks' cores are not Ray's to count.
CPU_SHARE = 0.01
# Ranks that may share a core, for trying out what a gang does.
TURNS = 2


@dataclass(frozen=True)
class Placement:
    """Where gangs of one size may be.

    Attributes:
        gang_size: ranks in a gang.
        on_gpus: each rank has a GPU; else gangs share the cores of CPU nodes.
    """

    gang_size: int
    on_gpus: bool

    def options(self, excluded: Collection[str]) -> dict[str, Any]:
        """Ray's options for a leader that is to be on none of the excluded nodes."""
        amount = {"num_gpus": self.gang_size} if self.on_gpus else {"num_cpus": CPU_SHARE}
        # Spread over the nodes, so that the loss of one costs as few gangs as can be.
        options: dict[str, Any] = {**amount, "scheduling_strategy": "SPREAD"}
        if excluded:
            options["label_selector"] = {"ray.io/node-id": f"!in({','.join(sorted(excluded))})"}
        return options

    def gangs_by_node(self) -> dict[str, int]:
        """How many gangs each node can hold that can hold one, by its id, free or not."""
        kind, size = ("GPU", self.gang_size) if self.on_gpus else ("CPU", CPU_SHARE)
        able = {
            one["NodeID"]: one["Resources"][kind]
            for one in alive_nodes()
            if one["Resources"].get(kind, 0) >= size
        }
        return {node: max(1, int(amount) // self.gang_size) for node, amount in able.items()}

    def need(self) -> str:
        """What a gang needs, in words."""
        if self.on_gpus:
            return f"{self.gang_size} GPU{'s' * (self.gang_size > 1)} on one node"
        return f"a share of a CPU ({CPU_SHARE:g})"

    def free(self) -> Free:
        """What is free now of what gangs need."""
        kind = "GPU" if self.on_gpus else "CPU"
        nodes = {one["NodeID"]: one["Resources"].get(kind, 0) for one in alive_nodes()}
        available = ray_state.available_resources_per_node()
        free = [available.get(node, {}).get(kind, 0) for node in nodes]
        return Free(kind, sum(nodes.values()), sum(free), max(free, default=0))

    def has_room(self, free: Free) -> bool:
        """Whether a gang could start now."""
        return free.most >= (self.gang_size if self.on_gpus else CPU_SHARE)


@dataclass(frozen=True)
class Free:
    """What is free of a resource.

    Attributes:
        kind: 'GPU' or 'CPU'.
        total: of it in the cluster.
        free: of that, free now.
        most: free on the node that has the most free.
    """

    kind: str
    total: float
    free: float
    most: float

    def __str__(self) -> str:
        if not self.total:
            return f"no node of the cluster has a {self.kind}"
        on_one = "" if self.most == self.free else f", and on no node more than {self.most:g}"
        return f"{self.free:g} of {self.total:g} {self.kind}s are free{on_one}"


def placement(gang_size: int, on_gpus: bool | None = None) -> Placement:
    """Where gangs of this size may be on the cluster that this process has joined.

    Args:
        gang_size: ranks in a gang.
        on_gpus: whether each rank has a GPU; None for yes where the cluster has any, or where it
            has none yet and an autoscaler that may start some.

    Raises:
        FleetError: nowhere.
    """
    sizes = [int(one["Resources"].get("GPU", 0)) for one in alive_nodes()]
    largest = max(sizes, default=0)
    scales = largest < gang_size and autoscaled()
    if on_gpus is None:
        on_gpus = largest > 0 or scales
    if on_gpus and largest < gang_size and not scales:
        gpus = f"{gang_size} GPU{'s' * (gang_size > 1)}"
        fix = "use a smaller --gang-size" if largest else "use --device cpu"
        raise FleetError(
            f"gang size {gang_size} needs {gpus} on one node, but the largest node has {largest}: "
            f"{fix}"
        )
    cores = max((int(one["Resources"].get("CPU", 0)) for one in alive_nodes()), default=0)
    if not on_gpus and gang_size > max(TURNS, cores) and not autoscaled():
        raise FleetError(
            f"gang size {gang_size} is more than the {cores} cores of the largest node, on which "
            "its ranks would take turns: use a smaller --gang-size"
        )
    return Placement(gang_size, on_gpus)


def autoscaled() -> bool:
    """Whether the cluster has an autoscaler that starts nodes of kinds of its own.

    Ray runs one on every head. Where it has no configuration it only reads, and names the kinds
    of the nodes that are there by their ids.
    """
    return any(not kind.startswith("node_") for kind in (*_kinds_v1(), *_kinds_v2()))


def _kinds_v1() -> Iterable[str]:
    """The kinds of the nodes that are there, as Ray's first autoscaler tells them."""
    status = json.loads(internal_kv._internal_kv_get(DEBUG_AUTOSCALING_STATUS) or b"{}")
    kinds = (status.get("autoscaler_report") or {}).get("node_type_mapping") or {}
    return kinds.values()


def _kinds_v2() -> Iterable[str]:
    """The same of its second one, which is newer and has to be asked for."""
    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    if status.stats.autoscaler_version in (None, "0"):  # it has never reported
        return []
    nodes = [*status.active_nodes, *status.idle_nodes]
    return [node.ray_node_type_name for node in nodes if node.ray_node_type_name]


def alive_nodes() -> list[Mapping[str, Any]]:
    """Ray's records of the nodes that are there."""
    return [node for node in ray.nodes() if node["Alive"]]


def node_of(actor: Any) -> str:
    """The id of the node where Ray placed an actor, also after its end; '' where it has none."""
    record = ray_state.actors(actor._actor_id.hex())
    return record.get("Address", {}).get("NodeID", "") if record.get("Pid") else ""


def node_name(node: str) -> str:
    """A node as people know it: its host, its address and the beginning of its id."""
    for one in ray.nodes():
        if one["NodeID"] == node:
            return f"{one['NodeManagerHostname']} ({one['NodeManagerAddress']}, {node[:8]})"
    return node[:8] or "unknown"
