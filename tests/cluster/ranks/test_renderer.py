"""What a gang draws: the same video whether one rank draws it or two share it."""

import pickle
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from cluster.fleet.gang import Gang
from cluster.media import video
from cluster.models.compiling import ALWAYS, NEVER
from cluster.ranks import (
    Denoised,
    RankBuilder,
    RenderRequest,
    command,
    denoise_item,
    render_item,
    renderer,
)
from cluster.work.plan import plan_items
from cluster.work.prompts import Prompt
from meancache import Schedule, apply_mean_cache, remove_mean_cache
from meancache.quality import psnr
from tests.support import ranks, tiled_vaes
from tests.support.commands import PROJECT, run, simple_commands
from tests.support.pages import README, blocks, commands

STEPS = 12
PROMPT = "a red circle moving left on a dark background"
EDGES = [(0, 1, 1), (1, 2, 1), (2, 3, 2), (3, 6, 3), (6, 7, 2), (7, 11, 4), (11, 12, 1)]


@pytest.fixture(scope="module")
def schedule(model) -> Schedule:
    edges = [{"start": start, "stop": stop, "span": span} for start, stop, span in EDGES]
    return Schedule.from_edges(model.grid(STEPS).sigmas, edges, "fine-step")


@pytest.fixture(scope="module")
def alone(model) -> renderer.Renderer:
    """The embedded model on one rank, in this process."""
    return renderer.Renderer(model, 0, 1, "")


def request(model, prompt: str, schedule=None, seed: int = 3) -> RenderRequest:
    arguments = {**model.defaults, "num_inference_steps": STEPS}
    return RenderRequest(plan_items([Prompt(1, prompt, "p", seed)], model, arguments)[0], schedule)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "nope"], "unknown model 'nope'"),
        (["--schedule", "nope.json"], "nope.json"),
        (["--output", "no/such/folder/x.mp4"], "there is no folder no/such/folder"),
    ],
)
def test_the_renderer_refuses_what_cannot_be_in_a_sentence(
    tmp_path, monkeypatch, capsys, arguments, sentence
):
    usual = ["renderer", "--prompt", "a", "--output", str(tmp_path / "x.mp4")]
    monkeypatch.setattr("sys.argv", [*usual, *arguments])
    with pytest.raises(SystemExit) as exit_:
        command.main()
    assert exit_.value.code == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    "prompt",
    [
        "a red circle moving left on a dark background",
        "red circle moving left on a dark background",  # one token less: xDiT cannot share these
    ],
)
@pytest.mark.parametrize("accelerated", [False, True])
def test_two_ranks_draw_the_video_of_one(
    model, schedule, gang_of_one, gang_of_two, prompt, accelerated
):
    asked = request(model, prompt, schedule if accelerated else None)
    alone = gang_of_one.run(render_item, asked)
    shared = gang_of_two.run(render_item, asked)
    assert alone.frames.shape == shared.frames.shape == (9, 64, 64, 3)
    assert alone.nfe == shared.nfe == (len(EDGES) if accelerated else STEPS)
    # Ranks add up attention in another order, which moves a float pixel by about 1e-5: after
    # rounding to 256 levels, by one level where it lay on the edge between two, which is rare.
    difference = np.abs(alone.frames.astype(int) - shared.frames.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


def test_latents_of_two_ranks_and_of_one_differ_by_the_rounding_of_sums(
    model, gang_of_one, gang_of_two
):
    asked = request(model, "a red circle moving left on a dark background")
    alone, shared = gang_of_one.run(ranks.latents, asked), gang_of_two.run(ranks.latents, asked)
    # Latents are of order 1; float32 sums of 100 terms in another order, over 12 steps.
    torch.testing.assert_close(shared, alone, atol=2e-4, rtol=0)


def test_ranks_share_the_tiles_of_the_videos_that_they_draw_whole(model, gang_of_one, gang_of_two):
    arguments = {**model.defaults, "num_inference_steps": 2, "num_frames": 37}
    asked = RenderRequest(plan_items([Prompt(1, "a red circle", "p")], model, arguments)[0], None)
    shared, tiles = gang_of_two.run(tiled_vaes.render, asked)
    alone, all_tiles = gang_of_one.run(tiled_vaes.render, asked)
    assert (all_tiles, tiles) == ([2], [1, 1])
    difference = np.abs(alone.frames.astype(int) - shared.frames.astype(int))
    assert difference.max() <= 1


def test_a_gang_draws_the_same_video_again_bit_for_bit(model, schedule, gang_of_two):
    asked = request(model, "a blue square moving up on a light background", schedule)
    first = gang_of_two.run(render_item, asked)
    assert np.array_equal(gang_of_two.run(render_item, asked).frames, first.frames)


@pytest.fixture
def eagerly(monkeypatch):
    """The compiler traces, and its code runs as it is: no kernels, which take a minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    counters.clear()


def test_blocks_are_compiled_once_for_texts_of_all_lengths(model, eagerly):
    two = renderer.Renderer(model, 0, 1, "", compiled=True)
    plain = renderer.Renderer(model, 0, 1, "")
    for prompt in (PROMPT, "a red circle", "a blue square moving up"):
        arguments = {**model.defaults, "num_inference_steps": 2}
        torch.testing.assert_close(
            two.latents(prompt, 0, arguments),
            plain.latents(prompt, 0, arguments),
            atol=1e-4,
            rtol=0,
        )
        # One of double and one of single stream blocks; the root, where the hook is, is eager.
        assert counters["stats"]["unique_graphs"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
def test_compiled_ranks_draw_the_video_of_eager_ones(model, schedule, world_size):
    prompts = ("a red circle moving left on a dark background", "red circle moving left")
    requests = [request(model, prompt, of) for prompt in prompts for of in (None, schedule)]
    drawn = []
    for compiling in (NEVER, ALWAYS):
        with Gang(RankBuilder(model, compiling=compiling), world_size) as gang:
            drawn.append([gang.run(denoise_item, one) for one in requests])
    for eager, compiled in zip(*drawn, strict=True):
        assert compiled.nfe == eager.nfe
        difference = latents(compiled) - latents(eager)
        assert difference.abs().max() < 1e-4  # fused, sums are rounded in another order


def latents(denoised: Denoised) -> torch.Tensor:
    """What the VAE is called with: of order 1."""
    (given, *_), _ = pickle.loads(denoised.latents)
    return given


def test_the_seed_decides_the_noise(model, gang_of_one):
    prompt = "a red circle moving left on a dark background"
    one = gang_of_one.run(render_item, request(model, prompt, seed=1))
    other = gang_of_one.run(render_item, request(model, prompt, seed=2))
    assert not np.array_equal(one.frames, other.frames)


def test_the_renderer_runs_under_torchrun_without_ray_as_the_readme_says(
    tmp_path, model, gang_of_one
):
    (command,) = (
        command
        for block in blocks(README)
        if block.text.startswith("torchrun")
        for command in commands(block)
    )
    (tmp_path / "schedules").symlink_to(PROJECT / "schedules")
    assert "9 frames, 10 forwards" in run(command, tmp_path)
    (words,) = simple_commands(command)
    said = dict(pairwise(words))
    item = plan_items([Prompt(1, said["--prompt"], "p", 0)], model, model.defaults)[0]
    followed = Schedule.load(PROJECT / said["--schedule"])
    expected = gang_of_one.run(render_item, RenderRequest(item, followed)).frames
    drawn = video.decode((tmp_path / said["--output"]).read_bytes())
    assert psnr(drawn, expected) > 25  # what the encoders leaves


def test_the_loop_is_timed_without_what_comes_before_and_after_it(model, gang_of_one):
    asked = request(model, "a red circle moving left on a dark background")
    gang_of_one.run(render_item, asked)  # the first call of a rank is slower in all its parts
    full = gang_of_one.run(render_item, asked)
    assert 0 < full.loop_s < full.seconds  # texts are encoded before it, frames decoded after


@pytest.mark.parametrize("kept", [(0, 4), (0, 1, 2, 3, 4, 6, 9)])
def test_a_schedule_computes_the_share_of_flops_that_it_computes_of_the_steps(alone, model, kept):
    prompt, arguments = "a red circle", {**model.defaults, "num_inference_steps": STEPS}
    stops = [*kept[1:], STEPS]
    edges = [
        {"start": start, "stop": stop, "span": 1} for start, stop in zip(kept, stops, strict=True)
    ]
    full = alone.transformer_flops(prompt, 0, arguments)
    apply_mean_cache(
        alone.pipeline.transformer, Schedule.from_edges(model.grid(STEPS).sigmas, edges)
    )
    try:
        fast = alone.transformer_flops(prompt, 0, arguments)
    finally:
        remove_mean_cache(alone.pipeline.transformer)
    assert fast * STEPS == full * len(kept)


def test_flops_count_attention_which_grows_with_the_square_of_the_tokens(alone, model):
    """Linear layers double with twice the tokens; whatever more there is, is attention."""
    arguments = {**model.defaults, "num_inference_steps": 1, "max_sequence_length": 16}
    flops = [
        alone.transformer_flops("a red circle", 0, {**arguments, "num_frames": frames})
        for frames in (5, 9, 17)  # latent frames 2, 3 and 5: equal steps would be 1 and 2
    ]
    assert flops[2] - flops[1] > 2 * (flops[1] - flops[0])
