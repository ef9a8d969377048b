"""Forecasts as weighted schedules: what each is exact on, and that nothing is lost on the way."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.polynomial import chebyshev

from meancache import Schedule
from meancache.baselines.calibration_data import roll_out
from meancache.baselines.forecasts import even_steps, forecast_edges, taylor
from meancache.baselines.hicache import contracted
from meancache.baselines.l2p import reconstruction
from meancache.baselines.spectrum import growing_steps, smooth

TOTAL = 20
SIGMAS = np.linspace(1.0, 0.0, TOTAL + 1) ** 1.5
STEPS = (0, 2, 5, 9, 12, 16)
RNG = np.random.default_rng(0)


@given(st.integers(1, 60), st.data())
def test_even_steps_are_as_many_as_asked_for_and_hold_both_ends(total, data):
    budget = data.draw(st.integers(1, total))
    first = data.draw(st.integers(1, budget))
    last = data.draw(st.integers(0, budget - first))
    steps = even_steps(total, budget, first, last)
    assert len(steps) == budget
    assert list(steps) == sorted(set(steps))
    assert {*range(first), *range(total - last, total)} <= set(steps) <= set(range(total))
    gaps = np.diff([k for k in (*steps, total) if first - 1 <= k <= total - last])
    assert gaps.size == 0 or gaps.max() - gaps.min() <= 1


def run_step_by_step(velocities: np.ndarray, forecast) -> np.ndarray:
    """Where a cached run ends that forecasts every skipped step when it comes to it."""
    position = np.zeros(velocities.shape[1])
    for k in range(TOTAL):
        known = [step for step in STEPS if step <= k]
        velocity = velocities[k] if k in STEPS else forecast(known, k) @ velocities[known]
        position += (SIGMAS[k + 1] - SIGMAS[k]) * velocity
    return position


@pytest.mark.parametrize(
    "forecast",
    [taylor, smooth(TOTAL, 4, 0.1, 0.5), contracted(0.5, 2), reconstruction(np.eye(TOTAL) + 1)],
)
def test_jumps_end_where_the_run_step_by_step_ends(forecast):
    velocities = RNG.normal(size=(TOTAL, 3))
    edges = forecast_edges(SIGMAS, STEPS, forecast)
    schedule = Schedule.from_edges(SIGMAS.tolist(), edges)

    def field(_: torch.Tensor, sigma: float) -> torch.Tensor:
        return torch.from_numpy(velocities[SIGMAS.tolist().index(sigma)])

    end = roll_out(field, torch.zeros(3, dtype=torch.float64), schedule)
    np.testing.assert_allclose(end.numpy(), run_step_by_step(velocities, forecast), atol=1e-12)


@pytest.mark.parametrize("known", [[0, 3], [0, 3, 4, 9]])
def test_the_line_is_exact_on_velocities_that_are_linear_in_the_step(known):
    assert taylor(known, 12) @ (3.0 * np.array(known) - 5) == pytest.approx(31.0)


def test_l2p_is_least_squares_on_the_velocities_themselves():
    velocities = RNG.normal(size=(TOTAL, 500)).cumsum(axis=0)
    gram = velocities @ velocities.T / 500
    known = [0, 4, 7, 11]
    expected = np.linalg.lstsq(velocities[known].T, velocities[13], rcond=None)[0]
    np.testing.assert_allclose(reconstruction(gram)(known, 13), expected, rtol=1e-3, atol=1e-4)


def test_l2p_is_exact_on_velocities_in_the_span_of_those_computed():
    basis = RNG.normal(size=(2, 50))
    velocities = np.stack([np.cos(k / 7) * basis[0] + k * basis[1] for k in range(TOTAL)])
    row = reconstruction(velocities @ velocities.T / 50)([0, 5], 13)
    np.testing.assert_allclose(row @ velocities[[0, 5]], velocities[13], rtol=1e-3, atol=1e-2)


def test_spectrum_without_ridge_is_the_chebyshev_fit_of_numpy():
    known, times = [0, 3, 6, 9, 12, 14], np.linspace(-1, 1, TOTAL)
    values = RNG.normal(size=6)
    fit = chebyshev.Chebyshev(chebyshev.chebfit(times[known], values, 4))
    assert smooth(TOTAL, 4, 1e-12, 1.0)(known, 16) @ values == pytest.approx(fit(times[16]))
    # On a polynomial of that degree it is exact, and a blend of 0 is the line.
    quartic = times**4 - times
    assert smooth(TOTAL, 4, 1e-12, 1.0)(known, 16) @ quartic[known] == pytest.approx(quartic[16])
    np.testing.assert_array_equal(smooth(TOTAL, 4, 0.1, 0.0)(known, 16), taylor(known, 16))


@pytest.mark.parametrize("budget", [1, 2, 6, 10, 15])
def test_spectrums_distances_grow_and_keep_to_the_budget(budget):
    found = list(growing_steps(50, budget))
    assert found
    for warm_up, growth, steps in found:
        assert len(steps) <= budget
        assert steps[: min(warm_up, budget)] == tuple(range(min(warm_up, budget)))
        gaps = np.diff(steps[min(warm_up, budget) - 1 :])
        assert all(np.diff(gaps) >= -1)
        assert growth > 0 or gaps.size == 0 or gaps.max() - gaps.min() <= 1


def test_hicache_of_order_1_contracted_by_the_root_of_a_half_is_the_line():
    # H_1(x) = 2 x, so s H_1(s k) = k.
    np.testing.assert_allclose(contracted(math.sqrt(0.5), 1)([0, 4, 9], 13), taylor([0, 4, 9], 13))


def test_hicache_follows_the_papers_formula_on_evenly_spaced_steps():
    interval, scale, k = 5, 0.5, 3
    before, middle, last = RNG.normal(size=3)
    first, second = (last - middle) / interval, (last - 2 * middle + before) / interval**2
    hermite_1, hermite_2 = 2 * scale * k, 4 * (scale * k) ** 2 - 2
    expected = last + first * scale * hermite_1 + second / 2 * scale**2 * hermite_2
    row = contracted(scale, 2)([0, 5, 10], 10 + k)
    assert row @ [before, middle, last] == pytest.approx(expected)
