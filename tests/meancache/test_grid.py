"""A grid is the noise levels of a run, as a scheduler has them."""

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler

from meancache.grid import Grid


def test_a_schedulers_grid_is_its_shifted_sigmas():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=7.0)
    scheduler.set_timesteps(sigmas=np.linspace(1, 0, 51)[:-1])
    grid = Grid.from_scheduler(scheduler)
    uniform = np.linspace(1, 0, 51)
    np.testing.assert_allclose(grid.sigmas, 7 * uniform / (1 + 6 * uniform), atol=1e-6)
    assert grid.num_inference_steps == 50
    assert (grid.scheduler, grid.shift) == ("FlowMatchEulerDiscreteScheduler", 7.0)
    assert str(grid) == "50 steps, sigma 1, 0.9971, ..., 0.125, 0"
    assert Grid.from_json(grid.to_json()) == grid


def test_grids_match_up_to_float32_rounding():
    sigmas = np.linspace(1, 0, 6)
    grid = Grid.from_sigmas(sigmas.tolist())
    assert grid.matches(sigmas.astype(np.float32).tolist())
    assert not grid.matches((sigmas**2).tolist())
    assert not grid.matches(sigmas[1:].tolist())


@pytest.mark.parametrize(
    ("sigmas", "sentence"),
    [
        ([0.0], "1 sigmas"),
        ([1.0, 0.5], "final 0"),
        ([1.0, 1.0, 0.0], "fall strictly"),
        ([float("inf"), 0.0], "finite"),
        ([1e7, 0.0], "at most 1e\\+06"),
        ([1.0, 1.0 - 1e-10, 0.0], "at least 1e-09 apart"),
        (np.linspace(1, 0, 1002), "1002 sigmas; give between 2 and 1001"),
        ([float("nan"), 0.0], "finite"),
    ],
)
def test_what_is_no_grid_is_refused(sigmas, sentence):
    with pytest.raises(ValueError, match=sentence):
        Grid.from_sigmas(sigmas)
