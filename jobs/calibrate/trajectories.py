"""What the fleet does with each trajectory: a full run on a gang, measured there and committed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cluster.fleet.gang import Gang
from cluster.fleet.giving_up import CountedWork
from cluster.ranks import use_adapters
from cluster.results.attempts import Attempts
from cluster.store import AlreadyExists, Store
from cluster.work.pictures import fetched
from cluster.work.plan import WorkItem
from meancache.calibration import Calibration
from meancache.statistics import trajectory_statistics

if TYPE_CHECKING:
    from cluster.ranks.renderer import Renderer

TRAJECTORIES = "graph/trajectories/"
ATTEMPTS = "graph/attempts/"


@dataclass(frozen=True)
class TrajectoryRequest:
    """What every rank of a gang gets to run and measure one trajectory."""

    item: WorkItem
    graph: Calibration
    store: Store


def measure_trajectory(renderer: Renderer, request: TrajectoryRequest) -> bytes | None:
    """The gang's task: a full run, reduced to its statistics on rank 0; Parquet.

    Every rank has the whole output of every step, so one of them is enough to measure it.
    """
    # With torch and diffusers, which ranks alone need.
    from meancache.recording import with_levels_below
    from meancache.trajectory import record_trajectory

    item, graph = request.item, request.graph
    use_adapters(renderer, item, request.store)
    with with_levels_below(renderer.pipeline.scheduler, graph.below):
        if renderer.rank != 0:
            renderer.latents(item.prompt, item.seed, item.call)
            return None
        with record_trajectory(renderer.pipeline) as trajectory:
            renderer.latents(item.prompt, item.seed, item.call)
    velocities = trajectory.velocities(graph.recorded.num_inference_steps)
    statistics = trajectory_statistics(
        velocities, graph.grid, item.prompt_id, item.seed, item.prompt, len(graph.below)
    )
    return graph.add([statistics]).statistics_parquet()


@dataclass(frozen=True)
class MeasureTrajectory(CountedWork):
    """What the fleet does with each trajectory; its result is what went wrong, '' if nothing did.

    Attributes:
        counted: the failed attempts; their store is the root.
        graph: what the trajectories are measured for.
    """

    counted: Attempts
    graph: Calibration

    @property
    def attempts(self) -> Attempts:
        """Where failed attempts are counted."""
        return self.counted

    def committed(self, item: WorkItem) -> str | None:
        """'' where the trajectory's statistics are there."""
        return "" if self.counted.store.exists(trajectory_key(item)) else None

    def attempt(self, gang: Gang, item: WorkItem, number: int) -> str:
        """Runs, measures and commits one trajectory."""
        if item.image is not None:
            item = replace(item, image=fetched(self.counted.store, item.image))
        data = gang.run(measure_trajectory, TrajectoryRequest(item, self.graph, self.counted.store))
        with suppress(AlreadyExists):  # another driver was first, and its statistics are as good
            self.counted.store.put_new(trajectory_key(item), data)
        return ""

    def give_up(self, gang: Gang, item: WorkItem, reasons: Sequence[str]) -> str:
        """The trajectory and the last reason."""
        return f"{item.prompt_id}, seed {item.seed}: {reasons[-1]}"


def trajectory_key(item: WorkItem) -> str:
    """Where a trajectory's statistics lie."""
    return f"{TRAJECTORIES}{item.id}.parquet"
