"""The real embedded pipeline, and random reference trajectories."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch

from meancache import tiny

PROMPT = "a red circle moving left on a dark background"


@pytest.fixture(scope="session")
def pipe():
    """The embedded HunyuanVideoPipeline."""
    torch.set_num_threads(1)
    pipeline = tiny.load()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="session")
def draw(pipe) -> Callable[..., np.ndarray]:
    """Runs the embedded pipeline: 12 steps, latents, where nothing else is said, to be quick."""

    @cache  # it takes as long as a forward
    @torch.no_grad()
    def encoded(prompt: str, length: int) -> dict[str, torch.Tensor]:
        names = ("prompt_embeds", "pooled_prompt_embeds", "prompt_attention_mask")
        texts = pipe.encode_prompt(prompt, max_sequence_length=length)
        return dict(zip(names, texts, strict=True))

    def run(seed: int = 0, prompt: str = PROMPT, **changes) -> np.ndarray:
        arguments = {**tiny.DEFAULTS, "num_inference_steps": 12, "output_type": "latent", **changes}
        texts = encoded(prompt, arguments["max_sequence_length"])
        generator = torch.Generator().manual_seed(seed)
        return np.asarray(pipe(generator=generator, **texts, **arguments).frames[0])

    return run


@pytest.fixture(scope="session")
def torch_velocities() -> Callable[[int], torch.Tensor]:
    """(12, 1000) velocities that change smoothly from step to step, by seed."""

    def make(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(12, 1000, generator=generator).cumsum(dim=0)

    return make
