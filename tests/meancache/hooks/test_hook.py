"""A schedule inside an unmodified pipeline: what runs, what is answered, what is refused."""

import itertools

import numpy as np
import pytest
import torch
from diffusers import FirstBlockCacheConfig

from meancache import Schedule, ScheduleError, apply_mean_cache, remove_mean_cache, tiny
from meancache.grid import Grid
from meancache.trajectory import record_trajectory
from meancache.velocity import velocities_in_use

STEPS = 12
EDGES = [(0, 1, 1), (1, 2, 1), (2, 3, 2), (3, 6, 3), (6, 7, 2), (7, 11, 4), (11, 12, 1)]


def edges(path) -> list[dict]:
    return [{"start": start, "stop": stop, "span": span} for start, stop, span in path]


@pytest.fixture(scope="module")
def grid(pipe, draw) -> Grid:
    draw()
    return Grid.from_scheduler(pipe.scheduler)


@pytest.fixture
def follow(pipe):
    """Applies a schedule for the length of a test."""
    yield lambda schedule: apply_mean_cache(pipe.transformer, schedule)
    remove_mean_cache(pipe.transformer)


@pytest.mark.parametrize("execution", ["jump", "fine-step"])
def test_computing_every_step_is_the_plain_pipeline_bit_for_bit(draw, grid, follow, execution):
    plain = draw()
    every = [(k, k + 1, 1) for k in range(STEPS)]
    hook = follow(Schedule.from_edges(grid.sigmas, edges(every), execution))
    assert np.array_equal(draw(), plain)
    assert hook.forwards == STEPS


@pytest.mark.parametrize("execution", ["jump", "fine-step"])
def test_skipped_steps_run_no_forward_and_take_the_rules_velocity(
    pipe, draw, grid, follow, execution
):
    schedule = Schedule.from_edges(grid.sigmas, edges(EDGES), execution)
    rows, sigmas = velocities_in_use(schedule), grid.array()
    ran: list[torch.Tensor] = []
    counting = pipe.transformer.proj_out.register_forward_hook(lambda *_: ran.append(None))
    seen: list[torch.Tensor] = []

    def watch(_, step, __, state):
        seen.append(state["latents"].clone())
        return {}

    hook = follow(schedule)
    first = draw(callback_on_step_end=watch)
    counting.remove()
    assert len(ran) == hook.forwards == schedule.nfe == len(EDGES)

    # The same run again, from the outputs of the computed steps alone.
    remove_mean_cache(pipe.transformer)
    start = torch.randn(seen[0].shape, generator=torch.Generator().manual_seed(0))
    latents, outputs = start, torch.zeros(STEPS, start.numel())
    answer = answers(pipe, draw)
    for k in range(STEPS):
        if k in schedule.computed_steps:
            outputs[k] = answer(latents, k).flatten()
        step = torch.from_numpy(rows[k]).float() @ outputs
        latents = latents + (sigmas[k + 1] - sigmas[k]) * step.view_as(latents)
        torch.testing.assert_close(seen[k], latents.float(), atol=2e-5, rtol=1e-4)
    assert np.allclose(first, latents[0].numpy(), atol=2e-5)


def answers(pipe, draw):
    """The transformer as a function of latents and step, for the default prompt."""
    calls = []

    def keep(_, args, kwargs):
        calls.append(kwargs)

    handle = pipe.transformer.register_forward_pre_hook(keep, with_kwargs=True)
    draw()
    handle.remove()

    @torch.no_grad()
    def answer(latents: torch.Tensor, step: int) -> torch.Tensor:
        return pipe.transformer(**{**calls[step], "hidden_states": latents.float()})[0]

    return answer


def test_a_second_run_equals_the_first(draw, grid, follow):
    follow(Schedule.from_edges(grid.sigmas, edges(EDGES), "fine-step"))
    first = draw(seed=3)
    draw(seed=4)
    assert np.array_equal(draw(seed=3), first)


def test_nothing_is_left_after_removal(pipe, draw, grid):
    plain = draw()
    before = set(vars(pipe.transformer))
    apply_mean_cache(pipe.transformer, Schedule.from_edges(grid.sigmas, edges(EDGES)))
    remove_mean_cache(pipe.transformer)
    remove_mean_cache(pipe.transformer)  # once more does no harm
    assert set(vars(pipe.transformer)) == before
    assert not pipe.transformer._diffusers_hook.hooks  # diffusers' own, of its cache contexts
    assert np.array_equal(draw(), plain)


def test_a_run_that_failed_halfway_does_not_spoil_the_next(draw, grid, follow):
    follow(Schedule.from_edges(grid.sigmas, edges(EDGES), "fine-step"))
    clean = draw()

    def interrupt(_, step, __, state):
        if step == 4:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        draw(callback_on_step_end=interrupt)
    assert np.array_equal(draw(), clean)


def test_another_shape_may_follow(draw, grid, follow):
    hook = follow(Schedule.from_edges(grid.sigmas, edges(EDGES)))
    first = draw()
    assert draw(width=96).shape == (*first.shape[:-1], first.shape[-1] * 96 // 64)
    assert np.array_equal(draw(), first)
    assert hook.forwards == 3 * len(EDGES)


def test_two_prompts_in_one_batch_equal_each_alone(draw, grid, follow, pipe):
    follow(Schedule.from_edges(grid.sigmas, edges(EDGES), "fine-step"))
    noise = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    prompts = [
        "a red circle moving left on a dark background",
        "a blue square moving up on a light background",
    ]
    arguments = {**tiny.DEFAULTS, "num_inference_steps": STEPS, "output_type": "latent"}
    together = pipe(prompts, generator=noise, **arguments).frames
    for prompt, seed, latents in zip(prompts, (5, 6), together, strict=True):
        np.testing.assert_allclose(draw(seed=seed, prompt=prompt), latents, atol=1e-4)


def test_guidance_in_two_forwards_takes_the_rules_velocity_of_the_guided_one(
    draw, grid, follow, pipe
):
    guided = {"negative_prompt": "a blue square moving up on a light background",
              "true_cfg_scale": 2.0}  # fmt: skip
    schedule = Schedule.from_edges(grid.sigmas, edges(EDGES), "fine-step")
    rows = velocities_in_use(schedule)
    hook = follow(schedule)
    with record_trajectory(pipe) as trajectory:
        draw(**guided)
    assert hook.forwards == 2 * len(EDGES)
    given = trajectory.outputs
    # On computed steps this rule takes the velocity itself, so the rest must follow.
    for k in range(STEPS):
        follows = sum(float(rows[k, n]) * given[n] for n in schedule.computed_steps)
        torch.testing.assert_close(given[k], follows, atol=1e-4, rtol=1e-4)


def test_another_grid_is_refused_before_the_first_forward(draw, grid, follow):
    hook = follow(Schedule.from_edges(grid.sigmas, edges(EDGES)))
    with pytest.raises(ScheduleError, match=r"12 steps.*but the pipeline runs 10 steps"):
        draw(num_inference_steps=10)
    assert hook.forwards == 0


def test_another_shift_is_refused_before_the_first_forward(pipe, draw, grid, follow):
    hook = follow(Schedule.from_edges(grid.sigmas, edges(EDGES)))
    pipe.scheduler.set_shift(3.0)
    try:
        with pytest.raises(ScheduleError, match="shift"):
            draw()
    finally:
        pipe.scheduler.set_shift(7.0)
    assert hook.forwards == 0


def test_applying_twice_is_refused(pipe, grid, follow):
    follow(Schedule.from_edges(grid.sigmas, edges(EDGES)))
    with pytest.raises(ScheduleError, match="remove_mean_cache"):
        apply_mean_cache(pipe.transformer, Schedule.from_edges(grid.sigmas, edges(EDGES)))


def test_another_cache_is_refused(pipe, grid):
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    try:
        with pytest.raises(ScheduleError, match="disable_cache"):
            apply_mean_cache(pipe.transformer, Schedule.from_edges(grid.sigmas, edges(EDGES)))
    finally:
        pipe.transformer.disable_cache()


class Field(torch.nn.Module):
    """A denoiser without diffusers: a velocity that depends on the noise level as told."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope
        self.calls = 0

    def forward(self, hidden_states, timestep, return_dict=False):
        self.calls += 1
        return (torch.full_like(hidden_states, 0.5) + self.slope * timestep / 1000,)


def euler(module: Field, sigmas, dtype=torch.float32) -> torch.Tensor:
    """A bare sampling loop, as a script without a pipeline has it."""
    latents = torch.ones(1, 4, dtype=dtype)
    for sigma, following in itertools.pairwise(sigmas):
        timestep = torch.tensor([1000 * sigma], dtype=dtype)
        latents = latents + (following - sigma) * module(latents, timestep=timestep)[0]
    return latents


@pytest.mark.parametrize("execution", ["jump", "fine-step"])
def test_a_constant_field_is_integrated_exactly_in_a_bare_loop(grid, execution):
    field = Field(0.0)
    plain = euler(field, grid.sigmas)
    apply_mean_cache(field, Schedule.from_edges(grid.sigmas, edges(EDGES), execution))
    for _ in range(2):
        field.calls = 0
        torch.testing.assert_close(euler(field, grid.sigmas), plain, atol=1e-6, rtol=0)
        assert field.calls == len(EDGES)


def test_a_bare_loop_on_another_grid_is_refused_when_it_shows(grid):
    field = Field(1.0)
    apply_mean_cache(field, Schedule.from_edges(grid.sigmas, edges(EDGES)))
    with pytest.raises(ScheduleError, match="the schedule is at step"):
        euler(field, np.linspace(1, 0, 13))
    assert torch.isfinite(euler(field, grid.sigmas)).all()


def test_a_bare_loop_begun_again_after_one_step_starts_anew(grid):
    field = Field(1.0)
    apply_mean_cache(field, Schedule.from_edges(grid.sigmas, edges([(0, 11, 1), (11, 12, 1)])))
    for dtype in (torch.float32, torch.bfloat16):
        field.calls = 0
        for _ in range(3):
            field(torch.ones(1, 4, dtype=dtype), timestep=torch.tensor([1000.0], dtype=dtype))
        assert field.calls == 3


def test_a_timestep_given_by_position_is_checked_too(grid):
    field = Field(1.0)
    apply_mean_cache(field, Schedule.from_edges(grid.sigmas, edges(EDGES)))
    with pytest.raises(ScheduleError, match="the schedule is at step"):
        field(torch.ones(1, 4), torch.tensor([500.0]))


def test_weights_of_zero_are_weights(grid):
    field = Field(1.0)
    schedule = Schedule.from_edges(grid.sigmas, [{"start": 0, "stop": 12, "weights": {0: 0.0}}])
    apply_mean_cache(field, schedule)
    assert torch.equal(euler(field, grid.sigmas), torch.ones(1, 4))


def test_timesteps_rounded_to_bfloat16_still_fit_the_grid(grid):
    field = Field(0.1)
    apply_mean_cache(field, Schedule.from_edges(grid.sigmas, edges(EDGES)))
    out = euler(field, grid.sigmas, torch.bfloat16)
    assert out.dtype == torch.bfloat16
    assert field.calls == len(EDGES)


def test_a_wrapper_whose_forward_names_no_arguments_is_a_denoiser_too(grid):
    class Wrapper(torch.nn.Module):
        def __init__(self, inner: Field) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *args, **kwargs):
            return self.inner(*args, **kwargs)

    field = Field(0.0)
    wrapper = Wrapper(field)
    plain = euler(wrapper, grid.sigmas)
    apply_mean_cache(wrapper, Schedule.from_edges(grid.sigmas, edges(EDGES)))
    field.calls = 0
    torch.testing.assert_close(euler(wrapper, grid.sigmas), plain, atol=1e-6, rtol=0)
    assert field.calls == len(EDGES)
    remove_mean_cache(wrapper)
    assert not vars(wrapper).keys() & {"forward", "_diffusers_hook"}
