"""Loops without a pipeline: the step follows from the timestep, whatever it is and is called."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from meancache import Schedule, ScheduleError, apply_mean_cache
from meancache.velocity import velocities_in_use

STEPS = 8
SIGMAS = [1 - k / STEPS for k in range(STEPS + 1)]
EDGES = [
    {"start": 0, "stop": 1, "weights": {0: 1.0}},
    {"start": 1, "stop": 5, "weights": {0: -0.5, 1: 1.5}},
    {"start": 5, "stop": STEPS, "weights": {1: 0.25, 5: 0.75}},
]
TEXT = torch.linspace(0, 2, 6).view(2, 3)
SCHEDULE = Schedule.from_edges(SIGMAS, EDGES)


class Field(torch.nn.Module):
    """A denoiser whose noise level has the name that it is built with."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def velocity(self, latents, level):
        self.calls += 1
        level = torch.as_tensor(level).to(latents.dtype).flatten()[0]
        return latents.sin() + level / (1000 if level > 1 else 1)


class Timestep(Field):
    def forward(self, hidden_states, timestep):
        return (self.velocity(hidden_states, timestep),)


class Sigma(Field):
    def forward(self, hidden_states, sigma):
        return (self.velocity(hidden_states, sigma),)


class NoiseLevel(Field):
    def forward(self, x, context, how_noisy):
        return (self.velocity(x, how_noisy),)


CALLS = {
    "a float": (Timestep, lambda f, x, s: f(x, timestep=1000 * s)),
    "a numpy float": (Timestep, lambda f, x, s: f(x, timestep=np.float64(1000 * s))),
    "a numpy array": (Timestep, lambda f, x, s: f(x, timestep=np.array([1000 * s]))),
    "a whole number": (Timestep, lambda f, x, s: f(x, round(1000 * s))),
    "a tensor of each sample": (Timestep, lambda f, x, s: f(x, torch.full((2,), 1000 * s))),
    "in units of 1": (Timestep, lambda f, x, s: f(x, timestep=s)),
    "bfloat16": (Timestep, lambda f, x, s: f(x, torch.tensor(1000 * s, dtype=torch.bfloat16))),
    "by the name sigma": (Sigma, lambda f, x, s: f(x, sigma=s)),
    "by another name": (NoiseLevel, lambda f, x, s: f(x, TEXT, how_noisy=s)),
    "by its place": (NoiseLevel, lambda f, x, s: f(x, TEXT, s)),
}


def run(field, call, sigmas=SIGMAS, begin: int = 0) -> torch.Tensor:
    latents = torch.linspace(-1, 1, 8).view(2, 4)
    for sigma, following in itertools.pairwise(sigmas[begin:]):
        latents = latents + (following - sigma) * call(field, latents, sigma)[0]
    return latents


def independent(field, call) -> torch.Tensor:
    """The same loop, computing every step and integrating the schedule's combinations."""
    weights, given = velocities_in_use(SCHEDULE), []
    latents = torch.linspace(-1, 1, 8).view(2, 4)
    for k, (sigma, following) in enumerate(itertools.pairwise(SIGMAS)):
        given.append(call(field, latents, sigma)[0])
        latents = latents + (following - sigma) * sum(
            float(w) * v for w, v in zip(weights[k], given, strict=False)
        )
    return latents


@pytest.mark.parametrize("how", CALLS)
def test_the_timestep_says_which_step_it_is(how):
    make, call = CALLS[how]
    want = independent(make(), call)
    field = make()
    apply_mean_cache(field, SCHEDULE)
    for runs in (1, 2):
        torch.testing.assert_close(run(field, call), want, atol=1e-6, rtol=1e-5)
        assert field.calls == runs * len(EDGES)
    with pytest.raises(ScheduleError, match=r"the schedule is at step|cannot be told"):
        run(field, call, sigmas=[s**2 for s in SIGMAS])
    # A loop that begins in the middle of the grid.
    with pytest.raises(ScheduleError, match="run on the schedule's grid from its first step"):
        run(field, call, begin=3)
    assert torch.equal(run(field, call), run(field, call))


def test_a_step_that_cannot_be_told_is_refused():
    class Blind(torch.nn.Module):
        def forward(self, hidden_states, text):
            return (hidden_states,)

    field = Blind()
    apply_mean_cache(field, SCHEDULE)
    with pytest.raises(ScheduleError, match=r"the step of a call cannot be told.*pass it"):
        field(torch.ones(2, 4), "a text")


class Integrator:
    """A pipeline that takes its steps by itself, with a scheduler only for the levels."""

    def __init__(self, transformer) -> None:
        self.transformer = transformer
        self.scheduler = FlowMatchEulerDiscreteScheduler()
        self.components = {"transformer": transformer, "scheduler": self.scheduler}

    def __call__(self):
        self.scheduler.set_timesteps(sigmas=SIGMAS[:-1])
        latents = torch.linspace(-1, 1, 8).view(2, 4)
        sigmas = self.scheduler.sigmas
        for k, t in enumerate(self.scheduler.timesteps):
            latents = latents + (sigmas[k + 1] - sigmas[k]) * self.transformer(latents, t)[0]
        return latents


@pytest.mark.parametrize("alone", [False, True], ids=["pipeline", "transformer"])
def test_a_pipeline_that_integrates_by_itself_is_refused(alone):
    field = Timestep()
    pipe = Integrator(field)
    apply_mean_cache(field if alone else pipe, SCHEDULE)
    with pytest.raises(ScheduleError, match="a pipeline that integrates by itself cannot follow"):
        pipe()


class Doubling(Integrator):
    """A pipeline that asks its transformer at other times than its scheduler's."""

    def __call__(self):
        self.scheduler.set_timesteps(sigmas=SIGMAS[:-1])
        latents = torch.linspace(-1, 1, 8).view(2, 4)
        for k, t in enumerate(self.scheduler.timesteps):
            del t
            self.transformer(latents, torch.tensor(1000.0 * SIGMAS[k]))
        return latents


def test_a_pipeline_whose_steps_are_not_its_schedulers_is_refused():
    pipe = Doubling(Timestep())
    apply_mean_cache(pipe, SCHEDULE)
    with pytest.raises(ScheduleError, match=r"integrates by itself|cannot be told"):
        pipe()
