"""Searches the computed steps on the final result, from the candidate paths.

The costs of a graph say what a jump misses, not what its error has become at the end. So paths are
tried on calibration runs: weights are fitted on some trajectories, the error of the final latents
is measured on those and on others, which the weights have not seen, and a path is better where
both together come out closer in the mean (`score`). Which of the thousands of
paths that a few moved steps lead to are tried, Gram matrices say first (`propagation`), and say
better with each that was tried. Paths are tried a few at a time, so that they share their
beginnings; the search ends with its budget of forwards. Knows no model: it is given a function
that tries paths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from meancache.errors import SolverError
from meancache.propagation import Propagation, Responses
from meancache.solver import Steps

# How far a step moves at most, and how many paths are tried at a time.
REACH = 5
ROUND = 6
# Paths are predicted that are so many moves away, going on from so many of the best predicted.
AHEAD, BREADTH = 3, 3
# Paths that differ by so many steps in all, of T, have errors of prediction in common.
NEAR = 0.1


@dataclass(frozen=True)
class Tried:
    """What the runs of a path came to.

    Attributes:
        errors: mean squared errors of the final latents, one a trajectory: first those that the
            weights were fitted on, then the others.
        responses: what their velocities did with errors on the way.
    """

    errors: Sequence[float]
    responses: Responses = field(default_factory=dict)


Trial = Callable[[Sequence[Steps]], Mapping[Steps, Tried]]
"""Runs paths, with weights that it fits to each."""


@dataclass(frozen=True)
class Found:
    """Where a search ended.

    Attributes:
        steps: the best path.
        first: the best of the paths that the search began with.
        score: of the best path, in dB, see `score`.
        first_score: of the first.
        tried: how many paths were run.
        forwards: what that cost.
        course: after each round, the forwards so far and the best path.
    """

    steps: Steps
    first: Steps
    score: float
    first_score: float
    tried: int
    forwards: int
    course: tuple[tuple[int, Steps], ...] = ()


def search(trial: Trial, propagation: Propagation, paths: Sequence[Steps], forwards: int) -> Found:
    """The best path within a budget of forwards.

    Args:
        trial: runs paths on the trajectories of `propagation`.
        propagation: predicts paths; learns from those that are tried.
        paths: where to begin; all are tried, whatever the budget.
        forwards: of the transformer, that no further round of trials exceeds.

    Raises:
        SolverError: there are no paths, or no trajectories that are not fitted on.
    """
    trajectories, fitted_on = len(propagation.grams), propagation.fitted_on
    if not paths:
        raise SolverError("a search needs a path to begin with; give at least one")
    if not 0 < fitted_on < trajectories:
        raise SolverError(
            f"a search that fits on {fitted_on} of {trajectories} trajectories has none to judge "
            "by: fit on some and keep some"
        )
    scores: dict[Steps, float] = {}
    tried: dict[Steps, Tried] = {}
    course: list[tuple[int, Steps]] = []
    spent, best, asked = 0, paths[0], list(dict.fromkeys(paths))
    while asked:
        price = trajectories * rollout_forwards(asked)
        if tried and spent + price > forwards:
            break
        spent += price
        for path, found in trial(asked).items():
            tried[path], scores[path] = found, score(found.errors, fitted_on)
            propagation.learn(found.responses)
        best = max(scores, key=lambda path: scores[path])
        course.append((spent, best))
        asked = promising(propagation, best, tried)[:ROUND]
    first = max(paths, key=lambda path: scores[path])
    return Found(best, first, scores[best], scores[first], len(tried), spent, tuple(course))


def promising(propagation: Propagation, best: Steps, tried: Mapping[Steps, Tried]) -> list[Steps]:
    """Paths near `best` that were not tried yet, what promises most first.

    Each is predicted relative to `best`, whose errors are known, trajectory by trajectory. What
    paths nearby were predicted too high or too low corrects it (`_Correction`), and what is far
    from all that was tried may be better than predicted: the order is by the improvement that is
    to be expected.
    """
    offset = decibels(tried[best].errors) - decibels(propagation.errors(best))
    scored: dict[Steps, float] = {}

    def predicted(path: Steps) -> float:
        if path not in scored:
            levels = decibels(propagation.errors(path)) + offset
            scored[path] = _score(levels, propagation.fitted_on)
        return scored[path]

    real = {path: score(found.errors, propagation.fitted_on) for path, found in tried.items()}
    correction = _Correction(
        list(tried), [real[path] - predicted(path) for path in tried], propagation.total
    )
    hopes: dict[Steps, float] = {}
    front = [best]
    for _ in range(AHEAD):
        near = {path for one in front for path in moves(one, propagation.total)}
        new = sorted(path for path in near if path not in hopes and path not in tried)
        if new:
            means, spreads = correction(new)
            over = np.array([predicted(path) for path in new]) + means - real[best]
            hopes.update(zip(new, _expected_gain(over, spreads), strict=True))
        gains = {**{path: real[path] - real[best] for path in near if path in tried}, **hopes}
        front = sorted(gains, key=lambda path: -gains[path])[:BREADTH]
    return sorted(hopes, key=lambda path: -hopes[path])


class _Correction:
    """How far paths are off their predictions, by those that were tried: a Gaussian process.

    Args:
        paths: that were tried, all of one length.
        residuals: what each was better than predicted, in dB.
        total: T.
    """

    def __init__(self, paths: Sequence[Steps], residuals: Sequence[float], total: int) -> None:
        self.paths = np.array(paths, dtype=np.float64)
        self.scale = NEAR * total
        self.variance = max(float(np.mean(np.square(residuals))), 1e-6)
        kernel = self._kernel(self.paths) + 1e-3 * np.eye(len(paths))
        self.inverse = np.linalg.inv(kernel)
        self.weights = self.inverse @ np.asarray(residuals)

    def __call__(self, paths: Sequence[Steps]) -> tuple[np.ndarray, np.ndarray]:
        """The means and standard deviations of the residuals to expect."""
        kernel = self._kernel(np.array(paths, dtype=np.float64))
        left = 1.0 - np.einsum("ij,jk,ik->i", kernel, self.inverse, kernel)
        return kernel @ self.weights, np.sqrt(self.variance * np.maximum(left, 1e-6))

    def _kernel(self, paths: np.ndarray) -> np.ndarray:
        apart = np.abs(paths[:, None] - self.paths[None]).sum(axis=2)
        return np.asarray(np.exp(-apart / self.scale))


def _expected_gain(over: np.ndarray, spreads: np.ndarray) -> np.ndarray:
    """What a normal variable is above 0 in the mean."""
    from scipy.special import ndtr

    ratio = over / spreads
    density = np.exp(-(ratio**2) / 2) / np.sqrt(2 * np.pi)
    return np.asarray(spreads * (density + ratio * ndtr(ratio)))


def score(errors: Sequence[float], fitted_on: int) -> float:
    """The mean of root mean square errors, over runs fitted on and over the others, in dB.

    Bad runs weigh more in it than in the mean PSNR, and good ones still count, so that it says more
    of the worst tenth of other runs than the worst tenth of these does (docs/fidelity.md).

    Args:
        errors: mean squared errors, one a trajectory.
        fitted_on: the first so many were fitted on.

    Returns:
        The mean of both parts, in dB up to a constant; higher is closer.
    """
    return _score(decibels(errors), fitted_on)


def _score(levels: np.ndarray, fitted_on: int) -> float:
    parts = (levels[:fitted_on], levels[fitted_on:])
    return float(np.mean([-20 * np.log10(np.mean(10 ** (-part / 20))) for part in parts]))


def decibels(errors: Sequence[float] | np.ndarray) -> np.ndarray:
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
