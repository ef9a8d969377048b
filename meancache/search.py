"""Searches the computed steps on the final result: hill climbing from the candidate paths.

The costs of a graph say what a jump misses, not what its error has become at the end. So paths are
tried on calibration runs: weights are fitted on some trajectories, the error of the final latents
is measured on those and on others, which the weights have not seen, and a move is kept where both
together come out closer, in the mean and in the worst tenth. Moves are ranked by the graph's costs
first and tried a few at a time, so that they share their beginnings; the search ends with its
budget of forwards. Knows no model: it is given a function that tries paths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from meancache.errors import SolverError
from meancache.solver import Steps, pairs_cost

# How far a step moves at most, and how many moves are tried at a time.
REACH = 5
ROUND = 6
# The gamma of the costs that rank moves: squares of displacements add up.
RANKING_GAMMA = 2.0
TAIL = 10  # percent of the trajectories, the worst

Trial = Callable[[Sequence[Steps]], Mapping[Steps, Sequence[float]]]
"""Paths -> for each the mean squared errors of the final latents, one a trajectory: first those
that the weights were fitted on, then the others."""


@dataclass(frozen=True)
class Found:
    """Where a search ended.

    Attributes:
        steps: the best path.
        score: its score in dB, see `score`.
        first_score: that of the best path that the search began with.
        held_out: the mean PSNR of the final latents over the trajectories not fitted on, in dB up
            to a constant; that of the first path in `first_held_out`.
        tried: how many paths were rolled out.
        forwards: what that cost.
    """

    steps: Steps
    score: float
    first_score: float
    held_out: float
    first_held_out: float
    tried: int
    forwards: int


def search(
    trial: Trial,
    costs: np.ndarray,
    paths: Sequence[Steps],
    trajectories: int,
    fitted_on: int,
    forwards: int,
) -> Found:
    """The best path within a budget of forwards.

    Args:
        trial: rolls paths out, fitting weights on the first `fitted_on` trajectories.
        costs: (T, T, T + 1), what a jump costs after the step computed before it (`costs`); ranks
            the moves.
        paths: where to begin; all are tried, whatever the budget.
        trajectories: how many each path is rolled out on.
        fitted_on: fewer than these.
        forwards: of the transformer, that no further move exceeds.

    Raises:
        SolverError: there are no paths, or no trajectories that are not fitted on.
    """
    if not paths:
        raise SolverError("a search needs a path to begin with; give at least one")
    if not 0 < fitted_on < trajectories:
        raise SolverError(
            f"a search that fits on {fitted_on} of {trajectories} trajectories has none to judge "
            "by: fit on some and keep some"
        )
    errors = dict(trial(paths))
    spent = trajectories * rollout_forwards(paths)
    best = first = max(paths, key=lambda path: score(errors[path], fitted_on))
    while moves := _ranked(costs, best, errors)[:ROUND]:
        price = trajectories * rollout_forwards(moves)
        if spent + price > forwards:
            break
        errors.update(trial(moves))
        spent += price
        best = max((best, *moves), key=lambda path: score(errors[path], fitted_on))
    return Found(
        steps=best,
        score=score(errors[best], fitted_on),
        first_score=score(errors[first], fitted_on),
        held_out=float(decibels(errors[best])[fitted_on:].mean()),
        first_held_out=float(decibels(errors[first])[fitted_on:].mean()),
        tried=len(errors),
        forwards=spent,
    )


def score(errors: Sequence[float], fitted_on: int) -> float:
    """Half the mean and half the worst tenth of PSNR, over runs fitted on and over the others.

    Args:
        errors: mean squared errors, one a trajectory.
        fitted_on: the first so many were fitted on.

    Returns:
        The mean of both halves, in dB up to a constant; higher is closer.
    """
    scores = decibels(errors)
    parts = (scores[:fitted_on], scores[fitted_on:])
    return float(np.mean([(part.mean() + np.percentile(part, TAIL)) / 2 for part in parts]))


def decibels(errors: Sequence[float]) -> np.ndarray:
    """-10 log10 of mean squared errors."""
    return -10 * np.log10(np.maximum(np.asarray(errors, dtype=np.float64), 1e-30))


def moves(steps: Steps, total: int) -> list[Steps]:
    """The paths that differ from `steps` in one computed step, by at most REACH.

    The first step stays, and steps do not pass each other.

    Args:
        steps: ascending from 0.
        total: T.
    """
    found = []
    for index in range(1, len(steps)):
        least = steps[index - 1] + 1
        most = (*steps[1:], total)[index] - 1
        for step in range(max(least, steps[index] - REACH), min(most, steps[index] + REACH) + 1):
            if step != steps[index]:
                found.append((*steps[:index], step, *steps[index + 1 :]))
    return found


def rollout_forwards(paths: Iterable[Steps]) -> int:
    """Forwards of a trajectory rolled out on all of `paths`: one for each beginning they have."""
    return len({path[:length] for path in paths for length in range(1, len(path) + 1)})


def _ranked(costs: np.ndarray, steps: Steps, tried: Mapping[Steps, Sequence[float]]) -> list[Steps]:
    """The moves from `steps` that were not tried yet, by the graph's costs, the cheapest first."""
    untried = [path for path in moves(steps, len(costs)) if path not in tried]
    return sorted(untried, key=lambda path: pairs_cost(costs, path, RANKING_GAMMA))
