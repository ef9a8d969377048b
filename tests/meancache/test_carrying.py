"""Carrying against fields that a spline can represent, and against an exactly known flow."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meancache.carrying import carried_conditions, carrying_weights, levels_below, time_shift
from meancache.costs import least_squares_costs
from meancache.errors import CalibrationError
from meancache.grid import Grid


def grid(steps: int, shift: float) -> Grid:
    times = np.linspace(1, 0, steps + 1)
    return Grid.from_sigmas((shift * times / (1 + (shift - 1) * times)).tolist())


def times_of(one: Grid, shift: float) -> np.ndarray:
    """tau of every level that has a velocity."""
    sigmas = one.array()[:-1]
    return sigmas / (shift - (shift - 1) * sigmas)


KNOWN = grid(50, 7)
INSIDE = [grid(30, 7), grid(30, 5), grid(40, 12), grid(10, 2), grid(50, 7)]


@st.composite
def grids(draw) -> Grid:
    """Any levels within those of KNOWN."""
    levels = draw(st.sets(st.integers(1250, 9999), min_size=1))
    return Grid.from_sigmas([1.0, *(level / 10_000 for level in sorted(levels, reverse=True)), 0.0])


@pytest.mark.parametrize("shift", [0.5, 1, 3, 7, 15])
@pytest.mark.parametrize("steps", [2, 8, 50])
def test_the_shift_of_a_grid_is_read_from_its_levels(steps, shift):
    assert time_shift(grid(steps, shift)) == pytest.approx(shift)


def test_a_grid_is_carried_to_itself_as_it_is():
    np.testing.assert_allclose(carrying_weights(KNOWN, KNOWN), np.eye(50), atol=1e-9)


@given(grids())
def test_a_constant_field_stays_one(wanted):
    np.testing.assert_allclose(carrying_weights(KNOWN, wanted).sum(axis=1), 1, atol=1e-9)


@given(grids(), st.lists(st.floats(-3, 3), min_size=1, max_size=4))
def test_fields_up_to_cubic_in_the_time_of_the_shift_are_carried_exactly(wanted, coefficients):
    weights = carrying_weights(KNOWN, wanted)
    known, expected = (np.polyval(coefficients, times_of(one, 7)) for one in (KNOWN, wanted))
    np.testing.assert_allclose(weights @ known, expected, atol=1e-9)


@pytest.mark.parametrize("steps", [2, 3])
def test_few_levels_carry_what_a_line_or_a_parabola_through_them_can(steps):
    known, wanted = grid(steps, 3), Grid.from_sigmas([1.0, 0.9, 0.8, 0])
    exact = np.arange(1, steps + 1)
    weights = carrying_weights(known, wanted)
    np.testing.assert_allclose(
        weights @ np.polyval(exact, times_of(known, 3)), np.polyval(exact, times_of(wanted, 3))
    )


@given(grids(), st.integers(0, 2**32 - 1), st.integers(1, 60))
def test_carried_matrices_stay_positive_semidefinite(wanted, seed, rank):
    velocities = np.random.default_rng(seed).normal(size=(50, rank))
    weights = carrying_weights(KNOWN, wanted)
    carried = weights @ (velocities @ velocities.T) @ weights.T
    lowest = np.linalg.eigvalsh((carried + carried.T) / 2)[0]
    assert lowest >= -1e-9 * np.trace(carried)


def exact_velocities(one: Grid) -> np.ndarray:
    """(T, 200): the flow between noise and a Gaussian of many variances, which has a closed form.

    With z = (1 - sigma) x + sigma n the flow is z(sigma) = z(1) sqrt(sigma^2 + (1 - sigma)^2 s^2).
    """
    deviations = np.geomspace(0.3, 2, 200)
    noise = np.random.default_rng(1).normal(size=200)
    sigma = one.array()[:-1, None]
    spread = np.sqrt(sigma**2 + (1 - sigma) ** 2 * deviations**2)
    return noise * (sigma - (1 - sigma) * deviations**2) / spread


@pytest.mark.parametrize("wanted", INSIDE, ids=str)
def test_costs_are_those_of_the_flow_recorded_on_the_other_grid(wanted):
    known, direct = exact_velocities(KNOWN), exact_velocities(wanted)
    weights = carrying_weights(KNOWN, wanted)
    carried = weights @ (known @ known.T) @ weights.T / 200
    expected = direct @ direct.T / 200
    np.testing.assert_allclose(carried, expected, rtol=1e-3, atol=5e-4)
    costs, exact = (least_squares_costs(g, wanted.array(), 2) for g in (carried, expected))
    here = np.isfinite(exact)
    np.testing.assert_allclose(costs[here], exact[here], rtol=0.02, atol=2e-4)


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        (grid(50, 3), r"level 0\.05769 lies below .* 0\.125.* calibrate with 116 steps or more"),
        (Grid.from_sigmas([1.2, 0.5, 0]), r"begins at noise level 1\.2, above .* highest, 1"),
    ],
    ids=["below", "above"],
)
def test_levels_outside_of_the_calibrated_ones_are_refused(wanted, sentence):
    with pytest.raises(CalibrationError, match=sentence):
        carrying_weights(KNOWN, wanted)


def test_a_calibration_with_as_many_steps_as_a_refusal_names_reaches_the_grid():
    carrying_weights(grid(116, 7), grid(50, 3))
    with pytest.raises(CalibrationError):
        carrying_weights(grid(115, 7), grid(50, 3))


def test_a_single_level_is_carried_nowhere():
    with pytest.raises(CalibrationError, match="a single noise level"):
        carrying_weights(grid(1, 1), Grid.from_sigmas([0.5, 0]))


def test_conditions_differ_where_both_are_known():
    known = {"height": 64, "width": 64, "lora": None, "dtype": "float32"}
    wanted = {"height": 96, "width": 64, "lora": ["a"], "guidance_scale": 3.0}
    assert carried_conditions(known, wanted) == {"height": {"from": 64, "to": 96}}
    with pytest.raises(CalibrationError, match="made for height 64, the run has height 96"):
        carried_conditions(known, wanted, strict=True)


@pytest.mark.parametrize("shift", [1, 7])
def test_levels_below_reach_those_of_a_run_of_more_steps(shift):
    below = levels_below(grid(50, shift))
    np.testing.assert_allclose(below, [grid(50 * n, shift).sigmas[-2] for n in (2, 4, 8)])


def test_levels_below_let_a_calibration_reach_further():
    known = Grid.from_sigmas([*KNOWN.sigmas[:-1], *levels_below(KNOWN), 0.0])
    carrying_weights(known, grid(50, 3))
    carrying_weights(known, grid(100, 3))
