"""What the fleet does with each trajectory: a full run on a gang, measured there and committed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster.fleet.gang import Gang, GangTaskError
from cluster.store import AlreadyExists, Store
from cluster.work.plan import WorkItem
from meancache.calibration import Calibration
from meancache.statistics import trajectory_statistics

if TYPE_CHECKING:
    from cluster.ranks.renderer import Renderer

TRAJECTORIES = "graph/trajectories/"


@dataclass(frozen=True)
class TrajectoryRequest:
    """What every rank of a gang gets to run and measure one trajectory."""

    item: WorkItem
    graph: Calibration


def measure_trajectory(renderer: Renderer, request: TrajectoryRequest) -> bytes | None:
    """The gang's task: a full run, reduced to its statistics on rank 0; Parquet.

    Every rank has the whole output of every step, so one of them is enough to measure it.
    """
    # With torch and diffusers, which ranks alone need.
    from meancache.recording import with_levels_below
    from meancache.trajectory import record_trajectory

    item, graph = request.item, request.graph
    with with_levels_below(renderer.pipeline.scheduler, graph.below):
        if renderer.rank != 0:
            renderer.latents(item.prompt, item.seed, item.arguments)
            return None
        with record_trajectory(renderer.pipeline) as trajectory:
            renderer.latents(item.prompt, item.seed, item.arguments)
    velocities = trajectory.velocities(graph.recorded.num_inference_steps)
    statistics = trajectory_statistics(
        velocities, graph.grid, item.prompt_id, item.seed, item.prompt, len(graph.below)
    )
    return graph.add([statistics]).statistics_parquet()


@dataclass(frozen=True)
class MeasureTrajectory:
    """What the fleet does with each trajectory; a `fleet.Work`."""

    store: Store
    graph: Calibration

    def __call__(self, gang: Gang, item: WorkItem) -> str | None:
        """Commits one trajectory's statistics; returns what went wrong, if anything did."""
        if self.store.exists(trajectory_key(item)):
            return None  # by another driver, or a leader that died a moment later
        request = TrajectoryRequest(item, self.graph)
        try:
            data, _ = gang.run_with_retries(measure_trajectory, request)
            self.store.put_new(trajectory_key(item), data)
        except GangTaskError as error:
            return f"{item.prompt_id}, seed {item.seed}: {error}"
        except AlreadyExists:
            return None  # another driver was first, and its statistics are as good
        return None


def trajectory_key(item: WorkItem) -> str:
    """Where a trajectory's statistics lie."""
    return f"{TRAJECTORIES}{item.id}.parquet"
