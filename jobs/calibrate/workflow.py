"""python -m jobs.calibrate: full trajectories -> stability statistics -> ROOT/graph/*.parquet

Each trajectory is run in full on a gang, measured where it is, and committed as a file of a few
kilobytes. A restarted job runs those that are missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from cluster.fleet import driver as fleet
from cluster.fleet.gang import Gang, GangTaskError
from cluster.ranks import rank_builder
from cluster.store import AlreadyExists, Store
from cluster.work import plan
from cluster.work.plan import WorkItem, plan_items, specification
from cluster.work.prompts import read_prompts
from jobs._shared import cli as _cli
from jobs._shared.numbers import positive
from jobs._shared.progress import progress
from meancache.calibration import Calibration, trajectory_statistics

if TYPE_CHECKING:
    from cluster.ranks.renderer import Renderer

SPEC_KEY = "graph/job.json"
TRAJECTORIES = "graph/trajectories/"
STATISTICS_KEY = "graph/statistics.parquet"
MULTIGRAPH_KEY = "graph/multigraph.parquet"


@dataclass(frozen=True)
class TrajectoryRequest:
    """What every rank of a gang gets to run and measure one trajectory."""

    item: WorkItem
    graph: Calibration


def measure_trajectory(renderer: Renderer, request: TrajectoryRequest) -> bytes | None:
    """The gang's task: a full run, reduced to its statistics on rank 0; Parquet.

    Every rank has the whole output of every step, so one of them is enough to measure it.
    """
    from meancache.trajectory import record_trajectory  # with diffusers, which ranks alone need

    item, graph = request.item, request.graph
    if renderer.rank != 0:
        renderer.latents(item.prompt, item.seed, item.arguments)
        return None
    with record_trajectory(renderer.pipeline) as trajectory:
        renderer.latents(item.prompt, item.seed, item.arguments)
    velocities = trajectory.velocities(graph.grid.num_inference_steps)
    statistics = trajectory_statistics(
        velocities, graph.grid, item.prompt_id, item.seed, item.prompt
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


@dataclass(frozen=True)
class Prepared:
    """A calibration that nothing speaks against."""

    store: Store
    items: list[WorkItem]
    graph: Calibration
    calls: int
    spec: Mapping[str, Any]
    gangs: fleet.Gangs
    dry_run: bool


def prepare(options: argparse.Namespace) -> Prepared:
    """Checks the whole request before any rank starts."""
    model, arguments = _cli.model_and_arguments(options)
    gangs = _cli.gangs(options, rank_builder(model, arguments))
    model.check_arguments(arguments, gangs.size)
    items = plan_items(read_prompts(options.prompts), model, arguments, seeds=options.seeds)
    plan.check_one_setting(items, arguments)
    graph = Calibration(
        grid=model.grid(arguments["num_inference_steps"], arguments),
        model=model.key,
        conditions=model.conditions(arguments),
    )
    spec = specification("calibrate", items, model, arguments)
    store = _cli.open_output(options)
    plan.check_spec(store, spec, SPEC_KEY)
    calls = model.calls(arguments)
    return Prepared(store, items, graph, calls, spec, gangs, options.dry_run)


def perform(prepared: Prepared) -> int:
    """Runs the missing trajectories and writes the merged graph."""
    store, items = prepared.store, prepared.items
    done = set(store.list(TRAJECTORIES))
    missing = [item for item in items if trajectory_key(item) not in done]
    forwards = len(missing) * prepared.graph.grid.num_inference_steps * prepared.calls
    print(
        f"calibrate: {len(missing)} trajectories to run ({forwards} forwards), "
        f"{len(items) - len(missing)} already done"
    )
    if prepared.dry_run:
        return 0
    if missing:
        fleet.on_a_worker(partial(store.exists, SPEC_KEY))
    plan.freeze(store, prepared.spec, SPEC_KEY)
    work = MeasureTrajectory(store, prepared.graph)
    results = fleet.run(work, missing, prepared.gangs)
    problems = [problem for problem in progress(results, len(missing), "trajectories") if problem]
    for problem in problems:
        print(f"failed: {problem}", file=sys.stderr)
    if problems:
        print(f"{len(problems)} trajectories failed; the same command tries them again")
        return _cli.EXIT_FAILED_ITEMS
    graph = prepared.graph
    for item in items:
        graph = graph.merge(Calibration.from_parquet(store.get(trajectory_key(item))))
    # Where they are already, another version of the Parquet library may have written them.
    for key, data in (
        (MULTIGRAPH_KEY, graph.multigraph_parquet()),
        (STATISTICS_KEY, graph.statistics_parquet()),
    ):
        if not store.exists(key):
            store.put_new(key, data)
    print(f"graph of {len(graph.trajectories)} trajectories: {store.uri('graph')}")
    return 0


def parser() -> argparse.ArgumentParser:
    """The job's flags."""
    result = _cli.job_parser(
        "jobs.calibrate",
        "Runs prompts in full and measures how stable each possible jump between steps is.\n"
        "The result, ROOT/graph, is what jobs.solve makes schedules of. About 10 prompts do.\n"
        "Keep them apart from the prompts you will judge the schedules on.",
        "python -m jobs.calibrate --model tiny --prompts prompts.txt --seeds 1 --output out",
    )
    _cli.add_output(result, "where the graph goes")
    _cli.add_prompts(result)
    result.add_argument(
        "--seeds",
        type=positive,
        default=5,
        metavar="N",
        help="trajectories a prompt, each from its own noise (default 5, as in the paper)",
    )
    _cli.add_model(result)
    _cli.add_fleet(result)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return _cli.run_job(prepare, perform, parser(), argv)
