"""The methods by name: costs on edges -> path -> schedule.

`paper` and `secant` need a calibrated graph and nothing else. `fitted` takes its candidate paths
from the same graph; its weights are fitted on runs of the model (`fitting`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from meancache.calibration import Calibration
from meancache.costs import least_squares_costs, secant_costs
from meancache.schedule import Edge, Schedule
from meancache.solver import Steps, pairs_cost, path_cost, solve_pairs, solve_paper
from meancache.velocity import secant_velocity

METHODS = ("fitted", "secant", "paper")

# The paper's Table 4; models it does not name get the value of its two image models.
PAPER_GAMMA = {"HunyuanVideoPipeline": 3.0}
DEFAULT_PAPER_GAMMA = 4.0
SECANT_GAMMA = 2.0
# Candidate paths for `fitted`: a cost fitted on so many velocities, with such a gamma. Measured on
# `tiny`, one of these four was within 0.1 dB of the best of thirty at every budget.
CANDIDATE_TERMS = (2, 1)
CANDIDATE_GAMMAS = (1.0, 2.0)


def paper_gamma(graph: Calibration) -> float:
    """The paper's gamma for the graph's model (Table 4)."""
    return PAPER_GAMMA.get(graph.model.get("pipeline", ""), DEFAULT_PAPER_GAMMA)


def paper_schedules(
    graph: Calibration, budgets: Iterable[int], gamma: float, execution: str
) -> dict[int, Schedule]:
    """The paper's schedules for a calibrated graph, one for each budget (eq. 13-15).

    Args:
        graph: statistics of at least one trajectory.
        budgets: forwards a run may take, each 1..T.
        gamma: peak suppression (Table 4: 3 for HunyuanVideo, 4 for FLUX.1 and Qwen-Image).
        execution: 'jump' or 'fine-step'.

    Raises:
        SolverError: see `solver.solve_paper`.
        CalibrationError: the graph has no trajectory.
    """
    costs = graph.costs()
    calibration = calibrated_on(graph)
    return {
        budget: Schedule(
            grid=graph.grid,
            edges=tuple(Edge(start, stop, span) for start, stop, span in path),
            method="paper",
            budget=budget,
            execution=execution,
            gamma=gamma,
            model=graph.model,
            conditions=graph.conditions,
            predicted_cost=path_cost(costs, path, gamma),
            calibration=calibration,
        )
        for budget, path in solve_paper(costs, budgets, gamma).items()
    }


def secant_schedules(
    graph: Calibration, budgets: Iterable[int], gamma: float = SECANT_GAMMA
) -> dict[int, Schedule]:
    """Schedules that extrapolate the line through the last two computed velocities.

    Positions are solved with the history that a run will have; the weights follow from the grid.

    Raises:
        SolverError: see `solver.solve_pairs`.
        CalibrationError: the graph has no trajectory.
    """
    sigmas = graph.grid.array()
    costs = secant_costs(graph.gram(), sigmas)

    def edge(previous: int, start: int, stop: int) -> Edge:
        row = secant_velocity(sigmas, previous, start, stop)
        return Edge(
            start, stop, weights={step: float(row[step]) for step in sorted({previous, start})}
        )

    return {
        budget: weighted_schedule(
            graph,
            "secant",
            budget,
            [edge(*jump) for jump in jumps_of(steps, graph.grid.num_inference_steps)],
            gamma=gamma,
            predicted_cost=pairs_cost(costs, steps, gamma),
        )
        for budget, steps in solve_pairs(costs, budgets, gamma).items()
    }


def candidate_paths(
    graph: Calibration, budgets: Sequence[int], gammas: Sequence[float] = CANDIDATE_GAMMAS
) -> dict[int, list[Steps]]:
    """Computed steps worth fitting: for each budget the optima of several costs, each once.

    The first is the favourite where there are no forwards to try the others.

    Raises:
        SolverError: see `solver.solve_pairs`.
        CalibrationError: the graph has no trajectory.
    """
    gram, sigmas = graph.gram(), graph.grid.array()
    candidates: dict[int, list[Steps]] = {budget: [] for budget in budgets}
    for terms in CANDIDATE_TERMS:
        costs = least_squares_costs(gram, sigmas, terms)
        for gamma in gammas:
            for budget, steps in solve_pairs(costs, budgets, gamma).items():
                if steps not in candidates[budget]:
                    candidates[budget].append(steps)
    return candidates


def weighted_schedule(
    graph: Calibration,
    method: str,
    budget: int,
    edges: Sequence[Edge],
    calibration: Mapping[str, Any] | None = None,
    **known: Any,
) -> Schedule:
    """A schedule of weighted edges for the graph's setting.

    Args:
        graph: whose grid, model and conditions it is for.
        method: 'secant' or 'fitted'.
        budget: forwards a run may take.
        edges: with weights.
        calibration: what there is to say of its making, beside the graph's id and size.
        known: other fields of `Schedule`.
    """
    return Schedule(
        grid=graph.grid,
        edges=tuple(edges),
        method=method,
        budget=budget,
        model=graph.model,
        conditions=graph.conditions,
        calibration={**calibrated_on(graph), **(calibration or {})},
        **known,
    )


def calibrated_on(graph: Calibration) -> dict[str, Any]:
    """The `calibration` of a schedule that needs the graph alone."""
    return {"graph": graph.id, "trajectories": len(graph.trajectories)}


def jumps_of(steps: Steps, end: int) -> list[tuple[int, int, int]]:
    """(p, t, s) of every jump between computed steps; p = t in the first, s = `end` in the last."""
    return list(zip((steps[0], *steps[:-1]), steps, (*steps[1:], end), strict=True))
