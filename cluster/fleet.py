"""Many gangs over one Ray cluster: hands out items, streams back results.

One Ray Data actor leads each gang; its ranks are its child processes. Knows nothing of what
is done to an item: that is the job's `Work`.
"""

from __future__ import annotations

import logging
import os
import pickle
import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import ray.data

from cluster.gang import BuildRank, Gang, GangError

# Small blocks spread the items over the gangs; more blocks than this only cost bookkeeping.
MAX_BLOCKS = 1000
# Of a machine without GPUs a leader reserves little: the ranks' cores are not Ray's to count,
# and leaders that took every core would starve the tasks that feed them.
CPU_SHARE = 0.01


class FleetError(ValueError):
    """The cluster cannot hold the gangs that were asked for; the message says what it has."""


Work = Callable[[Gang, Any], Any]
"""What is done to each item, on a gang's leader. Must pickle, and hold no credential."""


@dataclass(frozen=True)
class Gangs:
    """The gangs of a job.

    Attributes:
        build_rank: called on each rank of a new gang.
        size: ranks in a gang.
        least: how many gangs to begin with; None for all that there is room for.
        most: how many gangs autoscaling may reach; None likewise.
    """

    build_rank: BuildRank
    size: int
    least: int | None = None
    most: int | None = None


def parse_count(text: str) -> tuple[int, int]:
    """Reads how many gangs: 'A' or 'A:B', as (least, most). Raises FleetError."""
    match = re.fullmatch(r"(\d{1,6})(?::(\d{1,6}))?", text)
    least, most = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= least <= most:
        raise FleetError(f"gangs {text!r} must be A or A:B with 1 <= A <= B, such as 4 or 2:8")
    return least, most


def connect() -> None:
    """Joins the cluster of RAY_ADDRESS or of this machine; where there is none, starts one."""
    if ray.is_initialized():
        return
    # Ray Data's actors make Ray's core complain on every start, at level error, to no effect.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # What ranks print belongs to Ray's own logs; a job's log is its driver's.
    ray.init(logging_level=logging.ERROR, log_to_driver=False)


def run(work: Work, items: Sequence[Any], gangs: Gangs) -> Iterator[Any]:
    """Does all items with as many gangs as asked for; yields results as they come, unordered.

    Args:
        work: what to do with each item.
        items: anything that pickles.
        gangs: who does it.

    Raises:
        FleetError: the cluster has no room for one gang.
        GangError: the ranks of a gang do not start.
        ray.exceptions.RayError: leaders died again and again.
        Exception: whatever an item's work raised.
    """
    if not items:
        return
    connect()
    resources, places = _room(gangs.size)
    least = min(gangs.least or places, len(items))
    most = min(gangs.most or places, len(items))
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = False
    # An item may take an hour, and a row that is lost with its block would be lost for good.
    context.execution_no_progress_timeout_s = -1
    context.max_errored_blocks = 0
    context.max_consecutive_actor_init_deaths = 3
    # With Ray's default a pool of gangs never grows.
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
    dataset = ray.data.from_items(
        [{"item": pickle.dumps(item)} for item in items],
        override_num_blocks=min(len(items), MAX_BLOCKS),
    ).map_batches(
        _Leader,
        fn_constructor_args=(work, gangs),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(
            min_size=least, max_size=most, max_tasks_in_flight_per_actor=1
        ),
        **resources,
    )
    for row in dataset.iter_rows():
        result, error = pickle.loads(row["result"])
        if error is not None:
            raise error
        yield result


def on_a_worker(check: Callable[[], Any]) -> None:
    """Calls `check` in a worker process of the cluster, before any gang is started there.

    Workers have the environment of their node, not that of the driver: what the driver can
    reach they may not.

    Raises:
        FleetError: the check raised; holds its message.
    """
    connect()
    try:
        ray.get(_call.options(num_cpus=0, max_retries=0).remote(check))
    except ray.exceptions.RayTaskError as error:
        raise FleetError(
            f"a worker of the cluster fails where this driver does not: {error.cause}. Workers "
            "have their node's environment: start the cluster with it, or use the nodes' role"
        ) from error


@ray.remote
def _call(check: Callable[[], Any]) -> None:
    check()


class _Leader:
    """The actor that holds one gang.

    Errors travel as results: raised here, Ray would wrap them in pages of its own, and would
    try an actor that cannot start again and again.
    """

    def __init__(self, work: Work, gangs: Gangs) -> None:
        self.work = work
        self.gang = Gang(gangs.build_rank, gangs.size)
        self.failure: GangError | None = None
        try:
            self.gang.start()
        except GangError as error:
            self.failure = error

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[bytes]]:
        return {"result": [pickle.dumps(self._do(pickle.loads(item))) for item in batch["item"]]}

    def _do(self, item: Any) -> tuple[Any, Exception | None]:
        if self.failure is not None:
            return None, self.failure
        try:
            return self.work(self.gang, item), None
        except Exception as error:
            error.add_note(traceback.format_exc())
            return None, error


def _room(gang_size: int) -> tuple[dict[str, float], int]:
    """Ray resources of one gang, and how many gangs the cluster has room for now."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = [int(node.get("GPU", 0)) for node in nodes]
    if any(gpus):
        room = sum(count // gang_size for count in gpus)
        if room == 0:
            raise FleetError(
                f"gang size {gang_size} needs {gang_size} GPUs on one node, but the largest node "
                f"has {max(gpus)}: use a smaller --gang-size"
            )
        return {"num_gpus": gang_size}, room
    cores = [int(node.get("CPU", 0)) for node in nodes]
    return {"num_cpus": CPU_SHARE}, max(1, sum(count // gang_size for count in cores))
