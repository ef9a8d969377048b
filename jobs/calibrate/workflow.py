"""Full trajectories -> stability statistics -> ROOT/graph/*.parquet, ROOT/calibration.parquet

Each trajectory is run in full on a gang, measured where it is, and committed as a file of a few
kilobytes. A restarted job runs those that are missing.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from cluster.fleet.beginning import begin
from cluster.fleet.gangs import Gangs
from cluster.ranks import rank_builder
from cluster.results.attempts import close_round, open_round
from cluster.store import Store
from cluster.work import plan
from cluster.work.adapters import LORA, Adapters, of_text
from cluster.work.plan import WorkItem, plan_items, specification
from cluster.work.prompts import Prompt, Prompts, read_prompts
from jobs._shared.configs import DEFAULT_FLEET, FleetConfig, ModelConfig
from jobs._shared.images import examine_all, keep_all
from jobs._shared.progress import Staffing, counted, progress
from jobs._shared.roots import open_output, refusing
from jobs.calibrate.trajectories import (
    ATTEMPTS,
    TRAJECTORIES,
    MeasureTrajectory,
    trajectory_key,
)
from meancache.calibration import Calibration
from meancache.carrying import LEVELS_BELOW, levels_below

__all__ = ["Config", "Outcome", "prepare", "run", "trajectory_key"]

SPEC_KEY = "graph/job.json"
STATISTICS_KEY = "graph/statistics.parquet"
MULTIGRAPH_KEY = "graph/multigraph.parquet"
# The same statistics as a file to copy and share.
CALIBRATION_KEY = "calibration.parquet"


@dataclass(frozen=True)
class Config:
    """What is calibrated, on what.

    Attributes:
        output: the root that `graph/` goes to.
        prompts: a prompts file, or its rows where they are there already.
        model: whose trajectories are run.
        seeds: trajectories a prompt.
        levels_below: noise levels below the last step that are recorded too, so that the
            calibration can be carried to runs of more steps or a smaller shift.
        fleet: the gangs.
        dry_run: say what would be done, and stop.
        prompt_column: the column that holds the prompts.
    """

    output: str
    prompts: str | Sequence[Prompt]
    model: ModelConfig
    seeds: int = 5
    levels_below: int = LEVELS_BELOW
    fleet: FleetConfig = DEFAULT_FLEET
    dry_run: bool = False
    prompt_column: str = "prompt"


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        graph: of all trajectories; None where some failed, or of a dry run.
        failed: trajectories that failed for good.
    """

    graph: Calibration | None
    failed: int = 0


@dataclass(frozen=True)
class Prepared:
    """A calibration that nothing speaks against."""

    store: Store
    items: list[WorkItem]
    graph: Calibration
    calls: int
    spec: Mapping[str, Any]
    gangs: Gangs
    rows: Prompts
    adapters: Adapters


def run(config: Config) -> Outcome:
    """Runs the missing trajectories and writes the merged graph."""
    prepared = prepare(config)
    store, items = prepared.store, prepared.items
    done = set(store.list(TRAJECTORIES))
    missing = [item for item in items if trajectory_key(item) not in done]
    forwards = len(missing) * prepared.graph.recorded.num_inference_steps * prepared.calls
    print(
        f"calibrate: {counted(len(missing), 'trajectory')} to run ({forwards} forwards), "
        f"{len(items) - len(missing)} already done"
    )
    if config.dry_run:
        return Outcome(None)
    if missing:
        begin(prepared.gangs)
    from cluster.fleet import driver as fleet  # with Ray, which a refusal does without

    plan.freeze(store, prepared.spec, SPEC_KEY)
    keep_all(store, prepared.rows)
    prepared.adapters.keep(store)
    attempts = open_round(store, ATTEMPTS)
    work = MeasureTrajectory(attempts, prepared.graph)
    staffing = Staffing("running")
    results = fleet.run(work, missing, prepared.gangs, work.lost, staffing.staffed, store)
    answers = progress(results, len(missing), "trajectories", also=staffing.__str__)
    problems = [answer for answer in answers if answer]
    for problem in problems:
        print(f"failed: {problem}", file=sys.stderr)
    if problems:
        close_round(attempts)
        print(f"{counted(len(problems), 'trajectory')} failed; the same command tries them again")
        return Outcome(None, len(problems))
    return Outcome(_merge(prepared))


@refusing()
def prepare(config: Config) -> Prepared:
    """Checks the whole request before any rank starts."""
    model, arguments = config.model.find()
    given = config.prompts
    if isinstance(given, str):
        rows = read_prompts(given, config.prompt_column)
    else:
        rows = Prompts(given, pa.table({}))
    size = config.fleet.gang_size
    arguments |= examine_all(config.model, config.output, rows, model, size, "a calibration")
    adapters = Adapters()
    if config.model.lora:
        arguments[LORA] = adapters.resolved(tuple(map(of_text, config.model.lora)))
    gangs = config.fleet.recruit(rank_builder(model, arguments))
    model.check_arguments(arguments, gangs.size)
    items = plan_items(rows, model, arguments, seeds=config.seeds)
    plan.check_one_setting(items, arguments, images=True)
    grid = model.grid(arguments["num_inference_steps"], arguments)
    graph = Calibration(
        grid=grid,
        model=model.key,
        conditions=model.conditions(arguments),
        below=levels_below(grid, config.levels_below),
    )
    spec = specification("calibrate", items, model, arguments)
    if config.levels_below:
        spec["levels_below"] = config.levels_below
    store = open_output(config.output)
    plan.check_spec(store, spec, SPEC_KEY)
    return Prepared(store, items, graph, model.calls(arguments), spec, gangs, rows, adapters)


def _merge(prepared: Prepared) -> Calibration:
    """The graph of all trajectories, committed."""
    store, graph = prepared.store, prepared.graph
    for item in prepared.items:
        graph = graph.merge(Calibration.from_parquet(store.get(trajectory_key(item))))
    # Where they are already, another version of the Parquet library may have written them.
    for key, data in (
        (MULTIGRAPH_KEY, graph.multigraph_parquet()),
        (STATISTICS_KEY, graph.statistics_parquet()),
        (CALIBRATION_KEY, graph.statistics_parquet()),
    ):
        if not store.exists(key):
            store.put_new(key, data)
    print(f"graph of {counted(len(graph.trajectories), 'trajectory')}: {store.uri('graph')}")
    lowest = graph.recorded.sigmas[-2]
    print(
        f"calibration for any run of noise levels from {graph.grid.sigmas[0]:.4g} to {lowest:.4g}: "
        f"{store.uri(CALIBRATION_KEY)}"
    )
    return graph
