"""python -m jobs.solve: a stability graph -> one schedule for each budget. Seconds, no GPU."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.store import MissingKey, Store, open_store
from jobs import _cli
from meancache.schedule import EXECUTIONS, Schedule
from meancache.solver import DEFAULT_GAMMA, GAMMA, SolverError, paper_schedules
from meancache.stability import GraphError, StabilityGraph

METHODS = ("paper",)


@dataclass(frozen=True)
class Prepared:
    """Solved schedules by file name, and where they go."""

    store: Store
    output: str
    schedules: dict[str, Schedule]


def prepare(options: argparse.Namespace) -> Prepared:
    """Reads the graph and solves; nothing is written yet."""
    graph_store = open_store(options.graph)
    try:
        graph = StabilityGraph.from_parquet(graph_store.get("statistics.parquet"))
    except MissingKey as error:
        raise GraphError(
            f"{graph_store.uri('statistics.parquet')} does not exist; give the ROOT/graph that "
            "jobs.calibrate finished"
        ) from error
    gamma = options.gamma
    if gamma is None:
        gamma = GAMMA.get(graph.model.get("pipeline", ""), DEFAULT_GAMMA)
    solved = paper_schedules(graph, budgets(options.budgets), gamma, options.execution)
    store = _cli.open_output(options)
    named = {f"{options.method}-b{budget}.json": schedule for budget, schedule in solved.items()}
    return Prepared(store, options.output, named)


def perform(prepared: Prepared) -> int:
    """Writes the schedules and shows which steps each computes."""
    for name, schedule in prepared.schedules.items():
        prepared.store.put(name, schedule.dumps().encode())
        print(f"{name:>16} {schedule.strip()} {schedule.nfe} forwards")
    first = next(iter(prepared.schedules.values()))
    print(
        f"method {first.method}, gamma {first.gamma:g}, execution {first.execution}, from "
        f"{first.calibration['trajectories']} trajectories: {prepared.output}"
    )
    return 0


def budgets(text: str) -> list[int]:
    """'8,10,12' as numbers, ascending, each once. Raises SolverError."""
    try:
        return sorted({int(number) for number in text.split(",")})
    except ValueError as error:
        raise SolverError(f"budgets {text!r} must be numbers such as 8,10,12") from error


def parser() -> argparse.ArgumentParser:
    """The job's flags."""
    result = _cli.job_parser(
        "jobs.solve",
        "Solves the budget-constrained, peak-suppressed shortest path over a stability graph:\n"
        "which of the steps run the transformer, for every budget at once.",
        "python -m jobs.solve --graph out/graph --budgets 8,10,12 --output out/schedules",
    )
    _cli.add_output(result, "where the schedules go, as METHOD-bBUDGET.json")
    result.add_argument(
        "--graph", required=True, metavar="DIR", help="the ROOT/graph of jobs.calibrate"
    )
    result.add_argument(
        "--budgets",
        default="8,10,12,15",
        metavar="B,B,...",
        help="forwards a video may take (default 8,10,12,15)",
    )
    result.add_argument("--method", choices=METHODS, default="paper", help="default: paper")
    result.add_argument(
        "--gamma",
        type=float,
        metavar="G",
        help="how strongly single bad jumps are avoided (default: the paper's Table 4, 3 for "
        "HunyuanVideo, 4 for others)",
    )
    result.add_argument(
        "--execution",
        choices=EXECUTIONS,
        default="jump",
        help="how a jump is run: 'jump' (default) is the paper's eq. 10, 'fine-step' what its "
        "authors' scripts do",
    )
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return _cli.run_job(prepare, perform, parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
