"""Noise levels without diffusers are those of its scheduler."""

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler

from cluster.models.grids import dynamic_shift, euler_config, euler_grid
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


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("steps", [1, 4, 28, 50, 333])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_grid_is_that_of_diffusers_scheduler(name, steps, even):
    config, tokens = CONFIGS[name], 2040
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
    mu = {"mu": dynamic_shift(scheduler.config, tokens)} if name in _sized() else {}
    if even:
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.0, steps + 1)[:-1], **mu)
    else:
        scheduler.set_timesteps(steps, **mu)
    if name == "Qwen-Image" and steps == 1:
        pytest.skip("diffusers divides by zero")
    assert euler_grid(config, steps, even, tokens) == Grid.from_scheduler(scheduler)


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
        ({"invert_sigmas": True}, "runs from 0 up to 1"),
        ({"shift": -3.0}, "must fall strictly"),
    ],
)
def test_levels_that_cannot_be_run_are_refused(config, sentence):
    with pytest.raises(ValueError, match=sentence):
        euler_grid(config, 10, True, 2040)
