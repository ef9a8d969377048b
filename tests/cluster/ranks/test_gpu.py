"""What only a CUDA machine can show; `pytest -m gpu`, without Ray, in about two minutes.

Nothing here is timed: `jobs.benchmark` does that.
"""

import numpy as np
import pytest
import torch

from cluster.fleet.gang import Gang
from cluster.fleet.staged_gang import StagedGang
from cluster.models.compiling import ALWAYS
from cluster.models.cost_model import GIB
from cluster.models.memory_plan import Demand
from cluster.models.model import find_model
from cluster.ranks import (
    RenderRequest,
    decode_item,
    denoise_item,
    denoiser_builder,
    encode_prompt,
    encoders_builder,
)
from cluster.ranks.memory import component_bytes
from cluster.ranks.random_weights import FULL, SCALED, random_model
from cluster.ranks.renderer import Renderer
from cluster.work.plan import plan_items
from cluster.work.prompts import Prompt
from jobs.benchmark.speed import even_schedule
from meancache.quality import psnr

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]
PROMPT = "a red circle moving left on a dark background"
STEPS = 12


@pytest.fixture(scope="module")
def tiny():
    return find_model("tiny")


@pytest.fixture(scope="module")
def arguments(tiny):
    return {**tiny.defaults, "num_inference_steps": STEPS}


@pytest.fixture(scope="module")
def on_gpu(tiny):
    return Renderer(tiny, 0, 1, "")


@pytest.fixture(scope="module")
def schedule(tiny):
    return even_schedule(tiny.grid(STEPS).sigmas, 5)


@pytest.fixture(scope="module")
def on_cpu(tiny, arguments, schedule):
    """Frames of the same runs on this machine's CPU: every step, and the schedule's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        renderer = Renderer(tiny, 0, 1, "")
        return [renderer.render(PROMPT, 3, arguments, one).frames for one in (None, schedule)]


@pytest.mark.parametrize("accelerated", [False, True])
def test_a_gpu_renders_what_a_cpu_does(on_gpu, on_cpu, arguments, schedule, accelerated):
    rendering = on_gpu.render(PROMPT, 3, arguments, schedule if accelerated else None)
    assert rendering.nfe == (schedule.nfe if accelerated else STEPS)
    # float32 on both; products on a GPU add up in another order, and convolutions may use tf32.
    assert psnr(rendering.frames, on_cpu[accelerated]) > 40


def test_a_video_is_rendered_the_same_again(on_gpu, arguments, schedule):
    first = on_gpu.render(PROMPT, 3, arguments, schedule)
    assert np.array_equal(on_gpu.render(PROMPT, 3, arguments, schedule).frames, first.frames)


def test_forwards_are_timed_by_the_device(on_gpu, arguments, schedule):
    denoised = on_gpu.denoise(PROMPT, 3, arguments, schedule)
    assert 0 < denoised.nfe * denoised.forward_s <= denoised.loop_s


def test_compiled_blocks_render_the_same_for_texts_of_other_lengths():
    model = random_model(SCALED, "bfloat16")
    arguments = {**model.defaults, "num_inference_steps": 2, "height": 128, "width": 128}
    eager = Renderer(model, 0, 1, "")
    prompts = (PROMPT, "a red circle", "a blue square moving up")
    expected = [eager.latents(prompt, 0, arguments).float() for prompt in prompts]
    compiled = Renderer(model, 0, 1, "", compiled=True)
    for prompt, latents in zip(prompts, expected, strict=True):
        got = compiled.latents(prompt, 0, arguments).float()
        assert torch.linalg.norm(got - latents) < 0.03 * torch.linalg.norm(latents)


def test_a_rank_and_its_encoders_share_a_gpu(tiny, arguments, schedule, on_gpu):
    item = plan_items([Prompt(1, PROMPT, "p", 3)], tiny, arguments, schedule)[0]
    rank = Gang(denoiser_builder(tiny, arguments, compiling=ALWAYS), 1)
    with StagedGang(rank, Gang(encoders_builder(tiny, arguments), 1)) as staged:
        texts, _ = staged.encoders.run(encode_prompt, item)
        denoised = staged.gang.run(denoise_item, RenderRequest(item, schedule, texts))
        frames, _ = staged.encoders.run(decode_item, (denoised.latents, item))
    assert psnr(frames, on_gpu.render(PROMPT, 3, arguments, schedule).frames) > 35


def test_the_memory_plan_is_within_a_tenth_of_what_is_taken():
    model = random_model(FULL, "bfloat16")
    size = {"width": 640, "height": 480, "num_frames": 65, "num_inference_steps": 2}
    arguments = {**model.defaults, **size}
    renderer = Renderer(model, 0, 1, "")
    plan = Demand(model, component_bytes(model), arguments, 1, 0)
    peaks = []
    torch.cuda.reset_peak_memory_stats()
    denoised = renderer.denoise(PROMPT, 0, arguments)
    peaks.append(torch.cuda.max_memory_allocated())
    renderer.decode(denoised.latents, arguments)
    peaks.append(torch.cuda.max_memory_allocated())
    planned = sum(size for name, size in plan.parts(0).items() if name != "process")
    assert max(peaks) / GIB == pytest.approx(planned / GIB, rel=0.1)
