"""The estimate of fidelity against the errors of the jumps, added up one by one."""

import math

import numpy as np
import pytest

from meancache.prediction import CARRYING, predicted_psnr, signal_to_error
from meancache.schedule import Schedule

SIGMAS = [1.0, 0.8, 0.5, 0.2, 0.0]
VELOCITIES = np.random.default_rng(0).normal(size=(4, 300)).cumsum(axis=0)
GRAM = VELOCITIES @ VELOCITIES.T / 300
HELD = Schedule.from_edges(
    SIGMAS,
    [{"start": 0, "stop": 2, "weights": {0: 1.0}}, {"start": 2, "stop": 4, "weights": {2: 1.0}}],
)


def test_signal_to_error_compares_the_path_with_what_its_jumps_miss():
    h = np.diff(SIGMAS)
    errors = [h[1] * (VELOCITIES[0] - VELOCITIES[1]), h[3] * (VELOCITIES[2] - VELOCITIES[3])]
    ratio = np.mean((h @ VELOCITIES) ** 2) / sum(np.mean(error**2) for error in errors)
    assert signal_to_error(HELD, GRAM) == pytest.approx(10 * np.log10(ratio))


def test_a_schedule_of_all_steps_misses_nothing():
    every = Schedule.from_edges(
        SIGMAS, [{"start": k, "stop": k + 1, "weights": {k: 1.0}} for k in range(4)]
    )
    assert signal_to_error(every, GRAM) == math.inf


def test_carrying_beyond_the_grid_lowers_the_estimate():
    lost = predicted_psnr(HELD, GRAM) - predicted_psnr(HELD, GRAM, beyond_grid=True)
    assert lost == pytest.approx(CARRYING)
