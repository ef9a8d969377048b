"""The fine reference is second-order accurate, where the run of all steps is first-order."""

import math

import numpy as np

from meancache.grid import Grid
from meancache.reference import fine_schedule
from meancache.velocity import velocities_in_use


def final_error(steps: int, second_order: bool) -> float:
    """Error at sigma 0 of dz/dsigma = -z cos(4 sigma) from z(1) = 1, whose solution is known."""
    grid = Grid.from_sigmas(np.linspace(1, 0, steps + 1).tolist())
    rows = velocities_in_use(fine_schedule(grid)) if second_order else np.eye(steps)
    z, velocities = 1.0, np.zeros(steps)
    for step, (sigma, after) in enumerate(zip(grid.sigmas, grid.sigmas[1:], strict=False)):
        velocities[step] = -z * math.cos(4 * sigma)
        z += (after - sigma) * float(rows[step] @ velocities)
    return abs(z - math.exp(math.sin(4.0) / 4))


def test_halving_the_step_quarters_the_error():
    assert 3.5 < final_error(160, True) / final_error(320, True) < 4.5
    assert 1.8 < final_error(160, False) / final_error(320, False) < 2.2


def test_it_computes_every_step_and_begins_with_the_velocity_itself():
    schedule = fine_schedule(Grid.from_sigmas([1.0, 0.8, 0.5, 0.0]))
    assert schedule.computed_steps == (0, 1, 2)
    assert schedule.edges[0].weights == {0: 1.0}
    assert all(math.isclose(sum(edge.weights.values()), 1.0) for edge in schedule.edges)
