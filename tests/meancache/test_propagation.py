"""Predicted ends of paths, against runs of a model that is as simple as the prediction assumes."""

import numpy as np
import pytest

from meancache.propagation import Propagation
from meancache.velocity import average_velocity

TOTAL, COUNT, FITTED, ORDER, RIDGE = 12, 3, 2, 3, 1e-6
ELEMENTS = 4 * TOTAL
PATHS = [(0, 4, 7, 10), (0, 1, 2, 9), (0, 5)]
SIGMAS = np.linspace(1, 0, TOTAL + 1) ** 0.7


@pytest.fixture(scope="module")
def velocities() -> np.ndarray:
    """(N, T, D) along the reference runs; the last T elements are left free."""
    random = np.random.default_rng(0)
    found = random.normal(size=(COUNT, TOTAL, ELEMENTS)).cumsum(axis=1)
    found[:, :, -TOTAL:] = 0.0
    return found


@pytest.fixture(scope="module")
def responses() -> np.ndarray:
    """(T, N, 2)"""
    return np.random.default_rng(1).uniform(0.2, 2.0, size=(TOTAL, COUNT, 2))


def run(velocities, responses, steps) -> np.ndarray:
    """The mean squares in which runs end, by a loop over whole latents."""
    missed = np.zeros((COUNT, ELEMENTS))
    history: list[np.ndarray] = []
    for start, stop in zip(steps, (*steps[1:], TOTAL), strict=True):
        along, aside = responses[start].T
        velocity = velocities[:, start] + along[:, None] * missed
        # RMS of the error, into an element that nothing else uses, which has a D-th of a mean.
        size = np.sqrt((missed**2).mean(axis=1) * ELEMENTS)
        velocity[:, ELEMENTS - TOTAL + start] += aside * size
        history = [velocity, *history[: ORDER - 1]]
        length = SIGMAS[stop] - SIGMAS[start]
        average = np.einsum("t,ntd->nd", average_velocity(SIGMAS, start, stop), velocities)
        A = np.stack([v[:FITTED].ravel() for v in history])
        y = (average - missed / length - velocity)[:FITTED].ravel()
        normal = A @ A.T
        ridge = RIDGE * np.trace(normal) / len(A) * np.eye(len(A))
        weights = np.linalg.solve(normal + ridge, A @ y)
        weights[0] += 1
        estimate = sum(weight * v for weight, v in zip(weights, history, strict=True))
        missed = missed + length * (estimate - average)
    return (missed**2).mean(axis=1)


def propagation(velocities) -> Propagation:
    grams = velocities @ velocities.swapaxes(1, 2) / ELEMENTS
    return Propagation(grams, SIGMAS, FITTED, ORDER, RIDGE)


@pytest.mark.parametrize("steps", PATHS)
def test_a_model_that_answers_errors_as_assumed_is_predicted_exactly(velocities, responses, steps):
    known = propagation(velocities)
    known.learn(dict(enumerate(responses)))
    assert known.errors(steps) == pytest.approx(run(velocities, responses, steps), rel=1e-6)


def test_until_something_was_learnt_errors_do_not_grow(velocities):
    nothing = np.zeros((TOTAL, COUNT, 2))
    found = propagation(velocities).errors(PATHS[0])
    assert found == pytest.approx(run(velocities, nothing, PATHS[0]), rel=1e-6)


def test_what_was_learnt_at_some_steps_is_the_mean_there_and_interpolated_between(velocities):
    responses = np.zeros((TOTAL, COUNT, 2))
    responses[:, :, 0] = np.linspace(1, 2, TOTAL)[:, None]
    known = propagation(velocities)
    assert known.errors(PATHS[0]).shape == (COUNT,)  # what was predicted before is not kept
    known.learn({0: responses[0] + 0.5, TOTAL - 1: responses[-1]})
    known.learn({0: responses[0] - 0.5})
    assert known.errors(PATHS[0]) == pytest.approx(run(velocities, responses, PATHS[0]), rel=1e-6)


def test_all_steps_end_where_the_reference_does(velocities):
    assert propagation(velocities).errors(tuple(range(TOTAL))) == pytest.approx(0, abs=1e-12)
