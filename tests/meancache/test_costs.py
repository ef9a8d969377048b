"""Costs from the Gram matrix against the same costs from the velocities themselves."""

import numpy as np
import pytest
import torch

from meancache.costs import least_squares_costs, secant_costs
from meancache.velocity import average_velocity, secant_velocity

STEPS = 8
SIGMAS = np.array([1.0, 0.97, 0.93, 0.86, 0.75, 0.6, 0.41, 0.2, 0.0])


@pytest.fixture
def velocities() -> np.ndarray:
    """(8, 500) float64, changing smoothly from step to step."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(STEPS, 500, generator=generator, dtype=torch.float64).cumsum(0).numpy()


@pytest.fixture
def gram(velocities) -> np.ndarray:
    return velocities @ velocities.T / velocities.shape[1]


def jumps():
    for start in range(STEPS):
        for previous in range(start) if start else [0]:
            for stop in range(start + 1, STEPS + 1):
                yield previous, start, stop


def displacement_error(residual: np.ndarray, start: int, stop: int) -> float:
    return abs(SIGMAS[stop] - SIGMAS[start]) * float(np.sqrt(np.mean(residual**2)))


def test_secant_costs_are_displacement_errors(velocities, gram):
    costs = secant_costs(gram, SIGMAS)
    for previous, start, stop in jumps():
        row = average_velocity(SIGMAS, start, stop)
        residual = (row - secant_velocity(SIGMAS, previous, start, stop)) @ velocities
        assert costs[previous, start, stop] == pytest.approx(
            displacement_error(residual, start, stop), abs=1e-9
        )


@pytest.mark.parametrize("terms", [1, 2])
def test_least_squares_costs_are_those_of_a_least_squares_fit(velocities, gram, terms):
    costs = least_squares_costs(gram, SIGMAS, terms)
    for previous, start, stop in jumps():
        target = average_velocity(SIGMAS, start, stop) @ velocities
        known = velocities[sorted({previous, start})[-terms:]].T
        fitted = known @ np.linalg.lstsq(known, target, rcond=None)[0]
        assert costs[previous, start, stop] == pytest.approx(
            displacement_error(target - fitted, start, stop), abs=1e-4
        )


def test_more_terms_never_cost_more(gram):
    one, two = (least_squares_costs(gram, SIGMAS, terms) for terms in (1, 2))
    finite = np.isfinite(one)
    assert (two[finite] <= one[finite] + 1e-9).all()


@pytest.mark.parametrize(
    "costs_of", [secant_costs, lambda g, s: least_squares_costs(g, s, 2)], ids=["secant", "fit"]
)
def test_there_are_costs_for_jumps_and_for_nothing_else(gram, costs_of):
    costs = costs_of(gram, SIGMAS)
    assert costs.shape == (STEPS, STEPS, STEPS + 1)
    assert {tuple(map(int, jump)) for jump in np.argwhere(np.isfinite(costs))} == set(jumps())


def test_a_field_that_never_changes_costs_nothing():
    gram = np.ones((STEPS, STEPS))
    for costs in (secant_costs(gram, SIGMAS), least_squares_costs(gram, SIGMAS, 2)):
        assert costs[np.isfinite(costs)].max() < 1e-4
