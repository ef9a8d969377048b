"""A schedule, and a recording, in every pipeline of the paper and of its kind, unmodified."""

from __future__ import annotations

import pytest
import torch

from meancache import Schedule, apply_mean_cache, remove_mean_cache
from meancache.grid import Grid
from meancache.hooks.pipelines import transformers_of
from meancache.trajectory import record_trajectory
from meancache.velocity import velocities_in_use
from tests.support.small_pipelines import CASES, STEPS, Small, build

SKIPS = [(0, 1, 1), (1, 2, 1), (2, 5, 2), (5, 6, 1), (6, 9, 3), (9, 10, 1)]


def schedule_of(grid: Grid, path=SKIPS, execution: str = "fine-step") -> Schedule:
    edges = [{"start": start, "stop": stop, "span": span} for start, stop, span in path]
    return Schedule.from_edges(grid.sigmas, edges, execution)


@pytest.fixture(scope="module", params=CASES)
def small(request) -> Small:
    torch.set_num_threads(1)
    return build(request.param)


@pytest.fixture(scope="module")
def plain(small) -> torch.Tensor:
    """The latents of the plain pipeline."""
    return small.draw()


@pytest.fixture(scope="module")
def grid(small, plain) -> Grid:
    return Grid.from_scheduler(small.pipe.scheduler)


@pytest.fixture
def follow(small):
    """Makes all transformers of the pipeline follow a schedule for the length of a test."""
    yield lambda schedule: apply_mean_cache(small.pipe, schedule)
    remove_mean_cache(small.pipe)


@pytest.fixture
def ran(small):
    """Grows by one with every forward of a transformer's own code."""
    counted: list[int] = []
    # Each of them projects its output once a forward.
    handles = [
        last_layer(module).register_forward_hook(lambda *_: counted.append(1))
        for module in transformers_of(small.pipe)
    ]
    yield counted
    for handle in handles:
        handle.remove()


def last_layer(transformer: torch.nn.Module) -> torch.nn.Module:
    if hasattr(transformer, "all_final_layer"):  # Z-Image has one for each size of patch
        return next(iter(transformer.all_final_layer.values()))
    return transformer.proj_out


@pytest.mark.parametrize("execution", ["jump", "fine-step"])
def test_computing_every_step_is_the_plain_pipeline_bit_for_bit(
    small, plain, grid, follow, ran, execution
):
    every = [(k, k + 1, 1) for k in range(STEPS)]
    hook = follow(schedule_of(grid, every, execution))
    assert torch.equal(small.draw(), plain)
    assert hook.forwards == len(ran) == small.case.calls * STEPS


def test_skipped_steps_run_no_forward_and_a_second_run_equals_the_first(
    small, plain, grid, follow, ran
):
    schedule = schedule_of(grid)
    hook = follow(schedule)
    first = small.draw()
    assert hook.forwards == len(ran) == small.case.calls * schedule.nfe
    small.draw(seed=1)
    assert torch.equal(small.draw(), first)
    assert hook.forwards == len(ran) == 3 * small.case.calls * schedule.nfe
    assert torch.isfinite(first).all()
    assert 0 < (first - plain).std() < plain.std()


def test_every_step_integrates_the_rules_velocity(small, grid, follow):
    schedule = schedule_of(grid)
    rows = torch.from_numpy(velocities_in_use(schedule))
    follow(schedule)
    with record_trajectory(small.pipe) as trajectory:
        small.draw()
    given = trajectory.velocities(STEPS).double()
    # On computed steps this rule takes the velocity itself, so the rest must follow.
    torch.testing.assert_close(given, rows @ given, atol=1e-5, rtol=1e-4)


def test_nothing_is_left_on_the_pipeline_and_its_modules(small, plain, grid):
    def state():
        # A plain run leaves a registry of diffusers' own on a transformer, for its cache contexts.
        return [
            (id(module), type(module), set(vars(module)), list(module._forward_hooks))
            for transformer in transformers_of(small.pipe)
            for module in transformer.modules()
        ], [(type(one), set(vars(one))) for one in (small.pipe, small.pipe.scheduler)]

    before = state()
    apply_mean_cache(small.pipe, schedule_of(grid))
    assert state() != before
    with record_trajectory(small.pipe):
        small.draw()
    remove_mean_cache(small.pipe)
    remove_mean_cache(small.pipe)  # once more does no harm
    assert state() == before
    for transformer in transformers_of(small.pipe):
        assert not getattr(getattr(transformer, "_diffusers_hook", None), "hooks", None)
    # Nothing is left of one that no run has followed either.
    apply_mean_cache(small.pipe, schedule_of(grid))
    remove_mean_cache(small.pipe)
    assert state() == before
    assert torch.equal(small.draw(), plain)


def test_recorded_velocities_replay_the_reference_latents_exactly(small, plain, grid):
    states = []
    step = small.pipe.scheduler.step

    def watch(model_output, timestep, sample, **kwargs):
        states.append(sample.clone())
        result = step(model_output, timestep, sample, **kwargs)
        states.append(result[0].clone())
        return result

    small.pipe.scheduler.step = watch
    try:
        with record_trajectory(small.pipe.transformer) as trajectory:
            assert torch.equal(small.draw(), plain)
    finally:
        del small.pipe.scheduler.step
    velocities = trajectory.velocities(STEPS)
    assert velocities.shape == (STEPS, states[0].numel())
    assert velocities.dtype == torch.float32
    sigmas, state = torch.tensor(grid.sigmas), states[0]
    for k in range(STEPS):
        state = state + (sigmas[k + 1] - sigmas[k]) * velocities[k].view_as(state)
        assert torch.equal(state, states[2 * k + 1])


def test_a_run_that_failed_halfway_does_not_spoil_the_next(small, grid, follow):
    follow(schedule_of(grid))
    clean, step, calls = small.draw(), small.pipe.scheduler.step, []

    def fail(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    small.pipe.scheduler.step = fail
    try:
        with pytest.raises(KeyboardInterrupt):
            small.draw(seed=3)
    finally:
        del small.pipe.scheduler.step
    assert torch.equal(small.draw(), clean)
