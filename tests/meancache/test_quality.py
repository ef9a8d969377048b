"""PSNR and SSIM on videos whose difference is known."""

import numpy as np
import pytest

from meancache.quality import psnr, ssim

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


def test_videos_of_different_shapes_cannot_be_compared():
    for measure in (psnr, ssim):
        with pytest.raises(ValueError, match="cannot be compared"):
            measure(VIDEO, VIDEO[:2])
        with pytest.raises(ValueError, match="cannot be compared"):
            measure(VIDEO, VIDEO / 255.0)
