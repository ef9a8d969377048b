"""The schedules that the paper's authors published, and their configurations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from meancache import Schedule, ScheduleError, apply_mean_cache, remove_mean_cache
from meancache.grid import Grid
from tests.support.small_pipelines import Small, build

FILES = sorted((Path(__file__).parents[3] / "schedules/published").glob("*/*.json"))
BY_MODEL = [f"{path.parent.name}/{path.stem}" for path in FILES]
LINEAR = np.linspace(1, 1 / 50, 50)


def grid_of(model: str) -> Grid:
    """The noise levels that diffusers gives the model in 50 steps."""
    if model == "Z-Image":
        scheduler = FlowMatchEulerDiscreteScheduler(shift=6.0)
        scheduler.set_timesteps(sigmas=LINEAR)
    else:
        scheduler = FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=0.9,
            max_image_seq_len=8192,
            shift_terminal=0.02,
        )
        tokens = (1664 // 16) * (928 // 16)
        scheduler.set_timesteps(sigmas=LINEAR, mu=0.5 + (tokens - 256) / (8192 - 256) * (0.9 - 0.5))
    return Grid.from_scheduler(scheduler)


@pytest.mark.parametrize("path", FILES, ids=BY_MODEL)
def test_a_published_schedule_says_whose_it_is_and_for_what(path):
    schedule = Schedule.load(path)
    model = path.parent.name
    assert path.stem == f"paper-b{schedule.budget}"
    assert schedule.nfe == schedule.budget
    assert (schedule.method, schedule.execution) == ("paper", "fine-step")
    assert schedule.model["id"].rpartition("/")[2] == model
    assert "UnicomAI/MeanCache, Apache-2.0" in schedule.calibration["source"]
    assert schedule.grid.matches(grid_of(model).sigmas)
    assert not schedule.conditions


def test_every_model_of_the_release_has_some():
    assert {path.parent.name for path in FILES} == {"Qwen-Image", "Qwen-Image-2512", "Z-Image"}


@pytest.fixture(scope="module")
def small() -> Small:
    """Qwen-Image, without guidance in two forwards."""
    torch.set_num_threads(1)
    return build("Qwen-Image")


@pytest.fixture(scope="module")
def grid(small) -> Grid:
    small.draw(num_inference_steps=50)
    return Grid.from_scheduler(small.pipe.scheduler)


def field_of(small: Small, **changes):
    """(noise, v(z, sigma)), the transformer called by itself with the pipeline's arguments."""
    first: dict = {}
    handle = small.pipe.transformer.register_forward_pre_hook(
        lambda _, __, given: first.update(given) if not first else None, with_kwargs=True
    )
    small.draw(num_inference_steps=50, **changes)
    handle.remove()

    @torch.no_grad()
    def velocity(z: torch.Tensor, sigma: float, **other) -> torch.Tensor:
        timestep = torch.full((len(z),), float(sigma))
        given = {**first, "hidden_states": z, "timestep": timestep, **other}
        return small.pipe.transformer(**given)[0]

    return first["hidden_states"], velocity


def fine_step_run(z, velocity, sigmas, edges) -> torch.Tensor:
    """The rule of the method's section 2, as a loop over the steps.

    A computed step advances with v_t; each skipped step k uses u_k = u_{k-1} +
    h_k (u(k-K, k) - u_{k-K}) / (sigma_k - sigma_{k-K}), u(r, k) the average over the steps r..k-1.
    """
    used: list[torch.Tensor] = []
    for edge in edges:
        for k in range(edge.start, edge.stop):
            h = sigmas[k + 1] - sigmas[k]
            if k == edge.start:
                u = velocity(z, sigmas[k])
            else:
                r = k - edge.span
                lengths = [sigmas[i + 1] - sigmas[i] for i in range(r, k)]
                average = sum(length * used[r + i] for i, length in enumerate(lengths))
                average = average / (sigmas[k] - sigmas[r])
                u = used[k - 1] + h * (average - used[r]) / (sigmas[k] - sigmas[r])
            used.append(u)
            z = z + h * u
    return z


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.parent.name == "Qwen-Image"], ids=lambda path: path.stem
)
def test_a_published_schedule_in_a_pipeline_is_the_rule_written_as_a_loop(small, grid, path):
    schedule = Schedule.load(path).on(grid.sigmas)
    start, velocity = field_of(small)
    expected = fine_step_run(start, velocity, grid.sigmas, schedule.edges)
    hook = apply_mean_cache(small.pipe.transformer, schedule)
    try:
        result = small.draw(num_inference_steps=50)
    finally:
        remove_mean_cache(small.pipe.transformer)
    assert hook.forwards == schedule.budget
    torch.testing.assert_close(result, expected, atol=2e-5, rtol=2e-5)


def test_under_renormalised_guidance_each_branch_follows_the_rule():
    """The authors' scripts extrapolate the guided velocity; here each branch does, then both join.

    Without renormalisation that is the same. With it the two differ, by less than either differs
    from the full run.
    """
    guided = build("Qwen-Image with renormalised guidance")
    start, velocity = field_of(guided)
    given = guided.case.arguments

    def combined(z, sigma):
        cond = velocity(z, sigma)
        uncond = velocity(
            z,
            sigma,
            encoder_hidden_states=given["negative_prompt_embeds"],
            encoder_hidden_states_mask=None,
        )
        both = uncond + given["true_cfg_scale"] * (cond - uncond)
        return both * (cond.norm(dim=-1, keepdim=True) / both.norm(dim=-1, keepdim=True))

    full = guided.draw(num_inference_steps=50)
    grid = Grid.from_scheduler(guided.pipe.scheduler)
    every = all_steps().on(grid.sigmas).edges
    replay = fine_step_run(start, combined, grid.sigmas, every)
    torch.testing.assert_close(full, replay, atol=2e-5, rtol=2e-5)
    path = next(path for path in FILES if path.parent.name == "Qwen-Image")
    schedule = Schedule.load(path).on(grid.sigmas)
    theirs = fine_step_run(start, combined, grid.sigmas, schedule.edges)
    apply_mean_cache(guided.pipe.transformer, schedule)
    ours = guided.draw(num_inference_steps=50)
    assert (ours - theirs).std() < (theirs - full).std()


def all_steps() -> Schedule:
    edges = [{"start": k, "stop": k + 1, "span": 1} for k in range(50)]
    return Schedule.from_edges(np.linspace(1, 0, 51), edges, "fine-step")


def test_edges_move_to_another_grid_of_as_many_steps_and_to_no_other(grid):
    schedule = Schedule.load(FILES[0])
    moved = schedule.on(grid.sigmas)
    assert moved.edges == schedule.edges
    assert moved.grid.sigmas == grid.sigmas
    with pytest.raises(ScheduleError, match="50 steps, but the grid has 12; give one of 50"):
        schedule.on(np.linspace(1, 0, 13))
    with pytest.raises(ScheduleError, match="must fall strictly"):
        schedule.on([1.0] * 51)
    weighted = Schedule.from_edges([1, 0.5, 0], [{"start": 0, "stop": 2, "weights": {0: 1.0}}])
    with pytest.raises(ScheduleError, match="weights that hold on its own grid only"):
        weighted.on([1, 0.6, 0])
