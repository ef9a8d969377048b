"""The shipped weights: they load, repeat themselves, and measure as the design asks."""

import subprocess
import sys

import diffusers
import numpy as np
import pytest
import torch
from diffusers import HunyuanVideoPipeline

from meancache import tiny
from meancache.tiny.captions import ALL, HELD_OUT
from meancache.tiny.latents import measure as measured_latents
from meancache.tiny.scorer import FACTS, score
from meancache.tiny.shapes import random_centres, render
from meancache.tiny.training.measure import generate, measure


@pytest.fixture(scope="module")
def pipe() -> HunyuanVideoPipeline:
    pipe = tiny.load()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_the_weights_are_safetensors_of_16_mb_at_most() -> None:
    files = [file for file in tiny.WEIGHTS.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 16e6
    assert {file.suffix for file in files} == {".json", ".safetensors"}


def test_loading_gives_the_released_pipeline_class_and_nine_frames(
    pipe: HunyuanVideoPipeline,
) -> None:
    assert type(pipe) is HunyuanVideoPipeline
    assert generate(pipe, HELD_OUT[0], seed=0, steps=2).shape == (9, 64, 64, 3)


def test_a_seed_gives_the_same_video_bit_for_bit(pipe: HunyuanVideoPipeline) -> None:
    first, again = (generate(pipe, HELD_OUT[0], seed=4, steps=4) for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, generate(pipe, HELD_OUT[0], seed=5, steps=4))


def test_saving_and_loading_again_changes_no_bit(
    pipe: HunyuanVideoPipeline, tmp_path: object
) -> None:
    pipe.save_pretrained(tmp_path, safe_serialization=True)
    copy = HunyuanVideoPipeline.from_pretrained(tmp_path)
    copy.set_progress_bar_config(disable=True)
    here, there = (generate(p, HELD_OUT[1], seed=0, steps=3) for p in (pipe, copy))
    assert np.array_equal(here, there)


def test_a_dtype_can_be_asked_for() -> None:
    assert tiny.load(torch.bfloat16).transformer.dtype is torch.bfloat16


def test_the_short_prompt_padding_gives_the_default_paddings_video(
    pipe: HunyuanVideoPipeline,
) -> None:
    arguments = {**tiny.DEFAULTS, "num_inference_steps": 3, "output_type": "np"}
    videos = [
        pipe(
            HELD_OUT[0].text,
            generator=torch.Generator().manual_seed(0),
            **{**arguments, "max_sequence_length": length},
        ).frames
        for length in (16, 256)
    ]
    np.testing.assert_allclose(videos[0], videos[1], atol=2e-4)


def test_the_vae_keeps_what_a_drawn_video_shows(pipe: HunyuanVideoPipeline) -> None:
    captions = ALL[::12]
    videos = render(captions, random_centres(len(captions), torch.Generator().manual_seed(1)))
    with torch.no_grad():
        latents = pipe.vae.encode(videos * 2 - 1).latent_dist.mean
        decoded = pipe.vae.decode(latents, return_dict=False)[0].div(2).add(0.5).clamp(0, 1)
    assert (latents - measured_latents(videos * 2 - 1)).square().mean() < 0.02
    frames = decoded.permute(0, 2, 3, 4, 1).numpy()
    right = sum(score(video, c).right for video, c in zip(frames, captions, strict=True))
    assert right >= 0.95 * len(captions) * len(FACTS)


def test_three_held_out_captions_show_their_facts_and_ten_steps_miss_them_by_some_decibels(
    pipe: HunyuanVideoPipeline,
) -> None:
    ruler = measure(pipe, HELD_OUT[:3])
    assert ruler.facts_overall >= 10 / 12
    assert 15 <= ruler.euler[10].mean <= 30


def test_loading_and_rendering_show_no_progress_bars(capfd) -> None:
    pipe = tiny.load()
    pipe("a red circle", **{**tiny.DEFAULTS, "num_inference_steps": 1, "output_type": "latent"})
    assert capfd.readouterr().err == ""
    assert diffusers.utils.logging.is_progress_bar_enabled()


def test_importing_the_library_is_enough_to_reach_it_and_imports_nothing_heavy() -> None:
    program = (
        "import sys, meancache\n"
        "print(meancache.tiny.DEFAULTS['height'], sorted({'torch', 'diffusers'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "64 []\n", done.stderr
