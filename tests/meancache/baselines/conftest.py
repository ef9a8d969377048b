"""Baselines by method, and what a run of the embedded pipeline costs."""

from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

PROMPTS = (
    "a red circle moving left on a dark background",
    "a blue square moving up on a light background",
)


@pytest.fixture(scope="session")
def latents(draw) -> Callable[..., torch.Tensor]:
    """Runs the embedded pipeline to its final latents; 12 steps where nothing else is said."""
    return lambda **changes: torch.from_numpy(draw(output_type="latent", **changes))


@pytest.fixture(scope="session")
def flops(pipe, latents) -> Callable[..., int]:
    """Floating point operations of one run, the transformer's and the text encoders'."""

    def count(**changes) -> int:
        with FlopCounterMode(display=False) as counter:
            latents(**changes)
        return counter.get_total_flops()

    return count


@pytest.fixture(scope="session")
def runs(draw) -> list[Callable[..., object]]:
    """Two calibration runs of 12 steps."""

    def calibration(prompt: str, seed: int) -> Callable[..., object]:
        return lambda **changes: draw(
            **{"prompt": prompt, "seed": seed, "output_type": "latent", **changes}
        )

    return [calibration(prompt, seed) for seed, prompt in enumerate(PROMPTS)]
