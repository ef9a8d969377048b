"""Budgeted, peak-suppressed shortest path over the stability multigraph (paper eq. 15).

Minimise the sum of cost^gamma over the paths from step 0 to step T with at most B edges. A
large gamma forbids single bad jumps (peaks) rather than a large average. One dynamic program
holds the optimum of every budget at once: over (step, edges used) where an edge's cost is its
own, as in the paper, and over the last two computed steps where it depends on the history that a
run will have. Knows arrays only: where the costs come from is for `stability` and `costs` to say.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from meancache.errors import SolverError

Path = list[tuple[int, int, int]]
Steps = tuple[int, ...]


def solve_paper(costs: np.ndarray, budgets: Iterable[int], gamma: float) -> dict[int, Path]:
    """The optimal path for every budget.

    Args:
        costs: (S, T, T + 1), or (S, T + 1, T + 1) with an unused last row:
            costs[span - 1, start, stop] >= 0, inf where there is no edge. Entries with
            stop <= start are ignored.
        budgets: at most how many edges (forwards) each path may have, 1..T.
        gamma: peak suppression, > 0.

    Returns:
        budget -> [(start, stop, span), ...] from step 0 to step T. Among equal sums the path
        with the fewest edges; among equal costs of an edge the smallest span.

    Raises:
        SolverError: a cost is negative or NaN, a budget or gamma is out of range, or no path
            reaches T within a budget.
    """
    cheapest, span = _cheapest_edges(costs)
    steps = len(cheapest)
    budgets = _checked(budgets, gamma, steps)
    total, previous = _shortest_paths(_weights(cheapest, gamma), max(budgets, default=1))
    paths = {}
    for budget in budgets:
        used = int(np.argmin(total[: budget + 1, steps]))  # the first minimum: fewest edges
        if not np.isfinite(total[used, steps]):
            raise SolverError(f"no path of at most {budget} edges leads from step 0 to {steps}")
        paths[budget] = _walk_back(previous, span, used, steps)
    return paths


def path_cost(costs: np.ndarray, path: Path, gamma: float) -> float:
    """The objective of eq. 15: the sum of cost^gamma over a path's edges."""
    return float(sum(costs[span - 1, start, stop] ** gamma for start, stop, span in path))


def solve_pairs(costs: np.ndarray, budgets: Iterable[int], gamma: float) -> dict[int, Steps]:
    """The optimal computed steps for every budget where a jump's cost depends on its history.

    The state of the program is a pair (p, t): the last two computed steps. Costs of p -> t -> s
    are known, so the optimum is exact, at T^3 / 6 sums for each forward of the largest budget.

    Args:
        costs: (T, T, T + 1): costs[p, t, s] >= 0 for p < t < s, inf where there is no jump;
            costs[0, 0, s] is the first jump's (`costs.least_squares_costs`). Others are ignored.
        budgets: at most how many steps may be computed, each 1..T.
        gamma: peak suppression, > 0.

    Returns:
        budget -> computed steps, from 0, ascending. Among equal sums the fewest.

    Raises:
        SolverError: as `solve_paper`.
    """
    costs = np.asarray(costs, dtype=np.float64)
    if costs.ndim != 3 or costs.shape != (len(costs), len(costs), len(costs) + 1):
        raise SolverError(f"costs of shape {costs.shape} must be (T, T, T + 1): [p, t, s]")
    steps = len(costs)
    p, t, s = np.ogrid[:steps, :steps, : steps + 1]
    costs = np.where((t < s) & ((p < t) | (t == 0) & (p == 0)), costs, np.inf)
    if np.isnan(costs).any() or (costs < 0).any():
        raise SolverError("a cost is NaN or negative; write inf where there is no jump")
    budgets = _checked(budgets, gamma, steps)
    weights = _weights(costs, gamma)
    most = max(budgets, default=1)
    # total[e, t, s]: least sum over paths of e jumps that end with t -> s; s = T ends the run.
    total = np.full((most + 1, steps, steps + 1), np.inf)
    before = np.zeros((most + 1, steps, steps + 1), dtype=int)
    total[1, 0] = weights[0, 0]
    weights[0, 0] = np.inf  # only the first jump has no history
    for jumps in range(2, most + 1):
        candidates = total[jumps - 1, :, :steps, None] + weights
        before[jumps] = candidates.argmin(axis=0)
        total[jumps] = candidates.min(axis=0)
    paths = {}
    for budget in budgets:
        ends = total[: budget + 1, :, steps]
        jumps = int(np.argmin(ends.min(axis=1)))  # the first minimum: fewest jumps
        start = int(np.argmin(ends[jumps]))
        if not np.isfinite(ends[jumps, start]):
            raise SolverError(f"no path of at most {budget} jumps leads from step 0 to {steps}")
        path, stop = [start], steps
        for used in range(jumps, 1, -1):
            start, stop = int(before[used, start, stop]), start
            path.append(start)
        paths[budget] = tuple(reversed(path))
    return paths


def pairs_cost(costs: np.ndarray, steps: Steps, gamma: float) -> float:
    """What `solve_pairs` minimises: the sum of cost^gamma over the jumps between `steps`."""
    histories = (steps[0], *steps[:-1])
    stops = (*steps[1:], len(costs))
    jumps = zip(histories, steps, stops, strict=True)
    return float(sum(costs[p, t, s] ** gamma for p, t, s in jumps))


def _checked(budgets: Iterable[int], gamma: float, steps: int) -> list[int]:
    """The budgets as a list, if they and gamma keep the rules. Raises SolverError."""
    if not gamma > 0 or not np.isfinite(gamma):
        raise SolverError(f"gamma {gamma} must be a positive number")
    budgets = list(budgets)
    for budget in budgets:
        if not isinstance(budget, int | np.integer) or not 1 <= budget <= steps:
            raise SolverError(
                f"budget {budget} must be between 1 and the {steps} steps, a whole number"
            )
    return budgets


def _cheapest_edges(costs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cheapest of the parallel edges between two steps: its cost and span, (T, T + 1)."""
    costs = np.asarray(costs, dtype=np.float64)
    if costs.ndim != 3 or costs.shape[2] < 2 or costs.shape[2] - costs.shape[1] not in (0, 1):
        raise SolverError(
            f"costs of shape {costs.shape} must be (spans, T, T + 1): [span - 1, start, stop]"
        )
    steps = costs.shape[2] - 1
    costs = costs[:, :steps]
    forward = np.triu(np.ones((steps, steps + 1), dtype=bool), k=1)
    if np.isnan(costs[:, forward]).any():
        raise SolverError("a cost is NaN; write inf where there is no edge")
    if (costs[:, forward] < 0).any():
        raise SolverError("a cost is negative; costs are mean absolute errors")
    costs = np.where(forward, costs, np.inf)
    return costs.min(axis=0), costs.argmin(axis=0) + 1


def _weights(costs: np.ndarray, gamma: float) -> np.ndarray:
    """cost^gamma up to one common factor, which keeps small costs from underflowing."""
    finite = costs[np.isfinite(costs)]
    # A power of two: dividing by anything else would round, and break ties between paths.
    scale = 2.0 ** np.floor(np.log2(finite.max())) if finite.size and finite.max() > 0 else 1.0
    return (costs / scale) ** gamma


def _shortest_paths(weights: np.ndarray, budget: int) -> tuple[np.ndarray, np.ndarray]:
    """total[e, s]: least sum over paths 0 -> s of e edges; previous[e, s]: their last start."""
    steps = len(weights)
    total = np.full((budget + 1, steps + 1), np.inf)
    previous = np.zeros((budget + 1, steps + 1), dtype=int)
    total[0, 0] = 0.0
    for edges in range(1, budget + 1):
        candidates = total[edges - 1, :steps, None] + weights
        previous[edges] = candidates.argmin(axis=0)
        total[edges] = candidates.min(axis=0)
    return total, previous


def _walk_back(previous: np.ndarray, span: np.ndarray, edges: int, stop: int) -> Path:
    path: Path = []
    for used in range(edges, 0, -1):
        start = int(previous[used, stop])
        path.append((start, stop, int(span[start, stop])))
        stop = start
    return path[::-1]
