"""Recorded velocities are the run: they replay its latents, and the run is not disturbed."""

import numpy as np
import pytest
import torch

from meancache.grid import Grid
from meancache.trajectory import record_trajectory

STEPS = 12


def test_recording_does_not_change_the_video(pipe, draw):
    plain = draw()
    with record_trajectory(pipe.transformer):
        assert np.array_equal(draw(), plain)
    assert not pipe.transformer._diffusers_hook.hooks


def test_recorded_velocities_replay_the_reference_latents_exactly(pipe, draw):
    latents = []

    def watch(_, step, __, state):
        latents.append(state["latents"].clone())
        return {}

    with record_trajectory(pipe.transformer) as trajectory:
        draw(callback_on_step_end=watch)
    velocities = trajectory.velocities(STEPS)
    assert velocities.shape == (STEPS, latents[0].numel())
    assert velocities.dtype == torch.float32
    sigmas = torch.tensor(Grid.from_scheduler(pipe.scheduler).sigmas)
    state = torch.randn(latents[0].shape, generator=torch.Generator().manual_seed(0))
    for k in range(STEPS):
        state = state + (sigmas[k + 1] - sigmas[k]) * velocities[k].view_as(state)
        assert torch.equal(state, latents[k])


def test_guidance_in_two_forwards_is_refused_with_the_reason(pipe, draw):
    with record_trajectory(pipe.transformer) as trajectory:
        draw(negative_prompt="a blue square moving up on a light background", true_cfg_scale=2.0)
    with pytest.raises(ValueError, match="24 times in 12 steps"):
        trajectory.velocities(STEPS)


def test_the_hook_is_gone_after_an_exception(pipe):
    with pytest.raises(RuntimeError), record_trajectory(pipe.transformer):
        raise RuntimeError
    assert not pipe.transformer._diffusers_hook.hooks
