"""A schedule stays on through all that people do to a pipeline, or the run says that it is not."""

from __future__ import annotations

import copy
import functools
import threading

import pytest
import torch
from accelerate.hooks import attach_align_device_hook
from diffusers import WanVideoToVideoPipeline

from meancache import Schedule, apply_mean_cache, remove_mean_cache
from meancache.grid import Grid
from tests.support.pipeline_support import independent
from tests.support.small_pipelines import STEPS, Case, Small, build, noise, picture, quiet

SKIPS = [(0, 1, 1), (1, 2, 1), (2, 5, 2), (5, 6, 1), (6, 9, 3), (9, 10, 1)]
NFE = len(SKIPS)


def schedule_of(small: Small, path=SKIPS) -> Schedule:
    """For the grid of the pipeline's last call."""
    edges = [{"start": start, "stop": stop, "span": span} for start, stop, span in path]
    sigmas = Grid.from_scheduler(small.pipe.scheduler).sigmas
    return Schedule.from_edges(sigmas, edges, "fine-step")


def scheduled(name: str) -> tuple[Small, Schedule, torch.Tensor, torch.Tensor]:
    """A pipeline, a schedule, and its latents without and with it."""
    small = build(name)
    plain = small.draw()
    schedule = schedule_of(small)
    apply_mean_cache(small.pipe, schedule)
    want = small.draw()
    remove_mean_cache(small.pipe)
    return small, schedule, plain, want


OFFLOADS = {
    "model": lambda pipe: pipe.enable_model_cpu_offload(device="cpu"),
    # As sequential offloading hooks every layer; its own needs an accelerator.
    "sequential": lambda pipe: attach_align_device_hook(
        pipe.transformer, execution_device="cpu", offload=False
    ),
    "group, leaves": lambda pipe: pipe.enable_group_offload(
        onload_device=torch.device("cpu"), offload_type="leaf_level"
    ),
    "group, blocks": lambda pipe: pipe.enable_group_offload(
        onload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
    ),
}


@pytest.mark.parametrize("offload", OFFLOADS.values(), ids=OFFLOADS)
@pytest.mark.parametrize("first", ["offload", "schedule"])
@pytest.mark.parametrize("alone", [False, True], ids=["pipeline", "transformer"])
def test_offloading_in_any_order_accelerates_every_call(offload, first, alone):
    small, schedule, plain, want = scheduled("FLUX.1")
    target = small.pipe.transformer if alone else small.pipe
    if first == "offload":
        offload(small.pipe)
    hook = apply_mean_cache(target, schedule)
    if first == "schedule":
        offload(small.pipe)
    for call in range(1, 4):
        assert torch.equal(small.draw(), want)
        assert hook.forwards == call * NFE
    remove_mean_cache(target)
    assert torch.equal(small.draw(), plain)


def lora(small: Small) -> dict[str, torch.Tensor]:
    """The weights of a style, as a file of them has them."""
    names = ["transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_k"]
    state = {}
    for number, name in enumerate(names):
        layer = small.pipe.transformer.get_submodule(name)
        state[f"transformer.{name}.lora_A.weight"] = noise(2, layer.in_features, seed=number)
        state[f"transformer.{name}.lora_B.weight"] = noise(layer.out_features, 2, seed=number)
    return state


@pytest.mark.parametrize("offload", [None, "model"])
def test_lora_loaded_fused_and_unloaded_under_a_schedule(offload):
    small, schedule, _, want = scheduled("FLUX.1")
    weights = lora(small)
    if offload is not None:
        OFFLOADS[offload](small.pipe)
        # Loading offloads anew, to an accelerator where no device is named.
        enable = small.pipe.enable_model_cpu_offload
        small.pipe.enable_model_cpu_offload = functools.partial(enable, device="cpu")
    hook = apply_mean_cache(small.pipe, schedule)
    small.pipe.load_lora_weights(weights)
    styled = small.draw()
    assert hook.forwards == NFE
    assert not torch.equal(styled, want)
    small.pipe.fuse_lora()
    torch.testing.assert_close(small.draw(), styled, atol=1e-4, rtol=1e-3)
    small.pipe.unfuse_lora()
    small.pipe.unload_lora_weights()
    torch.testing.assert_close(small.draw(), want, atol=1e-4, rtol=1e-3)
    assert hook.forwards == 3 * NFE
    small.pipe.load_lora_weights(weights)
    remove_mean_cache(small.pipe)
    torch.testing.assert_close(styled, independent(small.draw, schedule), atol=1e-5, rtol=1e-4)


def wrapped(pipe) -> None:
    pipe.transformer = torch.compile(pipe.transformer, backend="eager", fullgraph=True)


def in_place(pipe) -> None:
    pipe.transformer.compile(backend="eager", fullgraph=True)


def blocks(pipe) -> None:
    pipe.transformer.compile_repeated_blocks(backend="eager", fullgraph=True)


@pytest.mark.parametrize("compiled", [wrapped, in_place, blocks])
@pytest.mark.parametrize("first", ["compiled", "schedule"])
def test_compiled_without_graph_breaks_in_any_order(compiled, first):
    small, schedule, plain, want = scheduled("FLUX.1")
    torch._dynamo.reset()
    try:
        if first == "schedule":
            hook = apply_mean_cache(small.pipe, schedule)
        compiled(small.pipe)
        if first == "compiled":
            hook = apply_mean_cache(small.pipe, schedule)
        for call in (1, 2):
            torch.testing.assert_close(small.draw(), want, atol=1e-5, rtol=1e-5)
            assert hook.forwards == call * NFE
        remove_mean_cache(small.pipe)
        torch.testing.assert_close(small.draw(), plain, atol=1e-5, rtol=1e-5)
        assert hook.forwards == 2 * NFE
    finally:
        torch._dynamo.reset()


# They are equal to the bit in nearly every run. Another run's history would be off by 0.1 and more.
ROUNDING = 1e-5


def test_threads_that_share_a_transformer_draw_what_each_draws_alone():
    small, _, _, _ = scheduled("FLUX.1")
    hook = apply_mean_cache(small.pipe, schedule_of(small, [(0, 4, 1), (4, 8, 1), (8, 10, 1)]))
    alone = [small.draw(seed) for seed in range(25)]
    before, wrong = hook.forwards, []

    def serve(pipe) -> None:
        for seed, want in enumerate(alone):
            try:
                drawn = Small(small.case, pipe).draw(seed)
                off = float((drawn - want).abs().max())
                if off > ROUNDING:
                    wrong.append((seed, off))
            except Exception as error:
                wrong.append(error)

    threads = []
    for _ in range(4):
        parts = {**small.pipe.components, "scheduler": copy.deepcopy(small.pipe.scheduler)}
        threads.append(threading.Thread(target=serve, args=(quiet(type(small.pipe)(**parts)),)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert hook.forwards - before == 4 * 25 * 3


@pytest.mark.parametrize("strength", [0.9, 0.5])
def test_video_to_video_begins_where_its_timestep_says(strength):
    small = build("Wan 2.1")
    small.draw()
    names = ("tokenizer", "text_encoder", "transformer", "vae", "scheduler")
    pipe = WanVideoToVideoPipeline(**{name: small.pipe.components[name] for name in names})
    arguments = {name: one for name, one in small.case.arguments.items() if name != "num_frames"}
    video = Small(Case(None, {**arguments, "video": [picture()] * 5}), quiet(pipe))
    # The first jump begins before the run does, so its steps are computed.
    edges = [
        {"start": 0, "stop": 5, "weights": {"0": 0.6}},
        {"start": 5, "stop": 8, "weights": {"5": 1.0}},
        {"start": 8, "stop": 10, "weights": {"5": -0.4, "8": 1.4}},
    ]
    schedule = Schedule.from_edges(Grid.from_scheduler(pipe.scheduler).sigmas, edges)
    want = independent(lambda: video.draw(strength=strength), schedule)
    hook = apply_mean_cache(pipe, schedule)
    got = video.draw(strength=strength)
    begin = STEPS - int(STEPS * strength)
    assert hook.forwards == 2 * (5 - begin + 2)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["Z-Image", "Z-Image, two prompts"])
@pytest.mark.parametrize("truncation", [0.0, 0.2, 0.3, 1.0])
def test_guidance_that_ends_inside_a_jump_costs_no_forward_and_is_right(name, truncation):
    small = build("Z-Image")
    small.draw()
    arguments = {"cfg_truncation": truncation}
    if name != "Z-Image":
        texts = ("prompt_embeds", "negative_prompt_embeds")
        arguments |= {key: 2 * small.case.arguments[key] for key in texts}
    edges = [
        {"start": start, "stop": stop, "weights": {start: 1.0}}
        for start, stop in ((0, 4), (4, 7), (7, 10))
    ]
    schedule = Schedule.from_edges(Grid.from_scheduler(small.pipe.scheduler).sigmas, edges)
    want = independent(lambda: small.draw(**arguments), schedule)
    hook = apply_mean_cache(small.pipe, schedule)
    torch.testing.assert_close(small.draw(**arguments), want, atol=1e-5, rtol=1e-4)
    assert hook.forwards == 3
