"""The methods by name: costs on edges -> path -> schedule.

All three need a calibration and nothing else. `fitted` takes its weights from the velocities of the
calibration's reference runs, at any noise levels that it can be carried to. For the very setting
that it was made under, weights fitted on runs of the model are better (`fitting`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from meancache.costs import least_squares_costs, secant_costs
from meancache.errors import SolverError
from meancache.json_values import shown
from meancache.schedule import Edge, Schedule
from meancache.solver import Steps, pairs_cost, path_cost, solve_pairs, solve_paper
from meancache.velocity import average_velocity, secant_velocity

if TYPE_CHECKING:
    from meancache.calibration import Calibration

METHODS = ("fitted", "secant", "paper")

# The paper's Table 4; models that it does not name get the value of its two image models.
PAPER_GAMMA = {"FluxPipeline": 4.0, "QwenImagePipeline": 4.0, "HunyuanVideoPipeline": 3.0}
DEFAULT_PAPER_GAMMA = 4.0
# Eq. 10 to the letter; the scripts that its authors published follow 'fine-step'.
PAPER_EXECUTION = "jump"
SECANT_GAMMA = 2.0
# Candidate paths for `fitted`: a cost fitted on so many velocities, with such a gamma. Measured on
# `tiny`, one of these four was within 0.1 dB of the best of thirty at every budget.
CANDIDATE_TERMS = (2, 1)
CANDIDATE_GAMMAS = (1.0, 2.0)
# `fitted` without a model: costs and weights on two velocities, and the sum of the jumps' errors.
# On four grids of `tiny` weights on three were 1 dB worse at 8 forwards and 0.5 better at 12, and
# gamma 2 was 1.7 dB worse in the mean where the calibration was carried (docs/calibration.md).
FITTED_TERMS = 2
FITTED_GAMMA = 1.0
# Towards holding the velocity, relative to its mean square.
RIDGE = 1e-6


def solve(
    calibration: Calibration,
    budgets: Sequence[int],
    method: str = "fitted",
    gamma: float | None = None,
    execution: str = PAPER_EXECUTION,
) -> dict[int, Schedule]:
    """One schedule a budget on the calibration's grid, by the name of the method; runs no model.

    Args:
        calibration: carried to the grid of the runs (`Calibration.on`).
        budgets: forwards that a run may take, each 1..T.
        method: one of METHODS.
        gamma: peak suppression; None takes the method's own.
        execution: 'jump' or 'fine-step', for the paper's method alone.

    Raises:
        SolverError: the method is unknown, or a budget or gamma breaks a rule.
        CalibrationError: the calibration has no trajectory.
    """
    if method == "paper":
        gamma = paper_gamma(calibration) if gamma is None else gamma
        return paper_schedules(calibration, budgets, gamma, execution)
    if method == "secant":
        return secant_schedules(calibration, budgets, SECANT_GAMMA if gamma is None else gamma)
    if method == "fitted":
        return fitted_schedules(calibration, budgets, FITTED_GAMMA if gamma is None else gamma)
    raise SolverError(f"method {shown(method)} must be one of {', '.join(METHODS)}")


def paper_gamma(calibration: Calibration) -> float:
    """The paper's gamma for the calibration's model (Table 4)."""
    return PAPER_GAMMA.get(calibration.model.get("pipeline", ""), DEFAULT_PAPER_GAMMA)


def paper_schedules(
    calibration: Calibration, budgets: Iterable[int], gamma: float, execution: str
) -> dict[int, Schedule]:
    """The paper's schedules for a calibration, one for each budget (eq. 13-15).

    Carried to another grid, a calibration has no L1 costs; then the path is that of costs in RMS,
    and `calibration.cost` of the schedule says so.

    Args:
        calibration: statistics of at least one trajectory.
        budgets: forwards a run may take, each 1..T.
        gamma: peak suppression (Table 4: 3 for HunyuanVideo, 4 for FLUX.1 and Qwen-Image).
        execution: 'jump' or 'fine-step'.

    Raises:
        SolverError: see `solver.solve_paper`.
        CalibrationError: the calibration has no trajectory.
    """
    record = calibrated_on(calibration)
    if calibration.origin is None:
        costs = calibration.costs()
    else:
        costs = calibration.costs_in_rms()
        record["cost"] = "rms"
    return {
        budget: Schedule(
            grid=calibration.grid,
            edges=tuple(Edge(start, stop, span) for start, stop, span in path),
            method="paper",
            budget=budget,
            execution=execution,
            gamma=gamma,
            model=calibration.model,
            conditions=calibration.conditions,
            predicted_cost=path_cost(costs, path, gamma),
            calibration=record,
        )
        for budget, path in solve_paper(costs, budgets, gamma).items()
    }


def secant_schedules(
    calibration: Calibration, budgets: Iterable[int], gamma: float = SECANT_GAMMA
) -> dict[int, Schedule]:
    """Schedules that extrapolate the line through the last two computed velocities.

    Positions are solved with the history that a run will have; the weights follow from the grid.

    Raises:
        SolverError: see `solver.solve_pairs`.
        CalibrationError: the calibration has no trajectory.
    """
    sigmas = calibration.grid.array()
    costs = secant_costs(calibration.gram(), sigmas)

    def edge(previous: int, start: int, stop: int) -> Edge:
        row = secant_velocity(sigmas, previous, start, stop)
        return Edge(
            start, stop, weights={step: float(row[step]) for step in sorted({previous, start})}
        )

    return {
        budget: weighted_schedule(
            calibration,
            "secant",
            budget,
            [edge(*jump) for jump in jumps_of(steps, calibration.grid.num_inference_steps)],
            gamma=gamma,
            predicted_cost=pairs_cost(costs, steps, gamma),
        )
        for budget, steps in solve_pairs(costs, budgets, gamma).items()
    }


def fitted_schedules(
    calibration: Calibration, budgets: Iterable[int], gamma: float = FITTED_GAMMA
) -> dict[int, Schedule]:
    """Schedules with the weights that suit the calibration's own velocities best; runs no model.

    Positions are solved with the history that a run will have. The weights of a jump are the least
    squares fit of u(t, s) on the last FITTED_TERMS computed velocities, pooled over the
    trajectories, with a small ridge towards holding the velocity. They are off-policy: right on
    the states of a reference run, where `fitting` fits on those of the accelerated run.

    Raises:
        SolverError: see `solver.solve_pairs`.
        CalibrationError: the calibration has no trajectory, or one without any velocity.
    """
    gram, sigmas = calibration.gram(), calibration.grid.array()
    costs = least_squares_costs(gram, sigmas, FITTED_TERMS)
    schedules = {}
    for budget, steps in solve_pairs(costs, budgets, gamma).items():
        edges = []
        for number, (start, stop) in enumerate(pairwise((*steps, len(gram)))):
            known = steps[max(0, number - FITTED_TERMS + 1) : number + 1]
            weights = least_squares_weights(gram, average_velocity(sigmas, start, stop), known)
            edges.append(Edge(start, stop, weights=weights))
        schedules[budget] = weighted_schedule(
            calibration,
            "fitted",
            budget,
            edges,
            {"weights": "off-policy"},
            gamma=gamma,
            predicted_cost=pairs_cost(costs, steps, gamma),
        )
    return schedules


def least_squares_weights(
    gram: np.ndarray, average: np.ndarray, known: Sequence[int]
) -> dict[int, float]:
    """The combination of known velocities that is closest to an average velocity.

    Args:
        gram: (T, T) float64, products of all velocities.
        average: (T,) the average velocity, as a row over the steps.
        known: steps whose velocities may be combined, the newest last.
    """
    normal = gram[np.ix_(known, known)]
    ridge = RIDGE * np.trace(normal) / len(known) * np.eye(len(known))
    missing = average.copy()
    missing[known[-1]] -= 1.0
    solution = np.linalg.solve(normal + ridge, (gram @ missing)[list(known)])
    solution[-1] += 1.0
    return {step: float(weight) for step, weight in zip(known, solution, strict=True)}


def candidate_paths(
    calibration: Calibration, budgets: Sequence[int], gammas: Sequence[float] = CANDIDATE_GAMMAS
) -> dict[int, list[Steps]]:
    """Computed steps worth fitting: for each budget the optima of several costs, each once.

    The first is the favourite where there are no forwards to try the others.

    Raises:
        SolverError: see `solver.solve_pairs`.
        CalibrationError: the calibration has no trajectory.
    """
    gram, sigmas = calibration.gram(), calibration.grid.array()
    candidates: dict[int, list[Steps]] = {budget: [] for budget in budgets}
    for terms in CANDIDATE_TERMS:
        costs = least_squares_costs(gram, sigmas, terms)
        for gamma in gammas:
            for budget, steps in solve_pairs(costs, budgets, gamma).items():
                if steps not in candidates[budget]:
                    candidates[budget].append(steps)
    return candidates


def weighted_schedule(
    calibration: Calibration,
    method: str,
    budget: int,
    edges: Sequence[Edge],
    record: Mapping[str, Any] | None = None,
    **known: Any,
) -> Schedule:
    """A schedule of weighted edges for the calibration's setting.

    Args:
        calibration: whose grid, model and conditions it is for.
        method: 'secant' or 'fitted'.
        budget: forwards a run may take.
        edges: with weights.
        record: what there is to say of its making, beside the calibration's id and size.
        known: other fields of `Schedule`.
    """
    return Schedule(
        grid=calibration.grid,
        edges=tuple(edges),
        method=method,
        budget=budget,
        model=calibration.model,
        conditions=calibration.conditions,
        calibration={**calibrated_on(calibration), **(record or {})},
        **known,
    )


def calibrated_on(calibration: Calibration) -> dict[str, Any]:
    """The `calibration` of a schedule that needs nothing else."""
    return {"graph": calibration.id, "trajectories": len(calibration.trajectories)}


def jumps_of(steps: Steps, end: int) -> list[tuple[int, int, int]]:
    """(p, t, s) of every jump between computed steps; p = t in the first, s = `end` in the last."""
    return list(zip((steps[0], *steps[:-1]), steps, (*steps[1:], end), strict=True))
