"""PSNR, SSIM and LPIPS on videos whose difference is known."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from meancache.quality import (
    LpipsAbsentError,
    Summary,
    flip,
    lpips_metric,
    mean_interval,
    perceptual_metric,
    psnr,
    ssim,
)

RNG = np.random.default_rng(0)
VIDEO = RNG.integers(0, 200, size=(3, 32, 32, 3), dtype=np.uint8)


def test_a_constant_error_has_the_psnr_of_its_size():
    assert psnr(VIDEO + np.uint8(10), VIDEO) == pytest.approx(20 * np.log10(255 / 10))


def test_float_and_uint8_videos_agree():
    other = VIDEO + np.uint8(10)
    assert psnr(other / 255.0, VIDEO / 255.0) == pytest.approx(psnr(other, VIDEO))
    assert ssim(other / 255.0, VIDEO / 255.0) == pytest.approx(ssim(other, VIDEO))


def test_a_video_is_identical_to_itself():
    assert psnr(VIDEO, VIDEO) == float("inf")
    assert ssim(VIDEO, VIDEO) == pytest.approx(1.0)


def test_ssim_falls_with_noise_and_is_symmetric():
    slight = np.clip(VIDEO + RNG.normal(0, 5, VIDEO.shape), 0, 255).astype(np.uint8)
    heavy = np.clip(VIDEO + RNG.normal(0, 60, VIDEO.shape), 0, 255).astype(np.uint8)
    assert ssim(VIDEO, VIDEO) > ssim(slight, VIDEO) > ssim(heavy, VIDEO)
    assert ssim(heavy, VIDEO) == pytest.approx(ssim(VIDEO, heavy))


def test_flip_grows_with_noise_and_is_zero_where_videos_are_identical():
    slight = np.clip(VIDEO + RNG.normal(0, 5, VIDEO.shape), 0, 255).astype(np.uint8)
    heavy = np.clip(VIDEO + RNG.normal(0, 60, VIDEO.shape), 0, 255).astype(np.uint8)
    assert flip(VIDEO, VIDEO) == 0.0
    assert 0 < flip(slight, VIDEO) < flip(heavy, VIDEO) < 1
    assert flip(heavy / 255.0, VIDEO / 255.0) == pytest.approx(flip(heavy, VIDEO))


def test_flip_of_black_and_white_is_as_large_as_it_can_be():
    black = np.zeros((1, 16, 16, 3), np.uint8)
    assert flip(black, black + np.uint8(255)) == pytest.approx(1.0, abs=0.05)


def test_videos_of_different_shapes_cannot_be_compared():
    for measure in (psnr, ssim, flip):
        with pytest.raises(ValueError, match="cannot be compared"):
            measure(VIDEO, VIDEO[:2])
        with pytest.raises(ValueError, match="cannot be compared"):
            measure(VIDEO, VIDEO / 255.0)


def test_the_worst_of_a_score_that_should_be_low_is_the_highest():
    scores = [0.1, 0.3, 0.2]
    assert Summary.of(scores).worst == 0.1
    assert Summary.of(scores, worst=max).worst == 0.3
    assert Summary.of(scores, worst=max).mean == pytest.approx(0.2)


def test_the_tail_is_the_tenth_percentile_or_the_ninetieth_where_low_is_good():
    scores = list(range(1, 21))
    assert Summary.of(scores).tail == 2
    assert Summary.of(scores, worst=max).tail == 18
    assert Summary.of([math.inf, 30.0, math.inf]).tail == 30.0


def test_the_interval_of_a_mean_is_students():
    scores = [41.0, 44.0, 38.0, 45.0, 47.0]
    low, high = mean_interval(scores, "abcde")
    expected = scipy.stats.t.interval(0.9, 4, np.mean(scores), scipy.stats.sem(scores))
    assert (low, high) == pytest.approx(expected)
    # Two videos of one prompt are one witness; with one prompt there is no interval.
    assert mean_interval([40.0, 42.0, *scores[1:]], "aabcde") == pytest.approx((low, high))
    assert mean_interval(scores, "aaaaa") is None


def test_intervals_hold_the_mean_as_often_as_they_say():
    rng = np.random.default_rng(1)
    intervals = [mean_interval(rng.normal(40, 5, size=10), range(10)) for _ in range(2000)]
    held = np.mean([low <= 40 <= high for low, high in intervals])
    assert held == pytest.approx(0.9, abs=0.02)


def test_lpips_without_its_weights_is_refused_in_a_sentence(tmp_path):
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path))
    lpips_metric.cache_clear()
    try:
        with pytest.raises(LpipsAbsentError, match=r"install lpips|AlexNet's weights are not in"):
            lpips_metric()
        assert not list(tmp_path.iterdir())  # nothing was downloaded
    finally:
        torch.hub.set_dir(before)
        lpips_metric.cache_clear()


class RandomBackbone(torch.nn.Module):
    """LPIPS as its paper defines it, on AlexNet's layers with random weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        relu, pool = torch.nn.ReLU(), torch.nn.MaxPool2d(3, 2)
        self.stages = torch.nn.ModuleList(
            [
                torch.nn.Sequential(torch.nn.Conv2d(3, 64, 11, 4, 2), relu),
                torch.nn.Sequential(pool, torch.nn.Conv2d(64, 192, 5, 1, 2), relu),
                torch.nn.Sequential(pool, torch.nn.Conv2d(192, 384, 3, 1, 1), relu),
                torch.nn.Sequential(torch.nn.Conv2d(384, 256, 3, 1, 1), relu),
                torch.nn.Sequential(torch.nn.Conv2d(256, 256, 3, 1, 1), relu),
            ]
        )

    def forward(self, images, others):
        assert images.shape[1] == others.shape[1] == 3
        assert images.dtype == torch.float32
        self.range = float(images.min()), float(images.max())
        distance = torch.zeros(len(images), 1, 1, 1)
        for stage in self.stages:
            images, others = stage(images), stage(others)
            unit, other = (torch.nn.functional.normalize(x, dim=1) for x in (images, others))
            distance += (unit - other).square().sum(dim=1, keepdim=True).mean((2, 3), keepdim=True)
        return distance


def test_a_perceptual_network_sees_frames_as_images_of_its_own_range():
    network = RandomBackbone().eval()
    measure = perceptual_metric(network)
    video = RNG.integers(0, 200, size=(2, 64, 64, 3), dtype=np.uint8)
    video[0, 0, 0], video[0, 0, 1] = 0, 255
    slight, heavy = np.maximum(video, 5), RNG.integers(0, 255, size=video.shape, dtype=np.uint8)
    assert measure(video, video) == 0
    assert network.range == (-1.0, 1.0)
    assert 0 < measure(slight, video) < measure(heavy, video)
    assert measure(heavy / 255.0, video / 255.0) == pytest.approx(measure(heavy, video), rel=1e-5)
    # The mean over frames, each compared with its own.
    each = [measure(heavy[i : i + 1], video[i : i + 1]) for i in range(2)]
    assert measure(heavy, video) == pytest.approx(np.mean(each), rel=1e-5)
    with pytest.raises(ValueError, match="cannot be compared"):
        measure(video, video[:1])


def test_lpips_tells_a_slight_change_from_a_heavy_one():
    try:
        lpips = lpips_metric()
    except LpipsAbsentError as absent:
        pytest.skip(str(absent))
    video = RNG.integers(0, 200, size=(2, 64, 64, 3), dtype=np.uint8)
    slight, heavy = video + np.uint8(5), RNG.integers(0, 255, size=video.shape, dtype=np.uint8)
    assert lpips(video, video) == 0
    assert 0 < lpips(slight, video) < lpips(heavy, video)
