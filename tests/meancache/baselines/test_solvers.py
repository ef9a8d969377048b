"""Multistep solvers on the Euler scheduler's own noise levels."""

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from meancache.baselines import BaselineError
from meancache.baselines.solvers import FlowDPMSolver, FlowUniPC, multistep_like

each_solver = pytest.mark.parametrize("solver", [FlowUniPC, FlowDPMSolver])


def fractions(steps: int) -> np.ndarray:
    """What HunyuanVideoPipeline passes as `sigmas`."""
    return np.linspace(1.0, 0.0, steps + 1)[:-1]


@each_solver
@pytest.mark.parametrize("steps", [1, 5, 50])
@pytest.mark.parametrize("shift", [1.0, 7.0])
def test_the_grid_is_eulers(solver, steps, shift):
    euler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler = multistep_like(solver, euler)
    scheduler.set_timesteps(sigmas=fractions(steps))
    euler.set_timesteps(sigmas=fractions(steps))
    torch.testing.assert_close(scheduler.sigmas, euler.sigmas, atol=2e-6, rtol=0)
    assert torch.equal(scheduler.timesteps, euler.timesteps)


@each_solver
def test_a_shift_that_was_set_later_is_kept(solver):
    euler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    euler.set_shift(3.0)
    scheduler = multistep_like(solver, euler)
    scheduler.set_timesteps(sigmas=fractions(4))
    euler.set_timesteps(sigmas=fractions(4))
    assert torch.equal(scheduler.timesteps, euler.timesteps)


@each_solver
@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_a_straight_path_ends_at_its_sample(solver, steps):
    noise, sample = torch.randn(2, 1, 16, generator=torch.Generator().manual_seed(0))
    scheduler = multistep_like(solver, FlowMatchEulerDiscreteScheduler(shift=7.0))
    for _ in range(2):  # a second run starts anew
        scheduler.set_timesteps(sigmas=fractions(steps))
        scheduler.set_begin_index(0)
        latents = noise
        for timestep in scheduler.timesteps:
            latents = scheduler.step(noise - sample, timestep, latents, return_dict=False)[0]
        torch.testing.assert_close(latents, sample, atol=1e-4, rtol=1e-4)


def test_another_kind_of_scheduler_is_refused():
    with pytest.raises(BaselineError, match="FlowMatchEulerDiscreteScheduler"):
        multistep_like(FlowUniPC, UniPCMultistepScheduler())
