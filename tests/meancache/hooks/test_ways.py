"""The ways in which people run pipelines: a schedule goes along with each."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module
from diffusers import FluxImg2ImgPipeline, SD3Transformer2DModel
from diffusers.hooks import apply_group_offloading
from diffusers.hooks.hooks import HookRegistry
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from peft import LoraConfig

from meancache import Schedule, ScheduleError, apply_mean_cache, remove_mean_cache
from meancache.grid import Grid
from meancache.hooks.pipelines import transformers_of
from meancache.trajectory import record_trajectory
from tests.support.pipeline_support import independent
from tests.support.small_pipelines import STEPS, Small, build, noise, picture

SKIPS = [(0, 1, 1), (1, 2, 1), (2, 5, 2), (5, 6, 1), (6, 9, 3), (9, 10, 1)]
NFE = len(SKIPS)


def schedule_of(small: Small, path=SKIPS) -> Schedule:
    """A schedule for the grid of the pipeline's last call."""
    edges = [{"start": start, "stop": stop, "span": span} for start, stop, span in path]
    sigmas = Grid.from_scheduler(small.pipe.scheduler).sigmas
    return Schedule.from_edges(sigmas, edges, "fine-step")


ALL_STEPS = [(k, k + 1, 1) for k in range(STEPS)]

NAMES = ["FLUX.1", "Qwen-Image with renormalised guidance", "Z-Image", "SD3", "LTX-Video"]


def of_two(name: str, value):
    """An argument of the call for two prompts, the second's embeddings being other numbers."""
    if not name.startswith(("prompt_", "pooled_", "negative_")):
        return value
    if isinstance(value, list):
        return [*value, noise(*value[0].shape, seed=9)]
    if value.dtype.is_floating_point and not name.endswith("_mask"):
        return torch.cat([value, noise(*value.shape, seed=9)])
    return torch.cat([value, value])


@pytest.mark.parametrize("name", NAMES)
def test_two_prompts_in_one_batch_equal_each_alone(name):
    small = build(name)
    small.draw()
    hook = apply_mean_cache(small.pipe, schedule_of(small))
    both = {key: of_two(key, value) for key, value in small.case.arguments.items()}
    seeds = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    together = small.draw(**both, generator=seeds)
    assert hook.forwards == NFE * small.case.calls
    for index, seed in enumerate((5, 6)):
        alone = {
            key: value[index : index + 1] if value is not small.case.arguments[key] else value
            for key, value in both.items()
        }
        torch.testing.assert_close(
            together[index], small.draw(seed, **alone)[0], atol=1e-4, rtol=1e-4
        )


# SD3 and LTX-Video themselves repeat a prompt's text, but not its embeddings.
@pytest.mark.parametrize("name", NAMES[:3])
def test_several_samples_of_a_prompt_equal_each_alone(name):
    small = build(name)
    small.draw()
    apply_mean_cache(small.pipe, schedule_of(small))
    seeds = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    together = small.draw(generator=seeds, num_images_per_prompt=2)
    for index, seed in enumerate((5, 6)):
        torch.testing.assert_close(together[index], small.draw(seed)[0], atol=1e-4, rtol=1e-4)


def test_steps_and_shapes_may_change_between_calls():
    small = build("HunyuanVideo with true guidance")
    first_plain = small.draw()
    hook = apply_mean_cache(small.pipe, schedule_of(small))
    first = small.draw()
    assert small.draw(height=48, num_frames=5).shape[2:4] == (2, 6)
    with pytest.raises(ScheduleError, match="the pipeline runs 8 steps"):
        small.draw(num_inference_steps=8)
    assert small.draw(true_cfg_scale=1.0).shape == first.shape  # one call a step, for once
    assert torch.equal(small.draw(), first)
    assert hook.forwards == (2 + 2 + 1 + 2) * NFE
    remove_mean_cache(small.pipe)
    assert torch.equal(small.draw(), first_plain)


@pytest.mark.parametrize("name", ["FLUX.1", "Z-Image", "Wan 2.2", "HunyuanVideo"])
def test_bfloat16_stays_bfloat16_and_bit_identical(name):
    small = build(name)
    arguments = {
        key: value.bfloat16()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
        else [item.bfloat16() for item in value]
        if isinstance(value, list)
        else value
        for key, value in small.case.arguments.items()
    }
    small = Small(replace(small.case, arguments=arguments), small.pipe.to(torch.bfloat16))
    plain = small.draw()
    apply_mean_cache(small.pipe, schedule_of(small, ALL_STEPS))
    assert torch.equal(small.draw(), plain)
    remove_mean_cache(small.pipe)
    apply_mean_cache(small.pipe, schedule_of(small))
    dtypes = set()
    small.pipe.transformer.register_forward_hook(
        lambda _, __, out: dtypes.add(torch.as_tensor(out[0][0]).dtype)
    )
    assert small.draw().dtype == plain.dtype
    assert dtypes == {torch.bfloat16}
    with record_trajectory(small.pipe) as trajectory:
        small.draw()
    assert trajectory.velocities(STEPS).dtype == torch.float32


def test_lora_on_and_off():
    small = build("FLUX.1")
    plain = small.draw()
    config = LoraConfig(r=2, target_modules=["to_q", "to_k"], init_lora_weights=False)
    torch.manual_seed(0)
    small.pipe.transformer.add_adapter(config, adapter_name="style")
    styled = small.draw()
    assert not torch.equal(styled, plain)
    apply_mean_cache(small.pipe.transformer, schedule_of(small, ALL_STEPS))
    for _ in range(2):
        assert torch.equal(small.draw(), styled)
        small.pipe.transformer.disable_adapters()
        assert torch.equal(small.draw(), plain)
        small.pipe.transformer.enable_adapters()
    small.pipe.transformer.delete_adapters("style")
    assert torch.equal(small.draw(), plain)


CPU = torch.device("cpu")


def group_offload(transformer) -> None:
    apply_group_offloading(
        transformer, onload_device=CPU, offload_device=CPU, offload_type="leaf_level"
    )


def accelerate_offload(transformer) -> None:
    add_hook_to_module(transformer, AlignDevicesHook(execution_device="cpu", io_same_device=True))


@pytest.mark.parametrize("first", ["offload", "schedule"])
@pytest.mark.parametrize("offload", [group_offload, accelerate_offload])
def test_offloading_before_or_after(offload, first):
    small = build("FLUX.1")
    plain, transformer = small.draw(), small.pipe.transformer
    schedule = schedule_of(small)
    apply_mean_cache(transformer, schedule)
    skipping = small.draw()
    remove_mean_cache(transformer)
    if first == "offload":
        offload(transformer)
        hook = apply_mean_cache(transformer, schedule)
    else:
        hook = apply_mean_cache(transformer, schedule)
        offload(transformer)
    assert torch.equal(small.draw(), skipping)
    assert hook.forwards == NFE
    # What offloads stays when the schedule goes, and nothing of the schedule stays with it.
    remove_mean_cache(transformer)
    assert torch.equal(small.draw(), plain)
    assert hook.forwards == NFE
    if offload is accelerate_offload:
        assert vars(transformer)["_old_forward"].__func__ is type(transformer).forward
        remove_hook_from_module(transformer)
        assert torch.equal(small.draw(), plain)
    else:
        layers = [vars(module).get("_diffusers_hook") for module in transformer.modules()]
        assert any("group_offloading" in layer.hooks for layer in layers if layer is not None)


def test_offloading_taken_off_while_a_schedule_is_on():
    small = build("SD3")
    plain, transformer = small.draw(), small.pipe.transformer
    hook = apply_mean_cache(transformer, schedule_of(small))
    accelerate_offload(transformer)
    remove_hook_from_module(transformer)
    # accelerate leaves the class's own forward on the module; the schedule has no part in it.
    small.draw()
    assert hook.forwards == NFE
    remove_mean_cache(transformer)
    assert type(transformer) is SD3Transformer2DModel
    assert vars(transformer)["forward"].__func__ is SD3Transformer2DModel.forward
    assert torch.equal(small.draw(), plain)


def compile_blocks(pipe) -> None:
    pipe.transformer.compile_repeated_blocks(backend="eager")


def compile_in_place(pipe) -> None:
    pipe.transformer.compile(backend="eager")


def compile_wrapped(pipe) -> None:
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")


@pytest.mark.parametrize("compiled", [compile_blocks, compile_in_place, compile_wrapped])
def test_compiled_blocks_and_compiled_transformers(compiled):
    small = build("Wan 2.1")
    plain = small.draw()
    schedule = schedule_of(small)
    apply_mean_cache(small.pipe, schedule)
    skipping = small.draw()
    remove_mean_cache(small.pipe)
    torch._dynamo.reset()
    compiled(small.pipe)
    try:
        torch.testing.assert_close(small.draw(), plain, atol=1e-5, rtol=1e-5)
        hook = apply_mean_cache(small.pipe.transformer, schedule)
        torch.testing.assert_close(small.draw(), skipping, atol=1e-5, rtol=1e-5)
        assert hook.forwards == 2 * NFE
        remove_mean_cache(small.pipe.transformer)
        torch.testing.assert_close(small.draw(), plain, atol=1e-5, rtol=1e-5)
        assert hook.forwards == 2 * NFE
    finally:
        torch._dynamo.reset()


def test_an_exception_inside_the_transformer_does_not_spoil_the_next_run():
    small = build("Wan 2.2")
    small.draw()
    apply_mean_cache(small.pipe, schedule_of(small))
    clean, calls = small.draw(), itertools.count()

    def fail(*_):
        if next(calls) == 7:
            raise MemoryError

    # In the middle of a step: cond has been called, uncond not.
    handle = small.pipe.transformer.proj_out.register_forward_pre_hook(fail)
    handle_2 = small.pipe.transformer_2.proj_out.register_forward_pre_hook(fail)
    with pytest.raises(MemoryError):
        small.draw(seed=4)
    handle.remove()
    handle_2.remove()
    assert torch.equal(small.draw(), clean)


def test_an_interrupted_run_does_not_spoil_the_next():
    small = build("FLUX.1")
    small.draw()
    hook = apply_mean_cache(small.pipe, schedule_of(small))
    clean = small.draw()

    def interrupt(pipe, step, *_):
        pipe._interrupt = step >= 3
        return {}

    small.draw(callback_on_step_end=interrupt)
    assert hook.forwards == NFE + 3
    assert torch.equal(small.draw(), clean)


def test_two_transformers_go_on_with_each_others_velocities():
    """One schedule over the whole grid; a jump may begin in one and end in the other."""
    small = build("Wan 2.2")
    small.draw()
    boundary = 0.875
    sigmas = Grid.from_scheduler(small.pipe.scheduler).sigmas
    stage = [sigma >= boundary for sigma in sigmas[:-1]]
    switch = stage.index(False)
    path = [(0, 1, 1), (1, switch + 1, 1), (switch + 1, STEPS, 2)]
    ran = []
    for module in transformers_of(small.pipe):
        module.proj_out.register_forward_hook(lambda one, *_: ran.append(one))
    hook = apply_mean_cache(small.pipe, schedule_of(small, path))
    small.draw()
    first, second = (module.proj_out for module in transformers_of(small.pipe))
    assert [one is second for one in ran] == [False] * 4 + [True] * 2
    assert ran[0] is first
    assert hook.forwards == 6


def test_two_transformers_apart_compute_what_each_does_not_know():
    small = build("Wan 2.2")
    small.draw()
    sigmas = Grid.from_scheduler(small.pipe.scheduler).sigmas
    switch = [sigma >= 0.875 for sigma in sigmas[:-1]].index(False)
    path = [(0, 1, 1), (1, switch + 1, 1), (switch + 1, STEPS, 2)]
    first = apply_mean_cache(small.pipe.transformer, schedule_of(small, path))
    second = apply_mean_cache(small.pipe.transformer_2, schedule_of(small, path))
    assert torch.isfinite(small.draw()).all()
    assert first.forwards == 2 * 2
    assert second.forwards > 2
    remove_mean_cache(small.pipe)
    # Or one of them alone: the other computes all of its steps.
    hook = apply_mean_cache(small.pipe.transformer, schedule_of(small, path))
    small.draw()
    assert hook.forwards == 2 * 2


def test_guidance_that_ends_early():
    small = build("Z-Image")
    whole = small.draw(cfg_truncation=0.5)
    apply_mean_cache(small.pipe, schedule_of(small, ALL_STEPS))
    assert torch.equal(small.draw(cfg_truncation=0.5), whole)
    remove_mean_cache(small.pipe)
    schedule = schedule_of(small)
    want = independent(lambda: small.draw(cfg_truncation=0.5), schedule)
    hook = apply_mean_cache(small.pipe, schedule)
    got = small.draw(cfg_truncation=0.5)
    assert hook.forwards == NFE
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_a_third_call_that_comes_and_goes():
    small = build("SD3")
    layers = {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.2}
    layers["skip_layer_guidance_stop"] = 0.9
    whole = small.draw(**layers)
    hook = apply_mean_cache(small.pipe, schedule_of(small, ALL_STEPS))
    assert torch.equal(small.draw(**layers), whole)
    every = hook.forwards
    remove_mean_cache(small.pipe)
    schedule = schedule_of(small)
    want = independent(lambda: small.draw(**layers), schedule)
    hook = apply_mean_cache(small.pipe, schedule)
    got = small.draw(**layers)
    # Steps 3 to 8 make the third call; of these, 5 and 6 are computed.
    assert hook.forwards == NFE + 2 < every
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_a_run_that_begins_in_the_middle_of_the_grid_follows_from_there():
    small = build("FLUX.1")
    small.draw()
    pipe = FluxImg2ImgPipeline(**small.pipe.components)
    pipe.set_progress_bar_config(disable=True)
    image = Small(small.case, pipe)
    arguments = {"image": picture(), "strength": 0.6}
    whole = image.draw(**arguments)
    hook = apply_mean_cache(pipe.transformer, schedule_of(small, ALL_STEPS))
    assert torch.equal(image.draw(**arguments), whole)
    assert hook.forwards == 6
    remove_mean_cache(pipe.transformer)
    held = [(start, stop, 1) for start, stop, _ in SKIPS]
    hook = apply_mean_cache(pipe.transformer, schedule_of(small, held))
    image.draw(**arguments)
    # Steps 4 to 9: 4 lies in a jump from 2, which is not known; 5, 6 and 9 are the schedule's.
    assert hook.forwards == 4


def test_a_registry_that_was_there_before_stays():
    small = build("SD3")
    transformer = small.pipe.transformer
    small.draw()
    assert not hasattr(transformer, "_diffusers_hook")
    registry = HookRegistry.check_if_exists_or_initialize(transformer)
    before = dict(vars(registry))
    apply_mean_cache(transformer, schedule_of(small))
    remove_mean_cache(transformer)
    assert transformer._diffusers_hook is registry
    assert vars(registry) == before


@torch.no_grad()
def test_a_loop_of_ones_own_may_ask_for_output_objects():
    small = build("SD3")
    given: dict = {}
    handle = small.pipe.transformer.register_forward_pre_hook(
        lambda _, __, kwargs: given.update(kwargs), with_kwargs=True
    )
    small.draw()
    handle.remove()
    transformer, sigmas = small.pipe.transformer, small.pipe.scheduler.sigmas
    given["return_dict"] = True

    def sample():
        latents = noise(2, 4, 4, 6)
        for sigma, following in itertools.pairwise(sigmas):
            call = {**given, "hidden_states": latents, "timestep": 1000 * sigma.expand(2)}
            output = transformer(**call)
            assert type(output) is Transformer2DModelOutput
            latents = latents + (following - sigma) * output.sample
        return latents

    plain = sample()
    apply_mean_cache(transformer, schedule_of(small, ALL_STEPS))
    assert torch.equal(sample(), plain)
    remove_mean_cache(transformer)
    hook = apply_mean_cache(transformer, schedule_of(small))
    assert torch.isfinite(sample()).all()
    assert hook.forwards == NFE
