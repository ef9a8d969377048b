"""A guarded pipeline: transformers that are replaced, threads, wrappers, modular pipelines."""

from __future__ import annotations

import copy
import threading
import warnings
from dataclasses import replace

import pytest
import torch
from diffusers import (
    AutoPipelineForInpainting,
    FlowMatchHeunDiscreteScheduler,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
)

from meancache import Schedule, ScheduleError, apply_mean_cache, remove_mean_cache
from meancache.grid import Grid
from tests.support.modular_pipelines import MODULAR
from tests.support.pipeline_support import independent
from tests.support.small_pipelines import STEPS, Small, build, flux, picture, quiet

EDGES = [
    {"start": 0, "stop": 4, "weights": {0: 1.0}},
    {"start": 4, "stop": 8, "weights": {0: -0.5, 4: 1.5}},
    {"start": 8, "stop": STEPS, "weights": {8: 1.0}},
]


def schedule_of(small: Small) -> Schedule:
    """For the grid of the pipeline's last call."""
    return Schedule.from_edges(Grid.from_scheduler(small.pipe.scheduler).sigmas, EDGES)


@pytest.fixture
def small() -> Small:
    small = build("FLUX.1")
    small.draw()
    return small


def heavier(small: Small) -> torch.nn.Module:
    """Another transformer for the pipeline."""
    other = flux().transformer
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.2)
    return other


def test_a_transformer_that_takes_the_place_of_another_follows_the_schedule(small):
    schedule = schedule_of(small)
    hook = apply_mean_cache(small.pipe, schedule)
    first = small.pipe.transformer
    small.draw()
    small.pipe.transformer = heavier(small)
    got = small.draw()
    assert hook.forwards == 2 * len(EDGES)
    remove_mean_cache(small.pipe)
    torch.testing.assert_close(got, independent(small.draw, schedule), atol=1e-5, rtol=1e-4)
    # Neither of them keeps anything.
    for one in (first, small.pipe.transformer):
        assert "_mean_cache" not in " ".join(vars(one))
        assert type(one).__mro__[1].__name__ != type(one).__name__


def test_a_replaced_transformer_that_follows_another_schedule_is_refused(small):
    schedule = schedule_of(small)
    apply_mean_cache(small.pipe, schedule)
    other = heavier(small)
    apply_mean_cache(other, schedule)
    small.pipe.transformer = other
    with pytest.raises(ScheduleError, match="follows a schedule already; call remove_mean_cache"):
        small.draw()


def test_a_run_that_goes_around_the_hook_warns(small):
    transformer = small.pipe.transformer
    apply_mean_cache(small.pipe, schedule_of(small))
    # A caller that runs the forward itself, and not the module.
    small.pipe.transformer = Direct(transformer)
    with pytest.warns(UserWarning, match="was not accelerated; call remove_mean_cache"):
        small.draw()


class Direct(torch.nn.Module):
    """Calls a transformer's forward, past the module."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.config, self.dtype, self.device = inner.config, inner.dtype, inner.device
        self.cache_context = inner.cache_context

    def forward(self, *args, **kwargs):
        return self.inner.forward(*args, **kwargs)


def test_an_accelerated_run_says_nothing(small):
    apply_mean_cache(small.pipe, schedule_of(small))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        small.draw()


def test_a_second_thread_on_the_scheduler_is_refused_and_does_not_disturb_the_first(small):
    hook = apply_mean_cache(small.pipe, schedule_of(small))
    alone, inside, go_on, seen = small.draw(), threading.Event(), threading.Event(), []

    def wait(pipe, step, *_):
        if step == 2:
            inside.set()
            assert go_on.wait(60)
        return {}

    first = threading.Thread(target=lambda: seen.append(small.draw(callback_on_step_end=wait)))
    first.start()
    assert inside.wait(60)
    before = hook.forwards
    with pytest.raises(ScheduleError, match="another thread is running on the scheduler of this"):
        small.draw(seed=1)
    assert hook.forwards == before
    go_on.set()
    first.join()
    assert torch.equal(seen[0], alone)
    assert torch.equal(small.draw(), alone)


def test_another_request_begins_while_one_is_inside_the_transformer(small):
    schedule = schedule_of(small)
    apply_mean_cache(small.pipe, schedule)
    alone = [small.draw(seed) for seed in (0, 1)]
    parts = {**small.pipe.components, "scheduler": copy.deepcopy(small.pipe.scheduler)}
    twin = Small(small.case, quiet(type(small.pipe)(**parts)))
    inside, out = threading.Event(), {}
    second_done = threading.Event()

    def gate(*_):
        if threading.current_thread().name == "first" and not inside.is_set():
            inside.set()
            second_done.wait(60)

    handle = small.pipe.transformer.proj_out.register_forward_pre_hook(gate)

    def draw(name: str, one: Small, seed: int) -> None:
        out[name] = one.draw(seed)

    first = threading.Thread(target=draw, name="first", args=("first", small, 0))
    first.start()
    assert inside.wait(60)
    second = threading.Thread(target=draw, name="second", args=("second", twin, 1))
    second.start()
    second.join()
    second_done.set()
    first.join()
    handle.remove()
    assert torch.equal(out["first"], alone[0])
    assert torch.equal(out["second"], alone[1])


def test_a_copy_of_the_pipeline_follows_nothing_and_says_so(small):
    plain = small.draw()
    hook = apply_mean_cache(small.pipe, schedule_of(small))
    with pytest.warns(UserWarning, match="follows none itself"):
        twin = copy.deepcopy(small.pipe)
    assert type(twin).__mro__[1].__name__ != "FluxPipeline"
    assert torch.equal(Small(small.case, twin).draw(), plain)
    assert hook.forwards == 0
    small.draw()
    assert hook.forwards == len(EDGES)


def test_another_pipeline_made_of_the_parts_shares_the_transformer_and_its_schedule(small):
    schedule = schedule_of(small)
    hook = apply_mean_cache(small.pipe, schedule)
    other = quiet(FluxImg2ImgPipeline.from_pipe(small.pipe))
    assert type(AutoPipelineForInpainting.from_pipe(small.pipe)) is FluxInpaintPipeline
    arguments = {**small.case.arguments, "image": picture(), "strength": 1.0}
    image = Small(replace(small.case, arguments=arguments), other)
    got = image.draw()
    assert hook.forwards == len(EDGES)
    remove_mean_cache(small.pipe)
    torch.testing.assert_close(got, independent(image.draw, schedule), atol=1e-5, rtol=1e-4)


class Server:
    """A wrapper that people write: it owns a pipeline and calls it from a method."""

    def __init__(self, pipe) -> None:
        self.pipe = pipe

    def __call__(self, **arguments):
        return self.pipe(**arguments)


@pytest.mark.parametrize("alone", [True, False], ids=["transformer", "pipeline"])
def test_a_wrapper_gets_the_same_checks(small, alone):
    schedule = replace(schedule_of(small), conditions={"height": 480, "guidance_scale": 3.5})
    target = small.pipe.transformer if alone else small.pipe
    hook = apply_mean_cache(target, schedule)
    with pytest.raises(ScheduleError, match=r"made for height 480.*runs height 32"):
        Small(small.case, Server(small.pipe)).draw()
    assert hook.forwards == 0


@pytest.fixture
def modular() -> Small:
    case = MODULAR["FluxModularPipeline"]
    small = Small(case, quiet(case.make()))
    small.draw()
    return small


@pytest.mark.parametrize("alone", [True, False], ids=["transformer", "pipeline"])
def test_a_modular_pipeline_is_accelerated_and_refuses_what_a_classic_one_does(
    modular, alone, caplog
):
    schedule = schedule_of(modular)
    target = modular.pipe.transformer if alone else modular.pipe
    hook = apply_mean_cache(target, schedule)
    got = modular.draw()
    assert hook.forwards == len(EDGES)
    remove_mean_cache(target)
    torch.testing.assert_close(got, independent(modular.draw, schedule), atol=1e-5, rtol=1e-4)
    for conditions, message in [
        ({"height": 480}, "made for height 480.*runs height 32"),
        ({"guidance_scale": 6.0}, "made for guidance_scale 6.0.*runs guidance_scale 3.5"),
        ({"dtype": "bfloat16"}, "made for dtype 'bfloat16'.*runs dtype 'float32'"),
    ]:
        hook = apply_mean_cache(target, replace(schedule, conditions=conditions))
        with pytest.raises(ScheduleError, match=message):
            modular.draw()
        assert hook.forwards == 0
        remove_mean_cache(target)
    hook = apply_mean_cache(target, schedule)
    with pytest.raises(ScheduleError, match=r"10 steps.*the pipeline runs 8 steps"):
        modular.draw(num_inference_steps=8)
    if alone:
        return
    modular.pipe.update_components(scheduler=FlowMatchHeunDiscreteScheduler(shift=3.0))
    with pytest.raises(ScheduleError, match="scheduler is a FlowMatchHeunDiscreteScheduler"):
        modular.draw()
    assert hook.forwards == 0
    # Each refusal is one sentence: diffusers logs no tracebacks around it.
    assert "Traceback" not in caplog.text
