"""The page on pipelines: its code runs as it is printed."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from diffusers.models.cache_utils import CacheMixin

from meancache import Schedule, apply_mean_cache, remove_mean_cache, tiny
from meancache.fitting import Fitter
from meancache.grid import Grid
from meancache.trajectory import record_trajectory
from tests.support.small_pipelines import CASES, STEPS, build

PAGE = (Path(__file__).parents[3] / "docs/pipelines.md").read_text(encoding="utf-8")
CODE = {
    found[1]: found[2]
    for found in re.finditer(r"```python\n# (\w+)\.py\n(.*?)```", PAGE, re.DOTALL)
}
PATH = [(0, 1), (1, 4), (4, 6), (6, 9), (9, 10)]
HELD = [{"start": start, "stop": stop, "span": 1} for start, stop in PATH]


def test_the_page_has_the_code_that_is_tried_here():
    assert set(CODE) == {"switch_on", "wan_scheduler", "calibrate", "adapter"}


@pytest.mark.parametrize("name", CASES)
def test_three_lines_switch_it_on(name, tmp_path, monkeypatch):
    assert len([line for line in CODE["switch_on"].splitlines() if line]) == 3
    small = build(name)
    latents = small.draw()
    grid = Grid.from_scheduler(small.pipe.scheduler)
    Schedule.from_edges(grid.sigmas, HELD).save(tmp_path / "schedule.json")
    monkeypatch.chdir(tmp_path)
    arguments = {
        **small.case.arguments,
        "num_inference_steps": STEPS,
        "output_type": "latent",
        "generator": torch.Generator().manual_seed(0),
    }
    namespace = {"pipe": small.pipe, "arguments": arguments}
    exec(CODE["switch_on"], namespace)
    output = namespace["output"][0]
    assert output.shape == latents.shape
    assert not torch.equal(output, latents)


def test_wan_gets_an_euler_scheduler_on_its_own_noise_levels():
    small = build("Wan 2.1")
    multistep = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    small.pipe.scheduler = multistep
    exec(CODE["wan_scheduler"], {"pipe": small.pipe})
    assert type(small.pipe.scheduler) is FlowMatchEulerDiscreteScheduler
    assert small.pipe.scheduler.shift == 3.0
    small.draw()


def test_a_schedule_is_calibrated_without_ray_as_the_page_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    shorter = CODE["calibrate"].replace(
        "STEPS, BUDGETS = 50, (8, 10, 12)", "STEPS, BUDGETS = 10, (4,)"
    )
    assert shorter != CODE["calibrate"]
    exec(shorter, {})
    schedule = Schedule.load("fitted-b4.json")
    assert (schedule.method, schedule.nfe, schedule.num_inference_steps) == ("fitted", 4, 10)
    assert schedule.conditions == {"height": 64, "width": 64, "num_frames": 9, "lora": []}
    # On a caption that it was not fitted on, closer than holding the velocity on even steps.
    pipe = tiny.load()
    pipe.set_progress_bar_config(disable=True)

    def draw():
        noise = torch.Generator().manual_seed(9)
        arguments = {**tiny.DEFAULTS, "num_inference_steps": 10, "output_type": "latent"}
        caption = "a yellow square moving down on a dark background"
        return pipe(caption, generator=noise, **arguments).frames

    full = draw()
    held = [
        {"start": start, "stop": stop, "weights": {start: 1.0}}
        for start, stop in pairwise((0, 3, 5, 8, 10))
    ]
    errors = []
    for one in (schedule, Schedule.from_edges(schedule.grid.sigmas, held)):
        apply_mean_cache(pipe, one)
        errors.append((draw() - full).square().mean())
        remove_mean_cache(pipe)
    assert errors[0] < errors[1]


@pytest.fixture
def adapter():
    """The page's adapter on a model that draws towards what a text stands for."""
    namespace: dict = {}
    exec(CODE["adapter"], namespace)
    calls = []

    def model(latents, sigma, text):
        calls.append(1)
        return text * (1 - sigma) + 0.1 * latents.sin()

    velocity = namespace["Velocity"](model, torch.ones(2, 8), torch.zeros(2, 8), 3.0)
    return namespace["sample"], velocity, calls


SIGMAS = np.linspace(1, 0, STEPS + 1).tolist()


def test_an_adapter_takes_fewer_than_twenty_lines_and_follows_schedules(adapter):
    body = [line for line in CODE["adapter"].splitlines() if line.strip()]
    assert len(body) < 20
    sample, velocity, calls = adapter
    noise = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    plain = sample(velocity, noise, SIGMAS)
    every = [{"start": k, "stop": k + 1, "span": 1} for k in range(STEPS)]
    apply_mean_cache(velocity, Schedule.from_edges(SIGMAS, every))
    assert torch.equal(sample(velocity, noise, SIGMAS), plain)
    remove_mean_cache(velocity)
    hook = apply_mean_cache(velocity, Schedule.from_edges(SIGMAS, HELD))
    calls.clear()
    first = sample(velocity, noise, SIGMAS)
    assert torch.equal(sample(velocity, noise, SIGMAS), first)
    assert hook.forwards == 2 * len(HELD)
    assert len(calls) == 4 * len(HELD)
    remove_mean_cache(velocity)
    assert set(vars(velocity)) == set(vars(type(velocity)(None, None, None, 0)))


def test_an_adapter_is_recorded_and_fitted_like_a_pipeline(adapter):
    sample, velocity, _ = adapter
    ends = []

    def run(*, decode=False, num_inference_steps=STEPS):
        noise = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
        ends.append(sample(velocity, noise, SIGMAS) - noise)

    with record_trajectory(velocity) as trajectory:
        run()
    moved = -0.1 * trajectory.velocities(STEPS).sum(0)
    torch.testing.assert_close(moved, ends[0].flatten(), atol=1e-5, rtol=1e-5)
    path = tuple(start for start, _ in PATH)
    fit = Fitter(velocity, Grid.from_sigmas(SIGMAS), [run]).fit([path])[path]
    apply_mean_cache(velocity, Schedule.from_edges(SIGMAS, fit.edges))
    run()
    error = float((ends[-1] - ends[0]).square().mean())
    assert error == pytest.approx(fit.errors[0], rel=1e-2, abs=1e-9)


def test_two_calls_a_step_in_a_loop_are_told_apart_by_their_context():
    class Denoiser(torch.nn.Module, CacheMixin):
        def forward(self, hidden_states, timestep, text):
            return hidden_states * timestep + text

    denoiser, steps = Denoiser(), len(SIGMAS) - 1
    schedule = Schedule.from_edges(SIGMAS, HELD)
    hook = apply_mean_cache(denoiser, schedule)
    answers: dict[str, list[torch.Tensor]] = {"cond": [], "uncond": []}
    for k in range(steps):
        latents = torch.full((1, 4), float(k))
        for name, text in (("cond", 1.0), ("uncond", -1.0)):
            with denoiser.cache_context(name):
                answers[name].append(denoiser(latents, torch.tensor(SIGMAS[k]), text))
    assert hook.forwards == 2 * len(HELD)
    for name, text in (("cond", 1.0), ("uncond", -1.0)):
        for start, stop in PATH:
            for k in range(start, stop):
                torch.testing.assert_close(
                    answers[name][k], torch.full((1, 4), start * SIGMAS[start] + text)
                )
