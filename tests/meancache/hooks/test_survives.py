"""A schedule stays on through all that people do to a pipeline, or the run says that it is not."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from diffusers import SD3Transformer2DModel, WanVideoToVideoPipeline

from meancache import Schedule, apply_mean_cache, remove_mean_cache
from meancache.grid import Grid
from tests.support.small_pipelines import STEPS, Case, Small, build, picture, quiet

SKIPS = [(0, 1, 1), (1, 2, 1), (2, 5, 2), (5, 6, 1), (6, 9, 3), (9, 10, 1)]
NFE = len(SKIPS)
ALL = [(step, step + 1, 1) for step in range(STEPS)]


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


@pytest.mark.parametrize("first", ["offload", "schedule"])
def test_model_offloading_in_any_order_accelerates_every_call(first):
    small, schedule, plain, want = scheduled("FLUX.1")
    if first == "offload":
        small.pipe.enable_model_cpu_offload(device="cpu")
    hook = apply_mean_cache(small.pipe, schedule)
    if first == "schedule":
        small.pipe.enable_model_cpu_offload(device="cpu")
    for call in range(1, 4):
        assert torch.equal(small.draw(), want)
        assert hook.forwards == call * NFE
    remove_mean_cache(small.pipe)
    assert torch.equal(small.draw(), plain)


@pytest.mark.parametrize("first", ["compiled", "schedule"])
def test_a_transformer_compiled_as_a_whole_without_graph_breaks(first):
    small, schedule, _, want = scheduled("Wan 2.1")
    torch._dynamo.reset()
    try:
        if first == "schedule":
            hook = apply_mean_cache(small.pipe, schedule)
        small.pipe.transformer = torch.compile(
            small.pipe.transformer, backend="eager", fullgraph=True
        )
        if first == "compiled":
            hook = apply_mean_cache(small.pipe, schedule)
        for call in (1, 2):
            torch.testing.assert_close(small.draw(), want, atol=1e-5, rtol=1e-5)
            assert hook.forwards == call * 2 * NFE
    finally:
        torch._dynamo.reset()


def test_a_copy_runs_its_own_weights_and_says_that_it_follows_nothing():
    small, schedule, _, _ = scheduled("SD3")
    hook = apply_mean_cache(small.pipe, schedule)
    transformer = small.pipe.transformer
    with pytest.warns(UserWarning, match="follows none itself"):
        twin = copy.deepcopy(transformer)
    reference = build("SD3")
    for module in (twin, reference.pipe.transformer):
        assert type(module) is SD3Transformer2DModel
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(1.3)
    right = reference.draw()
    other = quiet(type(reference.pipe)(**{**small.pipe.components, "transformer": twin}))
    assert torch.equal(Small(small.case, other).draw(), right)
    assert hook.forwards == 0


def test_threads_that_share_a_transformer_draw_what_each_draws_alone():
    small, _, _, _ = scheduled("FLUX.1")
    hook = apply_mean_cache(small.pipe, schedule_of(small, [(0, 4, 1), (4, 8, 1), (8, 10, 1)]))
    alone = [small.draw(seed) for seed in range(25)]
    before, wrong = hook.forwards, []

    def serve(pipe) -> None:
        for seed, want in enumerate(alone):
            try:
                if not torch.equal(Small(small.case, pipe).draw(seed), want):
                    wrong.append(seed)
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
    plain = video.draw(strength=strength)
    # The first jump begins before the run does, so its steps are computed.
    edges = [
        {"start": 0, "stop": 5, "weights": {"0": 0.6}},
        {"start": 5, "stop": 8, "weights": {"5": 1.0}},
        {"start": 8, "stop": 10, "weights": {"8": 1.0}},
    ]
    sigmas = Grid.from_scheduler(pipe.scheduler).sigmas
    hook = apply_mean_cache(pipe, Schedule.from_edges(sigmas, edges))
    close = video.draw(strength=strength)
    begin = STEPS - int(STEPS * strength)
    assert hook.forwards == 2 * (5 - begin + 2)
    assert float((close - plain).norm() / plain.norm()) < 0.1


@pytest.mark.parametrize("truncation", [0.2, 0.3])
def test_guidance_that_ends_inside_a_jump_gives_one_picture_a_prompt(truncation):
    small = build("Z-Image")
    plain = small.draw(cfg_truncation=truncation)
    edges = [
        {"start": start, "stop": stop, "weights": {start: 1.0}}
        for start, stop in ((0, 4), (4, 7), (7, 10))
    ]
    sigmas = Grid.from_scheduler(small.pipe.scheduler).sigmas
    hook = apply_mean_cache(small.pipe, Schedule.from_edges(sigmas, edges))
    close = small.draw(cfg_truncation=truncation)
    assert close.shape == plain.shape
    assert float((close - plain).norm() / plain.norm()) < 0.1
    assert hook.forwards == 4  # one more, for a form that no computed step has shown
