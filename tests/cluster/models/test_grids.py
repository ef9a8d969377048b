"""Noise levels without diffusers are those of its scheduler."""

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.cogview4.pipeline_cogview4 import calculate_shift
from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule

from cluster.models.configured import cogview4_mu
from cluster.models.grids import (
    dynamic_shift,
    euler_config,
    euler_grid,
    even,
    linear_quadratic,
    whole_timesteps,
)
from meancache.grid import Grid

SIZED = {
    "use_dynamic_shifting": True,
    **{"base_shift": 0.5, "max_shift": 1.15},
    **{"base_image_seq_len": 256, "max_image_seq_len": 4096},
}
CONFIGS = {
    "HunyuanVideo": {"shift": 7.0},
    "no shift": {},
    "FLUX.1": {"shift": 3.0, **SIZED},
    "Qwen-Image": {"shift": 1.0, **SIZED, "shift_terminal": 0.02},
    "linear in size": {**SIZED, "time_shift_type": "linear"},
    "few levels in training": {"shift": 5.0, "num_train_timesteps": 250},
    "Karras": {"shift": 3.0, "use_karras_sigmas": True},
    "exponential": {"shift": 3.0, "use_exponential_sigmas": True},
    "beta": {"shift": 3.0, "use_beta_sigmas": True},
}


@pytest.mark.parametrize("spacing", [even, None])
@pytest.mark.parametrize("steps", [1, 4, 28, 50, 333])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_grid_is_that_of_diffusers_scheduler(name, steps, spacing):
    config, tokens = CONFIGS[name], 2040
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
    mu = {"mu": dynamic_shift(scheduler.config, tokens)} if name in _sized() else {}
    if spacing is not None:
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.0, steps + 1)[:-1], **mu)
    else:
        scheduler.set_timesteps(steps, **mu)
    if name == "Qwen-Image" and steps == 1:
        pytest.skip("diffusers divides by zero")
    assert euler_grid(config, steps, spacing, tokens) == Grid.from_scheduler(scheduler)


def _sized():
    return {name for name, config in CONFIGS.items() if "use_dynamic_shifting" in config}


def test_a_checkpoint_of_another_sampler_gets_the_euler_scheduler_of_its_shift():
    wan = {
        "_class_name": "UniPCMultistepScheduler",
        "prediction_type": "flow_prediction",
        "flow_shift": 3.0,
    }
    assert euler_config(wan) == {"shift": 3.0, "num_train_timesteps": 1000}


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({**SIZED, "time_shift_type": "cubic"}, "neither exponential nor linear"),
        ({"shift": -3.0}, "must fall strictly"),
    ],
)
def test_levels_that_cannot_be_run_are_refused(config, sentence):
    with pytest.raises(ValueError, match=sentence):
        euler_grid(config, 10, even, 2040)


@pytest.mark.parametrize("steps", [2, 9, 64])
def test_mochis_levels_are_counted_from_the_other_end(steps):
    scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    scheduler.set_timesteps(sigmas=linear_quadratic_schedule(steps, 0.025))
    grid = euler_grid({"invert_sigmas": True}, steps, linear_quadratic, None)
    assert grid.matches(Grid.from_scheduler(scheduler).sigmas)
    assert scheduler.sigmas[0] == 0
    assert grid.sigmas[0] == 1
    with pytest.raises(ValueError, match="in a line at first"):
        euler_grid({}, 1, linear_quadratic, None)


@pytest.mark.parametrize("steps", [1, 7, 50])
def test_cogview4s_levels_are_of_whole_timesteps_and_shift_with_the_size(steps):
    config = {**SIZED, "time_shift_type": "linear", "base_shift": 0.25, "max_shift": 0.75}
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
    timesteps = np.linspace(1000, 1.0, steps).astype(np.int64).astype(np.float32)
    mu = calculate_shift(2040, 256, 0.25, 0.75)
    scheduler.set_timesteps(steps, timesteps=timesteps, sigmas=timesteps / 1000, mu=mu)
    grid = euler_grid(config, steps, whole_timesteps, 2040, cogview4_mu)
    assert grid.matches(Grid.from_scheduler(scheduler).sigmas)
