"""The scorer against videos whose facts are known because they were drawn."""

import dataclasses

import numpy as np
import pytest
import torch

from meancache.tiny.captions import ALL, BACKGROUNDS, COLOURS, DIRECTIONS, SHAPES, Caption
from meancache.tiny.scorer import FACTS, Score, score
from meancache.tiny.shapes import random_centres, render

ANY = Caption("triangle", "yellow", "up", "light")


def drawn(captions: tuple[Caption, ...], seed: int = 3) -> np.ndarray:
    """Videos (B, F, H, W, 3), uint8."""
    centres = random_centres(len(captions), torch.Generator().manual_seed(seed))
    videos = render(captions, centres).permute(0, 2, 3, 4, 1).numpy()
    return (videos * 255).round().astype(np.uint8)


def test_all_facts_are_right_on_99_of_100_drawn_videos() -> None:
    scores = [score(video, c) for video, c in zip(drawn(ALL), ALL, strict=True)]
    assert sum(shown.right == len(FACTS) for shown in scores) >= 0.99 * len(ALL)


def test_facts_are_right_through_noise_and_blur() -> None:
    generator = np.random.default_rng(0)
    captions = ALL[::6]
    right = 0
    for video, caption in zip(drawn(captions), captions, strict=True):
        soft = (video.astype(float) + np.roll(video, 1, axis=1) + np.roll(video, 1, axis=2)) / 765
        noisy = np.clip(soft + generator.normal(0, 0.05, soft.shape), 0, 1)
        right += score(noisy, caption).right
    assert right >= 0.97 * len(captions) * len(FACTS)


@pytest.mark.parametrize(
    ("fact", "words"),
    [
        ("shape", SHAPES),
        ("colour", COLOURS),
        ("direction", DIRECTIONS),
        ("background", BACKGROUNDS),
    ],
)
def test_a_wrong_word_makes_its_fact_wrong_and_no_other(fact: str, words: tuple[str, ...]) -> None:
    video = drawn((ANY,))[0]
    for word in set(words) - {getattr(ANY, fact)}:
        shown = score(video, dataclasses.replace(ANY, **{fact: word}))
        assert not getattr(shown, fact)
        assert shown.right == len(FACTS) - 1


def test_a_video_without_an_object_shows_its_background_alone() -> None:
    empty = np.full((9, 64, 64, 3), 0.93)
    assert score(empty, ANY) == Score(colour=False, shape=False, direction=False, background=True)


def test_an_object_that_stands_still_has_no_direction() -> None:
    still = np.repeat(drawn((ANY,))[0][4:5], 9, axis=0)
    assert score(still, ANY) == Score(colour=True, shape=True, direction=False, background=True)


def test_noise_shows_nothing() -> None:
    noise = np.random.default_rng(1).random((9, 64, 64, 3))
    assert score(noise, ANY) == Score(False, False, False, False)


def test_uint8_and_float_videos_score_alike() -> None:
    video = drawn((ANY,))[0]
    assert score(video, ANY) == score(video / 255, ANY)


@pytest.mark.parametrize(
    ("frames", "sentence"),
    [
        (np.zeros((64, 64, 3), np.uint8), "are not a video; give"),
        (np.zeros((9, 64, 64, 3), np.int64), "neither uint8 nor float"),
    ],
)
def test_what_is_no_video_is_refused_with_a_sentence(frames: np.ndarray, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        score(frames, ANY)
