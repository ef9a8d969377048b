"""How close a video is to its reference: PSNR and SSIM over all frames, and their means."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from skimage.metrics import structural_similarity


@dataclass(frozen=True)
class Summary:
    """A score over independent videos.

    Attributes:
        mean: of the videos' scores.
        standard_error: of the mean; NaN for one video, or where a score is infinite.
        worst: the lowest score, or the highest where low scores are good.
    """

    mean: float
    standard_error: float
    worst: float

    @classmethod
    def of(
        cls, scores: Sequence[float], worst: Callable[[Sequence[float]], float] = min
    ) -> Summary:
        """Summarises at least one score; `worst` picks the worst of them."""
        known = len(scores) > 1 and bool(np.isfinite(scores).all())
        error = float(np.std(scores, ddof=1)) / math.sqrt(len(scores)) if known else math.nan
        return cls(float(np.mean(scores)), error, float(worst(scores)))

    def __str__(self) -> str:
        return f"{self.mean:.1f} ± {self.standard_error:.1f}"


def psnr(video: np.ndarray, reference: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB over all pixels of all frames; inf where identical.

    Args:
        video: (F, H, W, 3), uint8 or float in [0, 1].
        reference: of the same shape and dtype.

    Raises:
        ValueError: shapes or dtypes differ.
    """
    error = _unit(video, reference) - _unit(reference, video)
    mean_squared = float(np.mean(error**2))
    return float("inf") if mean_squared == 0.0 else -10.0 * float(np.log10(mean_squared))


def ssim(video: np.ndarray, reference: np.ndarray) -> float:
    """Structural similarity (Wang et al. 2004), mean over frames; Gaussian window, sigma 1.5.

    Args:
        video: (F, H, W, 3), uint8 or float in [0, 1], H and W at least 11.
        reference: of the same shape and dtype.

    Raises:
        ValueError: shapes or dtypes differ.
    """
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


def _unit(video: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The video as float64 in [0, 1]."""
    if video.shape != other.shape or video.dtype != other.dtype:
        raise ValueError(
            f"a video of {video.shape} {video.dtype} cannot be compared with one of "
            f"{other.shape} {other.dtype}"
        )
    return video / 255.0 if video.dtype == np.uint8 else video.astype(np.float64)
