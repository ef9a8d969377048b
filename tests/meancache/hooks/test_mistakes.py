"""What a user may do wrong is said in a sentence, before the first forward."""

from __future__ import annotations

import functools
import re
import types
from contextlib import contextmanager
from dataclasses import replace

import diffusers
import pytest
import torch
from diffusers import (
    AdaptiveProjectedGuidance,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from diffusers.hooks import apply_first_block_cache
from peft import LoraConfig

from meancache import Schedule, ScheduleError, apply_mean_cache, remove_mean_cache
from meancache.grid import Grid
from meancache.hooks.pipelines import active_loras
from meancache.hooks.schedulers import check_scheduler
from meancache.trajectory import record_trajectory
from tests.support.small_pipelines import Small, build, image_vae, noise, quiet, seeded

EDGES = [
    {"start": start, "stop": stop, "span": 1}
    for start, stop in [(0, 1), (1, 4), (4, 6), (6, 9), (9, 10)]
]


@pytest.fixture(scope="module")
def flux() -> Small:
    return build("FLUX.1")


@pytest.fixture(scope="module")
def schedule(flux) -> Schedule:
    flux.draw()
    return Schedule.from_edges(Grid.from_scheduler(flux.pipe.scheduler).sigmas, EDGES)


@pytest.fixture
def follow(flux):
    """Makes FLUX.1 follow a schedule for the length of a test."""
    yield lambda schedule: apply_mean_cache(flux.pipe.transformer, schedule)
    remove_mean_cache(flux.pipe)


def refused(small: Small, hook, message: str, **arguments) -> None:
    """The call is refused before a forward, and in one sentence or two."""
    with pytest.raises(ScheduleError, match=message) as caught:
        small.draw(**arguments)
    assert hook.forwards == 0
    assert "\n" not in str(caught.value)


def test_other_steps(flux, schedule, follow):
    refused(flux, follow(schedule), "10 steps.*the pipeline runs 12 steps", num_inference_steps=12)


def test_another_resolution_that_shifts_the_grid(flux, schedule, follow):
    refused(flux, follow(schedule), "scheduler's shift", height=64, width=64)


def test_another_shift():
    small = build("SD3")
    small.draw()
    grid = Grid.from_scheduler(small.pipe.scheduler)
    hook = apply_mean_cache(small.pipe.transformer, Schedule.from_edges(grid.sigmas, EDGES))
    small.pipe.scheduler.set_shift(4.0)
    refused(small, hook, "scheduler's shift")


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("SD3", {"height": 48}),
        ("FLUX.1", {"height": 48, "width": 32}),  # as many tokens: the same grid
        ("Z-Image", {"width": 32}),
        ("HunyuanVideo", {"num_frames": 5}),
        ("HunyuanVideo image to video", {"num_frames": 5}),
        ("HunyuanVideo-1.5", {"num_frames": 9}),
        ("HunyuanVideo-1.5 image to video", {"num_frames": 9}),
        ("Wan 2.2", {"width": 64}),
        ("LTX-Video", {"height": 96, "width": 64}),
    ],
)
def test_another_shape_than_the_schedules(name, other):
    small = build(name)
    small.draw()
    grid = Grid.from_scheduler(small.pipe.scheduler)
    fitting = Schedule.from_edges(grid.sigmas, EDGES)
    hook = apply_mean_cache(small.pipe, replace(fitting, conditions=small.case.size))
    small.draw()  # its own shape
    assert hook.forwards == small.case.calls * len(EDGES)
    remove_mean_cache(small.pipe)
    size, value = next(iter(other.items()))
    hook = apply_mean_cache(small.pipe, replace(fitting, conditions=small.case.size))
    refused(small, hook, f"{size} {small.case.size[size]}.*{size} {value}", **other)
    remove_mean_cache(small.pipe)
    # What is left open is not checked.
    apply_mean_cache(small.pipe, replace(fitting, conditions=dict.fromkeys(small.case.size)))
    small.draw(**other)


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({"dtype": "bfloat16"}, "dtype 'bfloat16'.*dtype 'float32'"),
        ({"dtype": "torch.float16"}, "dtype 'torch.float16'.*dtype 'float32'"),
        ({"guidance_scale": 6.0}, "guidance_scale 6.0.*guidance_scale 3.5"),
        ({"true_cfg_scale": 4.0}, "true_cfg_scale 4.0.*true_cfg_scale 1.0"),
        ({"height": 480}, "height 480.*height 32"),
        ({"width": 64}, "width 64.*width 48"),
        ({"num_images_per_prompt": 2}, "num_images_per_prompt 2.*num_images_per_prompt 1"),
    ],
)
@pytest.mark.parametrize("alone", [False, True], ids=["pipeline", "transformer"])
def test_another_condition_than_the_schedules(flux, schedule, conditions, message, alone):
    target = flux.pipe.transformer if alone else flux.pipe
    hook = apply_mean_cache(target, replace(schedule, conditions=conditions))
    try:
        refused(flux, hook, f"made for {message}: run it as the schedule says")
    finally:
        remove_mean_cache(target)


@pytest.mark.parametrize(
    "conditions",
    [
        {"dtype": "float32", "guidance_scale": 3.5, "true_cfg_scale": 1.0},
        {"dtype": "torch.float32", "height": 32, "width": 48},
        {"guidance_scale": None, "height": None},
    ],
)
def test_the_schedules_own_conditions(flux, schedule, follow, conditions):
    hook = follow(replace(schedule, conditions=conditions))
    flux.draw()
    assert hook.forwards == len(EDGES)


@pytest.mark.parametrize("alone", [False, True], ids=["pipeline", "transformer"])
def test_a_schedule_of_another_pipeline_class(flux, schedule, alone):
    target = flux.pipe.transformer if alone else flux.pipe
    model = {"id": "some/model", "revision": None, "pipeline": "HunyuanVideoPipeline"}
    hook = apply_mean_cache(target, replace(schedule, model=model))
    try:
        refused(flux, hook, "made for pipeline 'HunyuanVideoPipeline'.*pipeline 'FluxPipeline'")
    finally:
        remove_mean_cache(target)
    hook = apply_mean_cache(target, replace(schedule, model={**model, "pipeline": "FluxPipeline"}))
    try:
        flux.draw()
        assert hook.forwards == len(EDGES)
    finally:
        remove_mean_cache(target)


def test_another_guidance_where_a_guider_has_it():
    small = build("HunyuanVideo-1.5")
    small.draw()
    grid = Grid.from_scheduler(small.pipe.scheduler)
    schedule = Schedule.from_edges(grid.sigmas, EDGES)
    hook = apply_mean_cache(small.pipe, replace(schedule, conditions={"guidance_scale": 6.0}))
    refused(small, hook, "guidance_scale 6.0.*guidance_scale 4.0")


def test_applied_twice(flux, schedule, follow):
    follow(schedule)
    for target in (flux.pipe, flux.pipe.transformer):
        with pytest.raises(ScheduleError, match="follows a schedule already; call remove_mean"):
            apply_mean_cache(target, schedule)


def test_a_pipeline_of_which_one_transformer_follows_a_schedule_already_is_left_as_it_is():
    wan = build("Wan 2.2")
    wan.draw()
    grid = Grid.from_scheduler(wan.pipe.scheduler)
    schedule = Schedule.from_edges(grid.sigmas, EDGES)
    apply_mean_cache(wan.pipe.transformer_2, schedule)
    with pytest.raises(ScheduleError, match="already"):
        apply_mean_cache(wan.pipe, schedule)
    remove_mean_cache(wan.pipe.transformer_2)
    apply_mean_cache(wan.pipe, schedule)


CACHES = [
    diffusers.FirstBlockCacheConfig(threshold=0.1),
    diffusers.TaylorSeerCacheConfig(),
    diffusers.MagCacheConfig(num_inference_steps=10, mag_ratios=torch.ones(10)),
    diffusers.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 0
    ),
    diffusers.FasterCacheConfig(
        current_timestep_callback=lambda: 0, unconditional_batch_skip_range=2
    ),
]


@pytest.mark.parametrize("config", CACHES, ids=lambda config: type(config).__name__)
def test_another_cache_before_or_after(flux, schedule, follow, config):
    transformer = flux.pipe.transformer
    transformer.enable_cache(config)
    try:
        with pytest.raises(ScheduleError, match=r"another cache enabled.*disable_cache"):
            apply_mean_cache(transformer, schedule)
    finally:
        transformer.disable_cache()
    hook = follow(schedule)
    transformer.enable_cache(config)
    try:
        refused(flux, hook, r"another cache enabled.*disable_cache")
    finally:
        transformer.disable_cache()
    flux.draw()
    assert hook.forwards == len(EDGES)


def test_cache_dit_before_or_after(schedule):
    cache_dit = pytest.importorskip("cache_dit")
    flux = build("FLUX.1")
    config = cache_dit.DBCacheConfig(Fn_compute_blocks=1, Bn_compute_blocks=0)
    cache_dit.enable_cache(flux.pipe, cache_config=config)
    with pytest.raises(ScheduleError, match=r"another cache enabled \(cache-dit\)"):
        apply_mean_cache(flux.pipe, schedule)
    cache_dit.disable_cache(flux.pipe)
    hook = apply_mean_cache(flux.pipe, schedule)
    cache_dit.enable_cache(flux.pipe, cache_config=config)
    refused(flux, hook, r"another cache enabled \(cache-dit\)")


def answering(forward):
    """A cache as people write it: it answers every second call without computing."""
    last: list = []

    def cached(self, *args, **kwargs):
        if len(last) % 2 == 0:
            last.append(forward(self, *args, **kwargs))
        else:
            last.append(last[-1])
        return last[-1]

    return cached


@contextmanager
def on_the_instance(transformer, wrapped):
    own = type(transformer).forward
    cached = answering(own)
    transformer.forward = types.MethodType(functools.wraps(own)(cached) if wrapped else cached,
                                           transformer)  # fmt: skip
    try:
        yield
    finally:
        del transformer.forward


@contextmanager
def on_the_class(transformer, wrapped):
    cls = diffusers.FluxTransformer2DModel
    own = cls.forward
    cached = answering(own)
    cls.forward = functools.wraps(own)(cached) if wrapped else cached
    try:
        yield
    finally:
        cls.forward = own


@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "functools.wraps"])
@pytest.mark.parametrize("patched", [on_the_instance, on_the_class])
def test_a_forward_that_is_replaced_before_or_after(flux, schedule, patched, wrapped):
    transformer = flux.pipe.transformer
    message = "forward of FluxTransformer2DModel was replaced by .*cached, which may answer"
    with patched(transformer, wrapped), pytest.raises(ScheduleError, match=message):
        apply_mean_cache(flux.pipe, schedule)
    hook = apply_mean_cache(flux.pipe, schedule)
    try:
        with patched(transformer, wrapped):
            refused(flux, hook, message)
        flux.draw()
        assert hook.forwards == len(EDGES)
    finally:
        remove_mean_cache(flux.pipe)


def test_a_forward_that_always_computes_says_so(flux, schedule, follow):
    transformer = flux.pipe.transformer
    follow(schedule)
    want = flux.draw()
    remove_mean_cache(flux.pipe)
    times = []

    def timed(self, *args, **kwargs):
        times.append(1)
        return type(self).forward(self, *args, **kwargs)

    timed.computes_always = True
    transformer.forward = types.MethodType(timed, transformer)
    try:
        hook = follow(schedule)
        assert torch.equal(flux.draw(), want)
        assert hook.forwards == len(times) == len(EDGES)
    finally:
        del transformer.forward


def test_another_cache_on_a_transformer_that_cannot_say_so():
    small = build("SD3")
    small.draw()
    grid = Grid.from_scheduler(small.pipe.scheduler)
    apply_first_block_cache(small.pipe.transformer, diffusers.FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(ScheduleError, match=r"another cache enabled \(first_block_cache\)"):
        apply_mean_cache(small.pipe, Schedule.from_edges(grid.sigmas, EDGES))


def test_another_lora_than_the_schedules(schedule):
    flux = build("FLUX.1")
    transformer = flux.pipe.transformer
    for name in ("style", "detail"):
        config = LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False)
        transformer.add_adapter(config, adapter_name=name)
    transformer.set_adapters(["style"])
    assert active_loras(transformer) == ["style"]

    def with_lora(lora):
        remove_mean_cache(transformer)
        return replace(schedule, conditions={"lora": lora})

    hook = apply_mean_cache(transformer, with_lora("style"))
    flux.draw()
    assert hook.forwards == len(EDGES)
    with pytest.raises(ScheduleError, match=r"made for LoRA detail, but .* runs LoRA style: set"):
        apply_mean_cache(transformer, with_lora("detail"))
    with pytest.raises(ScheduleError, match=r"made for no LoRA, but .* runs LoRA style"):
        apply_mean_cache(transformer, with_lora([]))
    apply_mean_cache(transformer, with_lora(None))  # left open
    # Switched after it was applied: at the next run.
    hook = apply_mean_cache(transformer, with_lora(["style"]))
    transformer.set_adapters(["style", "detail"])
    refused(flux, hook, "made for LoRA style, but .* runs LoRA detail, style")
    transformer.disable_adapters()
    refused(flux, hook, "made for LoRA style, but .* runs no LoRA")
    hook = apply_mean_cache(transformer, with_lora([]))
    flux.draw()
    assert hook.forwards == len(EDGES)


@pytest.mark.parametrize("lora", [7, {"style": 1.0}, [["style"]], [None], True])
def test_a_lora_condition_that_is_none(flux, schedule, lora):
    with pytest.raises(ScheduleError, match="must be the names of adapters in a list"):
        apply_mean_cache(flux.pipe, replace(schedule, conditions={"lora": lora}))


@pytest.mark.parametrize("height", ["32", [32], {}, 32.5])
def test_a_size_that_is_none(flux, schedule, follow, height):
    hook = follow(replace(schedule, conditions={"height": height}))
    refused(flux, hook, "made for height .* but the pipeline runs height 32")


def cogvideox(scheduler) -> Small:
    transformer = seeded(
        CogVideoXTransformer3DModel,
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=16,
        num_layers=1,
        sample_width=6,
        sample_height=4,
        sample_frames=5,
        max_text_seq_length=6,
    )
    vae = seeded(
        diffusers.AutoencoderKLCogVideoX,
        block_out_channels=(4, 4, 4, 4),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    )
    pipe = CogVideoXPipeline(
        tokenizer=None, text_encoder=None, vae=vae, transformer=transformer, scheduler=scheduler
    )
    arguments = {
        "height": 32,
        "width": 48,
        "num_frames": 5,
        "prompt_embeds": noise(1, 6, 16),
        "negative_prompt_embeds": noise(1, 6, 16, seed=8),
    }
    return Small(replace(build("FLUX.1").case, arguments=arguments), quiet(pipe))


def stable_diffusion(scheduler) -> Small:
    unet = seeded(
        UNet2DConditionModel,
        sample_size=4,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
    )
    names = ("text_encoder", "tokenizer", "safety_checker", "feature_extractor")
    pipe = StableDiffusionPipeline(
        vae=image_vae(4),
        unet=unet,
        scheduler=scheduler,
        requires_safety_checker=False,
        **dict.fromkeys(names),
    )
    arguments = {
        "height": 32,
        "width": 32,
        "prompt_embeds": noise(1, 6, 16),
        "negative_prompt_embeds": noise(1, 6, 16, seed=8),
    }
    return Small(replace(build("FLUX.1").case, arguments=arguments), quiet(pipe))


def wan_with(scheduler) -> Small:
    small = build("Wan 2.1")
    small.pipe.scheduler = scheduler
    return small


@pytest.mark.parametrize(
    "make",
    [
        lambda: cogvideox(CogVideoXDDIMScheduler(prediction_type="v_prediction")),
        lambda: cogvideox(CogVideoXDPMScheduler(prediction_type="v_prediction")),
        lambda: stable_diffusion(DDIMScheduler()),
        lambda: stable_diffusion(EulerDiscreteScheduler()),
        # A flow, but not by Euler steps.
        lambda: wan_with(
            UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
            )
        ),
        lambda: wan_with(FlowMatchHeunDiscreteScheduler(shift=3.0)),
    ],
    ids=["CogVideoX DDIM", "CogVideoX DPM", "SD DDIM", "SD Euler", "Wan UniPC", "Wan Heun"],
)
def test_a_sampler_that_is_not_euler_on_a_flow(make, schedule):
    small = make()
    denoiser = getattr(small.pipe, "transformer", None) or small.pipe.unet
    small.draw()
    hook = apply_mean_cache(denoiser, schedule)
    name = type(small.pipe.scheduler).__name__
    refused(small, hook, f"scheduler is a {name}, but a schedule stands in for a velocity that")
    remove_mean_cache(denoiser)
    with (
        record_trajectory(denoiser) as trajectory,
        pytest.raises(ScheduleError, match=f"scheduler is a {name}"),
    ):
        small.draw()
    assert trajectory.outputs == []


MULTISTEP = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}


@pytest.mark.parametrize(
    ("other", "shift"),
    [
        (UniPCMultistepScheduler(**MULTISTEP, flow_shift=5.0), 5.0),
        (DPMSolverMultistepScheduler(**MULTISTEP, flow_shift=3.0), 3.0),
        (DPMSolverMultistepScheduler(**MULTISTEP), 1.0),
        (FlowMatchHeunDiscreteScheduler(shift=2.5), 2.5),
    ],
    ids=["UniPC", "DPM++", "DPM++ unshifted", "Heun"],
)
def test_a_flows_other_scheduler_is_refused_with_the_euler_one_that_takes_its_place(other, shift):
    small = wan_with(other)
    grid = [1.0, 0.5, 0.0]
    whole = Schedule.from_edges(grid, [{"start": 0, "stop": 2, "weights": {0: 1.0}}])
    hook = apply_mean_cache(small.pipe, whole)
    with pytest.raises(ScheduleError, match="works with a FlowMatchEuler") as caught:
        small.draw()
    assert hook.forwards == 0
    remove_mean_cache(small.pipe)
    told = re.search(r"set pipe.scheduler = (.*) and use a schedule", str(caught.value))[1]
    names = {
        "pipe": small.pipe,
        "FlowMatchEulerDiscreteScheduler": FlowMatchEulerDiscreteScheduler,
    }
    small.pipe.scheduler = eval(told, names)
    assert small.pipe.scheduler.shift == shift
    small.draw()
    sigmas = Grid.from_scheduler(small.pipe.scheduler).sigmas
    hook = apply_mean_cache(small.pipe, Schedule.from_edges(sigmas, EDGES))
    small.draw()
    assert hook.forwards == 2 * len(EDGES)


@pytest.mark.parametrize("scheduler", [DDIMScheduler(), UniPCMultistepScheduler()])
def test_a_scheduler_of_no_flow_is_refused_without_such_advice(scheduler):
    with pytest.raises(
        ScheduleError, match="this one takes other steps, so call remove_mean_cache"
    ):
        check_scheduler(scheduler)


def test_guidance_with_momentum_is_refused_unless_every_step_is_computed():
    small = build("HunyuanVideo-1.5")
    small.pipe.guider = AdaptiveProjectedGuidance(
        guidance_scale=4.0, adaptive_projected_guidance_momentum=-0.5
    )
    plain = small.draw()
    sigmas = Grid.from_scheduler(small.pipe.scheduler).sigmas
    hook = apply_mean_cache(small.pipe, Schedule.from_edges(sigmas, EDGES))
    refused(small, hook, "has momentum -0.5, an average over all steps.*guidance without momentum")
    remove_mean_cache(small.pipe)
    steps = len(sigmas) - 1
    every = [{"start": k, "stop": k + 1, "weights": {k: 1.0}} for k in range(steps)]
    apply_mean_cache(small.pipe, Schedule.from_edges(sigmas, every))
    assert torch.equal(small.draw(), plain)
    remove_mean_cache(small.pipe)
    small.pipe.guider = AdaptiveProjectedGuidance(guidance_scale=4.0)
    hook = apply_mean_cache(small.pipe, Schedule.from_edges(sigmas, EDGES))
    small.draw()
    assert hook.forwards == 2 * len(EDGES)


def test_an_euler_scheduler_that_does_not_follow_the_flow(schedule):
    small = build("SD3")
    small.pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, stochastic_sampling=True)
    hook = apply_mean_cache(small.pipe, schedule)
    refused(small, hook, "stochastic_sampling")


def test_a_pipeline_without_a_transformer(schedule):
    small = stable_diffusion(DDIMScheduler())
    with pytest.raises(ScheduleError, match="StableDiffusionPipeline has no transformer; give"):
        apply_mean_cache(small.pipe, schedule)
