"""The paper's MeanCache as the study of the Golden Path Hypothesis runs it: five forced steps.

The multigraph, the peak-suppressed shortest path and the execution rules are the paper's
(arXiv:2601.19961); the first five steps are all computed, and the path is solved for the rest.
The paper's gamma and both execution rules are tried on the calibration runs for each budget.
"""

from __future__ import annotations

import itertools

import numpy as np

from meancache.baselines.calibration_data import CalibrationData
from meancache.schedule import EXECUTIONS, Edge, Schedule
from meancache.solver import solve_paper

SOURCE = "written from arXiv:2601.19961 and the Golden Path study"
FORCED = 5
GAMMAS = (1.0, 2.0, 3.0, 4.0)


def forced_schedules(data: CalibrationData) -> list[Schedule]:
    """The paper's schedules with forced steps, at each budget that leaves a step to choose."""
    costs = with_forced(data.statistics.costs(), FORCED)
    return [
        data.best(
            data.schedule(
                "paper-forced",
                budget,
                [Edge(start, stop, span) for start, stop, span in path],
                SOURCE,
                f"{execution}, gamma {gamma:g}, the first {FORCED} steps computed",
                execution,
            )
            for gamma, execution in itertools.product(GAMMAS, EXECUTIONS)
            for path in [solve_paper(costs, [budget], gamma)[budget]]
        )
        for budget in data.budgets
        if budget > FORCED
    ]


def with_forced(costs: np.ndarray, forced: int) -> np.ndarray:
    """The paper's costs where each of the first `forced` steps leads to the next.

    Args:
        costs: (spans, T, T + 1), inf where there is no edge.
        forced: how many steps must be computed.
    """
    bound = costs.copy()
    for start in range(min(forced, costs.shape[1])):
        bound[:, start, start + 2 :] = np.inf
    return bound
