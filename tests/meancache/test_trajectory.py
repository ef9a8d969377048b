"""Recorded velocities are the run: they replay its latents, and the run is not disturbed."""

import numpy as np
import pytest
import torch

from meancache import tiny
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


def test_guidance_in_two_forwards_records_the_velocity_that_is_integrated(pipe, draw):
    guided = {
        "negative_prompt": "a blue square moving up on a light background",
        "true_cfg_scale": 2.0,
    }
    latents, outputs = [], []

    def watch(_, step, __, state):
        latents.append(state["latents"].clone())
        return {}

    watching = pipe.transformer.register_forward_hook(lambda _, __, out: outputs.append(out[0]))
    with record_trajectory(pipe.transformer) as trajectory:
        draw(callback_on_step_end=watch, **guided)
    watching.remove()
    assert len(outputs) == 2 * STEPS
    cond, uncond = outputs[6:8]
    assert torch.equal(trajectory.outputs[3], uncond + 2.0 * (cond - uncond))
    sigmas = torch.tensor(Grid.from_scheduler(pipe.scheduler).sigmas)
    state = torch.randn(latents[0].shape, generator=torch.Generator().manual_seed(0))
    for k, velocity in enumerate(trajectory.outputs):
        state = state + (sigmas[k + 1] - sigmas[k]) * velocity
    assert torch.equal(state, latents[-1])


def test_two_runs_are_no_trajectory(pipe, draw):
    with record_trajectory(pipe.transformer) as trajectory:
        draw()
        draw()
    with pytest.raises(ValueError, match=f"{2 * STEPS} velocities were recorded in {STEPS} steps"):
        trajectory.velocities(STEPS)


def test_a_batch_is_a_trajectory_a_sample_or_all_together(pipe):
    noise = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    prompts = ["a red circle moving left on a dark background"] * 2
    arguments = {**tiny.DEFAULTS, "num_inference_steps": STEPS, "output_type": "latent"}
    with record_trajectory(pipe.transformer) as trajectory:
        final = pipe(prompts, generator=noise, **arguments).frames
    sigmas = torch.tensor(Grid.from_scheduler(pipe.scheduler).sigmas)
    together = trajectory.velocities(STEPS)
    assert together.shape == (STEPS, final.numel())
    for sample, seed in enumerate((5, 6)):
        velocities = trajectory.velocities(STEPS, sample)
        assert torch.equal(velocities, together.view(STEPS, 2, -1)[:, sample])
        start = torch.randn(final[0].shape, generator=torch.Generator().manual_seed(seed))
        end = start.flatten() + (sigmas.diff() @ velocities)
        torch.testing.assert_close(end.view_as(final[sample]), final[sample], atol=1e-5, rtol=1e-5)


def test_a_loop_without_a_pipeline_records_its_transformers_outputs():
    class Field(torch.nn.Module):
        def forward(self, hidden_states, timestep):
            return (hidden_states * timestep,)

    field = Field()
    with record_trajectory(field) as trajectory:
        outputs = [field(torch.ones(2, 3), timestep=float(k))[0] for k in range(4)]
    assert torch.equal(trajectory.velocities(4), torch.stack(outputs).flatten(1))
    assert not vars(field).keys() & {"forward", "_diffusers_hook"}


def test_nothing_is_left_after_an_exception(pipe, draw):
    def fail(*_):
        raise RuntimeError("halfway")

    before = set(vars(pipe.transformer)), set(vars(pipe.scheduler))
    with (
        pytest.raises(RuntimeError, match="halfway"),
        record_trajectory(pipe.transformer),
    ):
        draw(callback_on_step_end=fail)
    assert (set(vars(pipe.transformer)), set(vars(pipe.scheduler))) == before
