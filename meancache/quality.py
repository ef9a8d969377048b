"""How close a video is to its reference: PSNR, SSIM, FLIP and LPIPS over all frames, and means."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

# The name under which torchvision keeps AlexNet's weights in torch's hub cache.
ALEXNET = "alexnet-owt-7be5be79.pth"
# What stands for the infinite PSNR of a video that equals its reference to the last bit.
MOST_DECIBELS = 100.0

# Percent of the videos that lie in the tail of a score.
TAIL = 10

Metric = Callable[[np.ndarray, np.ndarray], float]


class LpipsAbsentError(RuntimeError):
    """LPIPS cannot be measured here; the message says what is missing and how to get it."""


@dataclass(frozen=True)
class Summary:
    """A score over independent videos.

    Attributes:
        mean: of the videos' scores.
        standard_error: of the mean; NaN for one video, or where a score is infinite.
        worst: the lowest score, or the highest where low scores are good.
        tail: the 10th percentile of the scores, or the 90th where low scores are good.
    """

    mean: float
    standard_error: float
    worst: float
    tail: float = math.nan

    @classmethod
    def of(
        cls, scores: Sequence[float], worst: Callable[[Sequence[float]], float] = min
    ) -> Summary:
        """Summarises at least one score; `worst` picks the worst of them."""
        known = len(scores) > 1 and bool(np.isfinite(scores).all())
        error = float(np.std(scores, ddof=1)) / math.sqrt(len(scores)) if known else math.nan
        percentile = TAIL if worst is min else 100 - TAIL
        # Without interpolation, which makes NaN of two infinite scores.
        tail = np.percentile(scores, percentile, method="inverted_cdf")
        return cls(float(np.mean(scores)), error, float(worst(scores)), float(tail))

    def __str__(self) -> str:
        return f"{self.mean:.1f}{self._spread()}"

    def signed(self) -> str:
        """'+1.2 ± 0.4', of differences."""
        return f"{self.mean:+.1f}{self._spread()}"

    def _spread(self) -> str:
        known = math.isfinite(self.standard_error)  # of one video it is not
        return f" ± {self.standard_error:.1f}" if known else ""


def mean_interval(
    scores: Sequence[float], groups: Sequence[Hashable], coverage: float = 0.9
) -> tuple[float, float] | None:
    """Where the mean of scores lies in the long run, by Student's t over independent groups.

    Args:
        scores: finite, one a video.
        groups: what each is of, such as its prompt; scores of one group count as one, their mean.
        coverage: how often such an interval holds the mean.

    Returns:
        (low, high), or None where there are not two groups.
    """
    from scipy.special import stdtrit

    means = [
        fmean(score for score, other in zip(scores, groups, strict=True) if other == group)
        for group in dict.fromkeys(groups)
    ]
    if len(means) < 2:
        return None
    error = stdev(means) / math.sqrt(len(means))
    reach = float(stdtrit(len(means) - 1, (1 + coverage) / 2)) * error
    return fmean(means) - reach, fmean(means) + reach


def psnr(video: np.ndarray, reference: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB over all pixels of all frames; inf where identical.

    Args:
        video: (F, H, W, 3), uint8 or float in [0, 1].
        reference: of the same shape and dtype.

    Raises:
        ValueError: shapes or dtypes differ.
    """
    from skimage.metrics import peak_signal_noise_ratio  # with scipy.stats: a second to import

    with np.errstate(divide="ignore"):  # identical videos are infinitely close
        return float(
            peak_signal_noise_ratio(
                _unit(reference, video), _unit(video, reference), data_range=1.0
            )
        )


def ssim(video: np.ndarray, reference: np.ndarray) -> float:
    """Structural similarity (Wang et al. 2004), mean over frames; Gaussian window, sigma 1.5.

    Args:
        video: (F, H, W, 3), uint8 or float in [0, 1], H and W at least 11.
        reference: of the same shape and dtype.

    Raises:
        ValueError: shapes or dtypes differ.
    """
    from skimage.metrics import structural_similarity

    scores = [
        structural_similarity(
            frame,
            other,
            channel_axis=-1,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for frame, other in zip(_unit(video, reference), _unit(reference, video), strict=True)
    ]
    return float(np.mean(scores))


def flip(video: np.ndarray, reference: np.ndarray) -> float:
    """The mean error of LDR-FLIP (Andersson et al. 2020), mean over frames; 0 where identical.

    The difference that a person sees who flips between the two, at 67 pixels a degree, in [0, 1].

    Args:
        video: (F, H, W, 3), uint8 or float in [0, 1].
        reference: of the same shape and dtype.

    Raises:
        ValueError: shapes or dtypes differ.
    """
    import flip_evaluator  # with matplotlib, which PSNR and SSIM do without

    errors = [
        flip_evaluator.evaluate(
            np.ascontiguousarray(other, dtype=np.float32),
            np.ascontiguousarray(frame, dtype=np.float32),
            "LDR",
            applyMagma=False,
        )[1]
        for frame, other in zip(_unit(video, reference), _unit(reference, video), strict=True)
    ]
    return float(np.mean(errors))


@functools.cache
def lpips_metric() -> Metric:
    """LPIPS with AlexNet (Zhang et al. 2018, 1801.03924), mean over frames; 0 where identical.

    The function returned takes a video and its reference, (F, H, W, 3), uint8 or float in [0, 1].

    Raises:
        LpipsAbsentError: its packages or AlexNet's weights are not on this machine. Nothing is
            downloaded here: a job should not depend on somebody's server.
    """
    fix = f"install lpips and the torchvision of this torch ({metadata.version('torch')})"
    for package in ("torchvision", "lpips"):  # before torch, whose import takes seconds
        if importlib.util.find_spec(package) is None:
            raise LpipsAbsentError(f"there is no package {package}; {fix}")
    import torch  # PSNR and SSIM do without

    try:
        importlib.import_module("torchvision")
        lpips = importlib.import_module("lpips")
    except (ImportError, RuntimeError) as error:  # a torchvision of another torch raises the latter
        raise LpipsAbsentError(f"{error}; {fix}") from error
    weights = Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET
    if not weights.is_file():
        raise LpipsAbsentError(
            f"AlexNet's weights are not in torch's hub cache as {weights}: download them there"
        )
    return perceptual_metric(lpips.LPIPS(net="alex", verbose=False).eval())


def perceptual_metric(network: Callable[..., Any]) -> Metric:
    """A network that compares batches of images as a metric of videos: its mean over frames.

    Args:
        network: from two tensors (F, 3, H, W), float32 in [-1, 1], to F distances in any shape, as
            the networks of the `lpips` package.
    """
    import torch

    @torch.no_grad()
    def measure(video: np.ndarray, reference: np.ndarray) -> float:
        pair = [
            torch.from_numpy(_unit(*both)).permute(0, 3, 1, 2).float() * 2 - 1
            for both in ((video, reference), (reference, video))
        ]
        return float(network(*pair).mean())

    return measure


def _unit(video: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The video as float64 in [0, 1]."""
    if video.shape != other.shape or video.dtype != other.dtype:
        raise ValueError(
            f"a video of {video.shape} {video.dtype} cannot be compared with one of "
            f"{other.shape} {other.dtype}"
        )
    return video / 255.0 if video.dtype == np.uint8 else video.astype(np.float64)
